package blocktest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"mars/internal/block"
)

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

// show renders the first n sectors, one letter each; '.' stands for zeroes.
func show(t *testing.T, d block.Device, n int) string {
	t.Helper()
	buf := make([]byte, n*512)
	must(t)(d.ReadAt(buf, 0))
	var s strings.Builder
	for sector := range slices.Chunk(buf, 512) {
		if !bytes.Equal(sector, pattern(512, sector[0])) {
			t.Fatalf("torn sector %x", sector)
		}
		s.WriteByte(sector[0])
	}
	return strings.ReplaceAll(s.String(), "\x00", ".")
}

// The states after a power cut are exactly the ones listed.
func TestPowerCutHasExactlyTheAllowedOutcomes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		run  func(d *Disk) error
		want string
	}{
		{"unflushed sectors are independent", func(d *Disk) error {
			return d.WriteAt(pattern(1024, 'B'), 512, 0)
		}, "AAA ABA AAB ABB"},
		{"any version since the last flush", func(d *Disk) error {
			return errors.Join(d.WriteAt(pattern(512, 'B'), 0, 0), d.WriteAt(pattern(512, 'C'), 0, 0))
		}, "AAA BAA CAA"},
		{"flush", func(d *Disk) error {
			return errors.Join(d.WriteAt(pattern(512, 'B'), 0, 0), d.Flush(), d.WriteAt(pattern(512, 'C'), 512, 0))
		}, "BAA BCA"},
		{"FUA is durable by itself only", func(d *Disk) error {
			return errors.Join(d.WriteAt(pattern(512, 'B'), 0, 0), d.WriteAt(pattern(512, 'C'), 512, block.FUA))
		}, "ACA BCA"},
		{"zeroes and discards are writes", func(d *Disk) error {
			return errors.Join(d.WriteZeroes(0, 512, 0), d.Discard(512, 512, 0), d.Discard(1024, 512, block.FUA))
		}, "AA. .A. A.. ..."},
		{"failed flush that drops the cache", func(d *Disk) error {
			err := d.WriteAt(pattern(512, 'B'), 0, 0)
			d.Inject(Fault{Err: syscall.EIO, Drop: true})
			if !errors.Is(d.Flush(), syscall.EIO) {
				return errors.New("flush did not fail")
			}
			return errors.Join(err, d.Flush())
		}, "AAA"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := NewDisk(4096)
			must(t)(errors.Join(d.WriteAt(pattern(1536, 'A'), 0, 0), d.Flush()))
			must(t)(c.run(d))
			want := strings.Fields(c.want)
			slices.Sort(want)
			if got := outcomes(t, d); !slices.Equal(got, want) {
				t.Errorf("states %q, want %q", got, want)
			}
		})
	}
}

func outcomes(t *testing.T, d *Disk) []string {
	t.Helper()
	var list []string
	for seed := range uint64(300) {
		list = append(list, show(t, d.Clone().Crash(rand.New(rand.NewPCG(seed, 0))), 3))
	}
	list = append(list, show(t, d.Clone().CrashKeepingAll(), 3), show(t, d.CrashLosingAll(), 3))
	slices.Sort(list)
	return slices.Compact(list)
}

func TestSeedsReplay(t *testing.T) {
	t.Parallel()
	life := func(seed uint64) string {
		rng := rand.New(rand.NewPCG(seed, 0))
		d := NewDisk(1 << 20)
		for range 3 {
			for range 50 {
				off := rng.Int64N(1<<11-8) * 512
				must(t)(d.WriteAt(pattern(4096, byte(rng.Uint32())), off, 0))
			}
			d = d.Crash(rng)
		}
		h, err := Hash(d)
		must(t)(err)
		return h
	}
	seen := map[string]bool{}
	for seed := range uint64(10) {
		first, second := life(seed), life(seed)
		if first != second {
			t.Fatalf("seed %d does not replay", seed)
		}
		seen[first] = true
	}
	if len(seen) != 10 {
		t.Errorf("10 seeds, %d outcomes", len(seen))
	}
}

