package blocktest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"

	"mars/internal/block"
)

// conformArea is how much of the device, from its start and before its end, Conform works on, in bytes.
const conformArea = 1 << 20

// Conform checks that dev keeps the contract of block.Device and of those optional interfaces that it implements. It overwrites the
// device, which must have at least 4 MiB and no other user. A failure prints the seed; MARS_TEST_SEED repeats it.
func Conform(t *testing.T, dev block.Device) {
	t.Helper()
	if dev.Size() < 4*conformArea {
		t.Fatalf("device of %d bytes is too small", dev.Size())
	}
	c := &conformer{dev: dev}
	t.Run("bounds", c.bounds)
	t.Run("end", c.end)
	t.Run("buffer ownership", c.ownership)
	t.Run("zeroes", c.zeroes)
	t.Run("random operations", c.random)
	t.Run("concurrent", c.concurrent)
	if _, ok := dev.(block.Submitter); ok {
		t.Run("submit", c.submit)
	}
}

type conformer struct{ dev block.Device }

// must returns a function that ends the test on an error.
func must(t *testing.T) func(error) {
	return func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
}

func pattern(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }

func (c *conformer) wantContent(t *testing.T, off int64, want []byte) {
	t.Helper()
	got := pattern(len(want), 0xee)
	must(t)(c.dev.ReadAt(got, off))
	must(t)(sameSectors(got, want, off))
}

// bounds: requests that are not aligned or not inside the device fail with the right error and change nothing.
func (c *conformer) bounds(t *testing.T) {
	size := c.dev.Size()
	for _, x := range []struct {
		off, n int64
		want   error
	}{
		{1, 512, block.ErrAlign}, {0, 511, block.ErrAlign}, {512, 513, block.ErrAlign}, {-512, 512, block.ErrRange},
		{size, 512, block.ErrRange}, {size - 512, 1024, block.ErrRange}, {1 << 62, 512, block.ErrRange},
	} {
		buf := make([]byte, x.n)
		errs := map[string]error{
			"read": c.dev.ReadAt(buf, x.off), "write": c.dev.WriteAt(buf, x.off, 0), "FUA write": c.dev.WriteAt(buf, x.off, block.FUA),
			"write zeroes": c.dev.WriteZeroes(x.off, x.n, 0), "discard": c.dev.Discard(x.off, x.n, 0),
		}
		if v, ok := c.dev.(block.VecWriter); ok {
			errs["vectored write"] = v.WriteVecAt([][]byte{buf}, x.off)
		}
		if v, ok := c.dev.(block.NowaitReader); ok {
			_, errs["nowait read"] = v.ReadAtNowait(buf, x.off)
		}
		if v, ok := c.dev.(block.ExtentMapper); ok {
			_, errs["extents"] = v.Extents(x.off, x.n, 1)
		}
		for op, err := range errs {
			if !errors.Is(err, x.want) {
				t.Errorf("%s at %d of %d bytes: error %v, want %v", op, x.off, x.n, err, x.want)
			}
		}
	}
}

// end: the last sector is usable, and requests of no bytes are allowed everywhere.
func (c *conformer) end(t *testing.T) {
	size := c.dev.Size()
	last := pattern(512, 0x77)
	must(t)(c.dev.WriteAt(last, size-512, block.FUA))
	c.wantContent(t, size-512, last)
	must(t)(c.dev.Discard(size-512, 512, block.FUA))
	c.wantContent(t, size-512, make([]byte, 512))
	for _, off := range []int64{0, size} {
		must(t)(c.dev.ReadAt(nil, off))
		must(t)(c.dev.WriteAt(nil, off, 0))
		must(t)(c.dev.WriteZeroes(off, 0, 0))
		must(t)(c.dev.Discard(off, 0, block.FUA))
	}
	must(t)(c.dev.Flush())
}

// ownership: when a write has returned, the caller may reuse the buffer.
func (c *conformer) ownership(t *testing.T) {
	buf := pattern(4096, 1)
	must(t)(c.dev.WriteAt(buf, 0, 0))
	clear(buf)
	c.wantContent(t, 0, pattern(4096, 1))
	if v, ok := c.dev.(block.VecWriter); ok {
		buf = pattern(4096, 2)
		must(t)(v.WriteVecAt([][]byte{buf[:512], nil, buf[512:]}, 512))
		clear(buf)
		c.wantContent(t, 512, pattern(4096, 2))
	}
}

