package volume

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"mars/internal/block"
	"mars/internal/block/blocktest"
	"mars/internal/history"
	"mars/internal/vfs/crashfs"
)

const (
	sector   = block.SectorSize
	testSize = 64 * sector // of a volume
	testDisk = 96 * sector // its disk is larger, so that it can grow
)

// seedsOf returns the seeds to run: MARS_TEST_SEED alone, or n from 0 on, MARS_TEST_MORE times as many.
func seedsOf(t *testing.T, n uint64) []uint64 {
	t.Helper()
	if s := os.Getenv("MARS_TEST_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return []uint64{seed}
	}
	if more, err := strconv.ParseUint(os.Getenv("MARS_TEST_MORE"), 10, 64); err == nil {
		n *= more
	}
	var list []uint64
	for seed := range n {
		list = append(list, seed)
	}
	return list
}

// rerun is the command that repeats a failure.
func rerun(t *testing.T, seed uint64) string {
	return fmt.Sprintf("MARS_TEST_SEED=%d go test -run '^%s$' ./internal/volume", seed, t.Name())
}

// machine is one node: what survives the process, and the process.
type machine struct {
	fs    *crashfs.FS
	disk  *blocktest.Disk
	cfg   Config
	v     *Volume
	stamp *int64
	lie   liar
}

func newMachine(change ...func(*Config)) *machine {
	m := &machine{fs: crashfs.New(), disk: blocktest.NewDisk(testDisk), stamp: new(int64)}
	m.cfg = Config{Dir: "r", Resource: [16]byte{1}, SegmentSize: 12 << 10, WindowSize: 4 << 10, WritebackLimit: 1 << 20,
		Stamp: func() int64 { *m.stamp++; return *m.stamp }}
	for _, c := range change {
		c(&m.cfg)
	}
	m.wire()
	return m
}

func (m *machine) wire() { m.cfg.FS, m.cfg.Disk = m.lie.fs(m.fs), m.lie.disk(m.disk) }

func (m *machine) clone() *machine {
	c := &machine{fs: m.fs.Clone(), disk: m.disk.Clone(), cfg: m.cfg, stamp: new(int64), lie: m.lie}
	*c.stamp = *m.stamp
	c.cfg.Stamp = func() int64 { *c.stamp++; return *c.stamp }
	c.wire()
	return c
}

// outcome is a way for the process to end.
type outcome int

const (
	killed outcome = iota
	powerLosingAll
	powerKeepingAll
	powerRandom
	outcomes
)

func (o outcome) String() string {
	return [...]string{"kill", "power cut losing all", "power cut keeping all", "power cut"}[o]
}

// end ends the process; what is left is the same machine with another file system.
func (m *machine) end(o outcome, rng *rand.Rand) {
	switch o {
	case killed:
		m.fs, m.disk = m.fs.Kill(), m.disk.Kill()
	case powerLosingAll:
		m.fs, m.disk = m.fs.CrashLosingAll(), m.disk.CrashLosingAll()
	case powerKeepingAll:
		m.fs, m.disk = m.fs.CrashKeepingAll(), m.disk.CrashKeepingAll()
	default:
		m.fs, m.disk = m.fs.Crash(rng), m.disk.Crash(rng)
	}
	m.v = nil
	m.wire()
}

// stopAt lets the process stop at the k-th operation from now of file system and disk together.
func (m *machine) stopAt(k int) {
	m.fs.StopAt(k)
	m.disk.OnOp(func(blocktest.Op) {
		if m.fs.Fired() > 0 || m.disk.Fired() > 0 {
			m.disk.StopAt(0)
			return
		}
		// A disk operation counts as one of the file system, which gets it as a question without effect.
		if _, err := m.fs.Space("."); errors.Is(err, crashfs.ErrGone) {
			m.disk.StopAt(0)
		}
	})
}

func (m *machine) stopped() bool { return m.fs.Fired() > 0 }

// do submits a request and completes what waits for durability.
func (m *machine) do(r *block.Request) error {
	done := make(chan error, 1)
	r.Done = func(err error) { done <- err }
	m.v.Submit([]*block.Request{r})
	select {
	case err := <-done:
		return err
	default:
	}
	m.v.SyncStep()
	return <-done
}

// drain applies everything.
func (m *machine) drain() error {
	for {
		more, err := m.v.ApplyStep()
		if err != nil || !more {
			return err
		}
	}
}

func timeline(id history.TimelineID) history.Timeline {
	return history.Timeline{ID: id, Stamp: int64(id)}
}

// fill writes the identity of a write into every sector of p.
func fill(p []byte, seq int, off int64) {
	for i := int64(0); i < int64(len(p)); i += 16 {
		binary.LittleEndian.PutUint64(p[i:], uint64(seq))
		binary.LittleEndian.PutUint64(p[i+8:], uint64((off+i)/sector*sector))
	}
}

// image is which write each sector of a volume has; 0 are zeroes.
type image []int

// imageOf reads a device. A sector that is torn, or at the wrong place, is an error.
func imageOf(dev interface {
	ReadAt(p []byte, off int64) error
}, size int64) (image, error) {
	buf := make([]byte, size)
	if err := dev.ReadAt(buf, 0); err != nil {
		return nil, err
	}
	img := make(image, size/sector)
	for i := range img {
		s := buf[i*sector : (i+1)*sector]
		seq := int(binary.LittleEndian.Uint64(s))
		want := make([]byte, sector)
		if seq != 0 {
			fill(want, seq, int64(i*sector))
		}
		if string(want) != string(s) {
			return nil, fmt.Errorf("sector %d is no whole write: it begins with %x", i, s[:32])
		}
		img[i] = seq
	}
	return img, nil
}

