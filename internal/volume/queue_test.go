package volume

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"mars/internal/block"
	"mars/internal/block/blocktest"
)

// TestLeaderHandsOff: a caller writes for the others only so long; what is queued after that is written all the same, in order.
func TestLeaderHandsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const total = 3 * maxRounds
		var mu sync.Mutex
		var order []int
		var a *app
		left := -1
		a = newPrimary(t, 1)
		stamp := a.cfg.Stamp
		submit := func(i int) {
			p := make([]byte, 512)
			fill(p, i, 0)
			a.v.Submit([]*block.Request{{Op: block.OpWrite, Len: 512, Data: p, Done: func(err error) {
				must(t, err)
				mu.Lock()
				defer mu.Unlock()
				order = append(order, i)
			}}})
		}
		// The clock is asked once per batch, by whoever writes it: the next request comes just then.
		a.v.cfg.Stamp = func() int64 {
			if left > 0 {
				left--
				submit(total - left)
			}
			return stamp()
		}
		left = total - 1
		submit(1)
		mu.Lock()
		early := len(order)
		mu.Unlock()
		synctest.Wait()
		must(t, a.v.Deactivate("b"))
		if early > maxRounds || len(order) != total {
			t.Errorf("the caller wrote %d batches, of %d requests %d were done", early, total, len(order))
		}
		for i, x := range order {
			if x != i+1 {
				t.Fatalf("order %v", order)
			}
		}
		img, err := imageOf(a.v, testSize)
		if err != nil || img[0] != total {
			t.Errorf("sector 0 is of write %d, error %v", img[0], err)
		}
	})
}

// TestWantDurable: while somebody ships, every write asks for a sync; else only those who wait for one do.
func TestWantDurable(t *testing.T) {
	a := newPrimary(t, 1)
	asked := func(c <-chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	write := func(f block.Flags) {
		a.v.Submit([]*block.Request{{Op: block.OpDiscard, Len: 512, Flags: f, Done: func(error) {}}})
	}
	write(0)
	if asked(a.v.Soon()) || asked(a.v.Waiters()) {
		t.Error("nobody wants a sync")
	}
	stop := a.v.WantDurable()
	if !asked(a.v.Soon()) {
		t.Error("what is there already is wanted as well")
	}
	write(0)
	if !asked(a.v.Soon()) || asked(a.v.Waiters()) {
		t.Error("somebody wants a sync soon")
	}
	write(block.FUA)
	if !asked(a.v.Waiters()) {
		t.Error("somebody waits")
	}
	stop()
	stop()
	write(0)
	if asked(a.v.Soon()) || asked(a.v.Waiters()) {
		t.Error("nobody wants a sync any more")
	}
	if n := a.v.SyncStep(); n != 1 {
		t.Errorf("%d waited", n)
	}
}

// mapper is a disk that knows its holes: sectors that were never written.
type mapper struct {
	*blocktest.Disk
	fail atomic.Bool
}

func (m *mapper) Extents(off, n int64, max int) ([]block.Extent, error) {
	if m.fail.Load() {
		return nil, errInjected
	}
	var out []block.Extent
	p := make([]byte, sector)
	for at := off; at < off+n; at += sector {
		if err := m.ReadAt(p, at); err != nil {
			return nil, err
		}
		e := block.Extent{Len: sector, Hole: string(p) == string(make([]byte, sector))}
		if k := len(out); k == max && out[k-1].Hole != e.Hole {
			break
		}
		out = joinExtent(out, e)
	}
	return out, nil
}

// TestHoles: with a disk that knows its holes the volume knows its own.
func TestHoles(t *testing.T) {
	m := newMachine(func(c *Config) { c.SegmentSize, c.WindowSize, c.WritebackLimit = 1<<20, 1<<20, 8<<20 })
	m.disk = blocktest.NewDisk(4 << 20)
	m.wire()
	disk := &mapper{Disk: m.disk}
	m.cfg.Disk = disk
	v, err := Create(m.cfg, 4<<20)
	must(t, err)
	must(t, v.Activate("a", timeline(1)))
	stop := pump(t, v)
	blocktest.Conform(t, v)
	stop()
	m.v = v
	must(t, m.do(&block.Request{Op: block.OpDiscard, Len: 4 << 20}))
	must(t, m.drain())
	must(t, m.do(&block.Request{Op: block.OpWrite, Off: 1024, Len: 512, Data: make([]byte, 512)}))
	must(t, m.do(&block.Request{Op: block.OpWriteZeroes, Off: 1536, Len: 512, Flags: block.NoHole}))
	must(t, m.do(&block.Request{Op: block.OpWriteZeroes, Off: 2048, Len: 512}))
	got, err := v.Extents(0, 4096, 9)
	want := []block.Extent{{Len: 1024, Hole: true}, {Len: 1024}, {Len: 2048, Hole: true}}
	if err != nil || len(got) != 3 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("%v, want %v; error %v", got, want, err)
	}
	disk.fail.Store(true)
	if got, err := v.Extents(0, 4096, 9); !errors.Is(err, errInjected) {
		t.Errorf("%v, error %v", got, err)
	}
}

// TestResizeMethod: the checks before the request, and the request.
func TestResizeMethod(t *testing.T) {
	a := newPrimary(t, 1)
	wantErr(t, "odd", a.v.Resize(testSize+1), block.ErrAlign)
	wantErr(t, "smaller", a.v.Resize(testSize-sector), errAny)
	wantErr(t, "larger than the disk", a.v.Resize(testDisk+sector), block.ErrNoSpace)
	wantErr(t, "the same", a.v.Resize(testSize), nil)
	stop := pump(t, a.v)
	wantErr(t, "larger", a.v.Resize(testDisk), nil)
	stop()
	a.end(powerLosingAll, nil)
	v, err := Open(a.cfg)
	if err != nil || v.Size() != testDisk {
		t.Errorf("size %d after a power cut, error %v", v.Size(), err)
	}
}

// TestUnknownOperation fails; its neighbours do not.
func TestUnknownOperation(t *testing.T) {
	a := newPrimary(t, 1)
	var errs [3]error
	reqs := []*block.Request{
		{Op: block.OpDiscard, Len: 512}, {Op: 77, Len: 512, Data: make([]byte, 512)}, {Op: block.OpWrite, Len: 512, Data: make([]byte, 512)},
	}
	for i, r := range reqs {
		r.Done = func(err error) { errs[i] = err }
	}
	a.v.Submit(reqs)
	if errs[0] != nil || errs[1] == nil || errs[2] != nil {
		t.Error(errs)
	}
}