// zeroes: whatever the flags, zeroed and discarded ranges read as zeroes and their neighbours stay.
func (c *conformer) zeroes(t *testing.T) {
	const area = 192 << 10
	ones := pattern(area, 0xff)
	for _, off := range []int64{512, 4096, 64<<10 + 1536} {
		for _, n := range []int64{512, 4096, 100 << 10} {
			for name, zero := range c.zeroers() {
				must(t)(c.dev.WriteAt(ones, 0, 0))
				err := zero(off, n)
				want := bytes.Clone(ones)
				if err == nil {
					clear(want[off : off+n])
				} else if !errors.Is(err, block.ErrNotFast) {
					t.Fatalf("%s: %v", name, err)
				}
				got := make([]byte, area)
				must(t)(c.dev.ReadAt(got, 0))
				if err := sameSectors(got, want, 0); err != nil {
					t.Fatalf("%s at %d of %d bytes: %v", name, off, n, err)
				}
			}
		}
	}
}

func (c *conformer) zeroers() map[string]func(off, n int64) error {
	list := map[string]func(off, n int64) error{}
	for f := range 2 * block.FastZero { // all combinations
		list[fmt.Sprintf("write zeroes with flags %b", f)] = func(off, n int64) error { return c.dev.WriteZeroes(off, n, f) }
	}
	for _, f := range []block.Flags{0, block.FUA} {
		list[fmt.Sprintf("discard with flags %b", f)] = func(off, n int64) error { return c.dev.Discard(off, n, f) }
	}
	return list
}

// random: a device does the same as an array of bytes.
func (c *conformer) random(t *testing.T) {
	seed := Seed(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	m := &model{conformer: c, rng: rng, want: make([]byte, conformArea)}
	must(t)(c.dev.WriteZeroes(0, conformArea, 0))
	for i := range 600 {
		if err := m.step(); err != nil {
			t.Fatalf("seed %d, operation %d: %v", seed, i, err)
		}
	}
	must(t)(c.dev.Flush())
	c.wantContent(t, 0, m.want)
}

// Seed returns MARS_TEST_SEED, or 1, and logs it.
func Seed(t testing.TB) uint64 {
	t.Helper()
	seed := uint64(1)
	if s := os.Getenv("MARS_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("MARS_TEST_SEED=%d", seed)
	return seed
}

// model is an array of bytes that gets the same operations as the device.
type model struct {
	*conformer
	rng  *rand.Rand
	want []byte
}

func (m *model) step() error {
	n := int64(1+m.rng.IntN(1+m.rng.IntN(128))) * block.SectorSize // small ones are more frequent
	off := m.rng.Int64N((conformArea-n)/block.SectorSize+1) * block.SectorSize
	flags := block.Flags(0)
	if m.rng.IntN(8) == 0 {
		flags = block.FUA
	}
	mine := m.want[off : off+n]
	switch m.rng.IntN(8) {
	case 0, 1, 2:
		m.fill(mine)
		return m.dev.WriteAt(mine, off, flags)
	case 3:
		m.fill(mine)
		return m.writeVec(mine, off)
	case 4:
		return m.zero(mine, off, flags)
	case 5:
		clear(mine)
		return m.dev.Discard(off, n, flags)
	case 6:
		return errors.Join(m.read(mine, off), m.nowait(mine, off), m.extents(off, n))
	}
	return m.dev.Flush()
}

func (m *model) fill(p []byte) {
	for word := range slices.Chunk(p, 8) {
		binary.LittleEndian.PutUint64(word, m.rng.Uint64())
	}
}

func (m *model) writeVec(p []byte, off int64) error {
	v, ok := m.dev.(block.VecWriter)
	if !ok {
		return m.dev.WriteAt(p, off, 0)
	}
	cut := m.rng.IntN(len(p)/block.SectorSize+1) * block.SectorSize
	return v.WriteVecAt([][]byte{p[:cut], p[cut:]}, off)
}

func (m *model) zero(p []byte, off int64, f block.Flags) error {
	f |= block.Flags(m.rng.IntN(4)) * block.NoHole
	err := m.dev.WriteZeroes(off, int64(len(p)), f)
	if errors.Is(err, block.ErrNotFast) && f&block.FastZero != 0 {
		return nil
	}
	clear(p)
	return err
}

func (m *model) read(want []byte, off int64) error {
	got := make([]byte, len(want))
	if err := m.dev.ReadAt(got, off); err != nil {
		return err
	}
	return sameSectors(got, want, off)
}

func (m *model) nowait(want []byte, off int64) error {
	r, ok := m.dev.(block.NowaitReader)
	if !ok {
		return nil
	}
	got := make([]byte, len(want))
	if ok, err := r.ReadAtNowait(got, off); !ok || err != nil {
		return err
	}
	return sameSectors(got, want, off)
}

// extents: they cover a prefix, at most as many as asked for, and holes read as zeroes.
func (m *model) extents(off, n int64) error {
	x, ok := m.dev.(block.ExtentMapper)
	if !ok {
		return nil
	}
	limit := 1 + m.rng.IntN(4)
	list, err := x.Extents(off, n, limit)
	if err != nil {
		return err
	}
	if len(list) == 0 || len(list) > limit {
		return fmt.Errorf("extents at %d of %d bytes: %d of them, limit %d", off, n, len(list), limit)
	}
	for end := off + n; len(list) > 0; list = list[1:] {
		e := list[0]
		if e.Len <= 0 || e.Len%block.SectorSize != 0 || e.Len > end-off {
			return fmt.Errorf("extent of %d bytes at %d, %d bytes before the end", e.Len, off, end-off)
		}
		if e.Hole && !isZero(m.want[off:off+e.Len]) {
			return fmt.Errorf("extent of %d bytes at %d is a hole but has data", e.Len, off)
		}
		off += e.Len
	}
	return nil
}

func isZero(p []byte) bool { return len(bytes.TrimLeft(p, "\x00")) == 0 }

// concurrent: requests that do not overlap do not disturb each other.
func (c *conformer) concurrent(t *testing.T) {
	const workers, share = 4, conformArea / 4
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() { // ends after its rounds
			if err := c.work(byte(w), int64(w)*share, share); err != nil {
				t.Errorf("worker %d: %v", w, err)
			}
		})
	}
	wg.Wait()
}