func (img image) same(o image) error {
	for i := range img {
		if img[i] != o[i] {
			return fmt.Errorf("sector %d is of write %d, want %d", i, img[i], o[i])
		}
	}
	return nil
}

// change is one modification, in log order. Its sequence number is its index in the model plus one.
type change struct {
	off, len int64
	zero     bool
}

// model is what the application did.
type model struct {
	log     []change
	acked   int // how many of them were acknowledged: all before
	durable int // how many of them were acknowledged before an acknowledged flush began
}

func (m *model) apply(img image, k int) {
	c := m.log[k]
	for s := c.off / sector; s < (c.off+c.len)/sector; s++ {
		img[s] = k + 1
		if c.zero {
			img[s] = 0
		}
	}
}

func (m *model) image(k int) image {
	img := make(image, testDisk/sector)
	for i := range k {
		m.apply(img, i)
	}
	return img
}

// prefix returns how long the prefix of the log is that gives img, at least min; an error if there is none.
func (m *model) prefix(img image, min int) (int, error) {
	at := m.image(min)
	for k := min; ; k++ {
		err := img.same(at[:len(img)])
		if err == nil {
			return k, nil
		}
		if k == len(m.log) {
			return 0, fmt.Errorf("the image is not the state after any of the writes %d to %d; compared with the last: %w", min, k, err)
		}
		m.apply(at, k)
	}
}

// app is an application that knows what it did.
type app struct {
	*machine
	model
	rng *rand.Rand
	tl  history.TimelineID
}

func newApp(seed uint64, change ...func(*Config)) *app {
	return &app{machine: newMachine(change...), rng: rand.New(rand.NewPCG(seed, 7))}
}

func (a *app) create() error {
	v, err := Create(a.cfg, testSize)
	if err != nil {
		return err
	}
	a.v = v
	return a.activate()
}

func (a *app) activate() error {
	a.tl++
	return a.v.Activate("a", timeline(a.tl))
}

func (a *app) rangeIn(max int64) (off, n int64) {
	n = 1 + a.rng.Int64N(max)
	off = a.rng.Int64N(a.v.Size()/sector - n + 1)
	return off * sector, n * sector
}

// modify does one random modification. It is in the model from the moment it is tried.
func (a *app) modify() error {
	off, n := a.rangeIn(6)
	r := &block.Request{Op: block.OpWrite, Off: off, Len: n}
	zero := a.rng.IntN(5) == 0
	switch {
	case !zero:
		r.Data = make([]byte, n)
		fill(r.Data, len(a.log)+1, off)
	case a.rng.IntN(2) == 0:
		r.Op = block.OpDiscard
	default:
		r.Op, r.Flags = block.OpWriteZeroes, block.NoHole
	}
	if a.rng.IntN(8) == 0 {
		r.Flags |= block.FUA
	}
	a.log = append(a.log, change{off, n, zero})
	if err := a.do(r); err != nil {
		return err
	}
	a.acked = len(a.log)
	if r.Flags&block.FUA != 0 {
		// More than the contract demands, but what a log does: it is durable in order.
		a.durable = a.acked
	}
	return nil
}

func (a *app) flush() error {
	n := a.acked
	if err := a.do(&block.Request{Op: block.OpFlush}); err != nil {
		return err
	}
	a.durable = n
	return nil
}

// check compares what the device shows with the model.
func (a *app) check() error {
	img, err := imageOf(a.v, a.v.Size())
	if err != nil {
		return err
	}
	return img.same(a.image(len(a.log))[:len(img)])
}

// recoverAndCheck opens what a crash left and checks the invariants. lost: none of what was acknowledged may be missing.
func (a *app) recoverAndCheck(o outcome) error {
	v, err := Open(a.cfg)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	a.v = v
	s := v.Status()
	if s.Defect != nil {
		return fmt.Errorf("a crash is no damage: %w", s.Defect)
	}
	if !s.Consistent {
		return errors.New("inconsistent after a crash")
	}
	before, err := imageOf(a.disk, v.Size())
	if err != nil {
		return fmt.Errorf("disk before replay: %w", err)
	}
	if err := a.drain(); err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	img, err := imageOf(a.disk, v.Size())
	if err != nil {
		return fmt.Errorf("disk after replay: %w", err)
	}
	least := a.durable
	if o == killed {
		least = a.acked
	}
	k, err := a.prefix(img, least)
	if err != nil {
		return err
	}
	for i, seq := range before {
		if seq > k {
			return fmt.Errorf("write-ahead: sector %d of the disk had write %d, but the log only %d", i, seq, k)
		}
	}
	a.log = a.log[:k]
	a.acked, a.durable = k, k
	return nil
}

// carryOn uses the volume after a recovery as if nothing had been.
func (a *app) carryOn() error {
	if err := a.activate(); err != nil {
		return fmt.Errorf("activate: %w", err)
	}
	for range 3 {
		if err := a.modify(); err != nil {
			return err
		}
	}
	if err := errors.Join(a.flush(), a.check(), a.drain(), a.check()); err != nil {
		return err
	}
	return a.v.Close()
}