func TestKillAndCrashEndTheProcess(t *testing.T) {
	t.Parallel()
	d := NewDisk(4096)
	must(t)(d.WriteAt(pattern(512, 'A'), 0, 0))
	after := d.Kill()
	if got := show(t, after, 2); got != "A." {
		t.Errorf("after kill: %q", got)
	}
	if after.Unflushed() != 1 {
		t.Errorf("%d sectors unflushed after kill", after.Unflushed())
	}
	crashed := after.CrashLosingAll()
	for _, old := range []*Disk{d, after} {
		for _, err := range []error{
			old.ReadAt(nil, 0), old.WriteAt(nil, 0, 0), old.Flush(), old.Discard(0, 512, 0), old.WriteZeroes(0, 512, 0), old.WriteVecAt(nil, 0),
		} {
			wantErr(t, err, ErrGone)
		}
	}
	if got := show(t, crashed, 2); got != ".." {
		t.Errorf("after crash: %q", got)
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	d := NewDisk(1 << 20)
	buf := make([]byte, 1024)
	d.Inject(Fault{Err: syscall.EIO, Sticky: true, Match: Within(OpRead, 4096, 512)})
	d.Inject(Fault{Err: block.ErrNoSpace, Sticky: true, Match: Within(0, 8192, 512)})
	for range 2 {
		wantErr(t, d.ReadAt(buf, 4096-512), syscall.EIO)
		must(t)(d.WriteAt(buf, 4096-512, 0))
		must(t)(d.ReadAt(buf, 4096-1024))
		must(t)(d.ReadAt(buf, 4096+512))
		wantErr(t, d.WriteAt(buf, 8192, 0), block.ErrNoSpace)
		wantErr(t, d.Discard(0, 1<<20, 0), block.ErrNoSpace)
		must(t)(d.Flush())
	}
	if d.Ops() != 14 || d.Fired() != 6 {
		t.Errorf("%d operations, %d failed", d.Ops(), d.Fired())
	}
	d.ClearFaults()
	d.FailAt(1, syscall.ETIMEDOUT)
	must(t)(d.Flush())
	wantErr(t, d.Flush(), syscall.ETIMEDOUT)
	d.Vanish()
	wantErr(t, d.Flush(), ErrVanished)
	wantErr(t, d.ReadAt(buf, 0), ErrVanished)
	d.ClearFaults()
	must(t)(d.ReadAt(buf, 0))
	d.StopAt(1)
	must(t)(d.Flush())
	wantErr(t, d.Flush(), ErrGone)
	wantErr(t, d.Flush(), ErrGone)
}

func TestHookStallsAnOperationAndNoOther(t *testing.T) {
	t.Parallel()
	d := NewDisk(4096)
	stalled, release := make(chan Op), make(chan struct{})
	d.OnOp(func(op Op) {
		if op.Kind == OpWrite {
			stalled <- op
			<-release
		}
	})
	var wg sync.WaitGroup
	wg.Go(func() { // ends when released
		if err := d.WriteAt(pattern(512, 'A'), 512, 0); err != nil {
			t.Error(err)
		}
	})
	if op := <-stalled; op.String() != "write: 512+512" {
		t.Errorf("stalled %s", op)
	}
	if got := show(t, d, 2); got != ".." {
		t.Errorf("a stalled write is visible: %q", got)
	}
	close(release)
	wg.Wait()
	d.OnOp(nil)
	if got := show(t, d, 2); got != ".A" {
		t.Errorf("after the release: %q", got)
	}
}

func TestGrowAndCorrupt(t *testing.T) {
	t.Parallel()
	d := NewDisk(512)
	d.Grow(1024)
	d.Grow(512)
	if d.Size() != 1024 {
		t.Fatalf("size %d", d.Size())
	}
	must(t)(d.WriteAt(pattern(512, 'A'), 512, block.FUA))
	d.Corrupt(512, 512)
	if got := show(t, d.CrashLosingAll(), 2); got != ".\xbe" {
		t.Errorf("%q", got)
	}
}

func TestEqualAndHash(t *testing.T) {
	t.Parallel()
	a, b := NewDisk(1<<20), NewDisk(1<<20)
	compare := func(want string) {
		t.Helper()
		err := Equal(a, b)
		if got := fmt.Sprint(err); !strings.Contains(got, want) {
			t.Errorf("Equal: %s, want %s", got, want)
		}
		ha, errA := Hash(a)
		hb, errB := Hash(b)
		must(t)(errors.Join(errA, errB))
		if (ha == hb) != (err == nil) {
			t.Errorf("hashes equal: %v, but Equal says %v", ha == hb, err)
		}
	}
	compare("nil")
	must(t)(a.WriteAt(pattern(512, 1), 300<<10, 0))
	compare("sector at 307200 differs")
	must(t)(b.WriteAt(pattern(512, 1), 300<<10, 0))
	compare("nil")
	b.Grow(1<<20 + 512)
	compare("sizes differ")
	b.Vanish()
	_, err := Hash(b)
	wantErr(t, err, ErrVanished)
}