func (c *conformer) work(id byte, off, n int64) error {
	got := make([]byte, n)
	for round := range byte(8) {
		want := pattern(int(n), id<<4|round+1)
		if err := c.dev.WriteAt(want, off, block.Flags(round&1)*block.FUA); err != nil {
			return err
		}
		clear(want[512:2048])
		if err := errors.Join(c.dev.Discard(off+512, 1536, 0), c.dev.Flush(), c.dev.ReadAt(got, off)); err != nil {
			return err
		}
		if err := sameSectors(got, want, off); err != nil {
			return err
		}
	}
	return nil
}

// submit: the requests of one call take effect in their order, and each is done exactly once.
func (c *conformer) submit(t *testing.T) {
	s := c.dev.(block.Submitter)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	done := func(err error) {
		mu.Lock()
		errs = append(errs, err)
		mu.Unlock()
		wg.Done() // panics when called too often
	}
	reqs := []*block.Request{
		{Op: block.OpWrite, Off: 0, Len: 8192, Data: pattern(8192, 1)},
		{Op: block.OpWrite, Off: 4096, Len: 4096, Data: pattern(4096, 2)},
		{Op: block.OpDiscard, Off: 2048, Len: 1024},
		{Op: block.OpWriteZeroes, Off: 4096, Len: 512},
		{Op: block.OpWrite, Off: 2560, Len: 512, Data: pattern(512, 3), Flags: block.FUA},
		{Op: block.OpFlush},
		{Op: block.OpWrite, Off: c.dev.Size(), Len: 512, Data: pattern(512, 4)},
	}
	for _, r := range reqs {
		r.Done = done
	}
	wg.Add(len(reqs))
	s.Submit(reqs)
	wg.Wait()
	if err := errors.Join(errs...); len(errs) != len(reqs) || !errors.Is(err, block.ErrRange) {
		t.Fatalf("%d requests, %d done, errors %v, want one ErrRange", len(reqs), len(errs), err)
	}
	want := append(pattern(4096, 1), pattern(4096, 2)...)
	clear(want[2048:2560])
	copy(want[2560:], pattern(512, 3))
	clear(want[4096:4608])
	c.wantContent(t, 0, want)
}
