package e2e

import (
	"context"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"mars/tests/nbdclient"
	"mars/tests/stamp"
)

// rawApp writes stamped sectors through NBD, with flushes, discards and zeroes in between.
type rawApp struct {
	s      *soak
	j      *stamp.Journal
	c      *nbdclient.Client
	cancel context.CancelFunc
	wg     sync.WaitGroup
	bytes  atomic.Int64
	failed atomic.Pointer[error]
	starts uint64
}

// rawPace is the least time between two requests of one writer: the journal of a round must stay short enough to be checked quickly.
const rawPace = 3 * time.Millisecond

func newRawApp(s *soak) *rawApp { return &rawApp{s: s, j: &stamp.Journal{}} }

func (a *rawApp) mark() mark     { return mark{a: uint64(a.j.Now())} }
func (a *rawApp) written() int64 { return a.bytes.Load() }

func (a *rawApp) err() error {
	if p := a.failed.Load(); p != nil {
		return *p
	}
	return nil
}

func (a *rawApp) begin(x *node, must mark, adopt bool) {
	a.s.t.Helper()
	img := x.checkDevice("raw", a.j, stamp.Time(must.a))
	if adopt {
		a.j.Adopt(img)
	}
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel, a.c = cancel, x.open("raw")
	a.failed.Store(nil)
	for i := range writersPerLoad {
		a.starts++
		rnd := rand.New(rand.NewPCG(a.s.seed, 100+a.starts))
		c := a.c
		a.wg.Go(func() { a.write(ctx, c, rnd, i) }) // ends with ctx or the first error; joined by join
	}
}

func (a *rawApp) write(ctx context.Context, c *nbdclient.Client, rnd *rand.Rand, i int) {
	tick := time.NewTicker(rawPace)
	defer tick.Stop()
	for ; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := a.request(c, rnd, i); err != nil {
			a.failed.CompareAndSwap(nil, &err)
			return
		}
	}
}

func (a *rawApp) request(c *nbdclient.Client, rnd *rand.Rand, i int) error {
	at := span{rnd.Int64N(c.Size()/stamp.SectorSize-maxWrite) * stamp.SectorSize, (1 + rnd.Int64N(maxWrite)) * stamp.SectorSize}
	if rnd.IntN(4) == 0 {
		at.off %= mib // a hot spot
	}
	a.bytes.Add(at.n)
	switch {
	case i%flushEvery == 0:
		return c.Flush()
	case i%50 == 0:
		return zero(a.j, at, c.WriteZeroes)
	case i%51 == 0:
		return zero(a.j, at, c.Trim)
	}
	if i%17 == 0 {
		return a.putDurable(c, at)
	}
	return put(c, a.j, at)
}

func (a *rawApp) putDurable(c *nbdclient.Client, at span) error {
	p := make([]byte, at.n)
	seq := a.j.Issue(at.off, at.n)
	stamp.Fill(p, at.off, seq)
	err := c.WriteDurable(at.off, p)
	if err == nil {
		a.j.Ack(seq)
	}
	return err
}

func (a *rawApp) end() {
	a.s.t.Helper()
	a.cancel()
	a.wg.Wait()
	if err := a.err(); err != nil {
		return // the caller reports it
	}
	if err := a.c.Flush(); err != nil {
		a.s.t.Fatalf("flush: %v", err)
	}
	if err := a.c.Close(); err != nil {
		a.s.t.Errorf("close the device: %v", err)
	}
}

func (a *rawApp) crash() {
	a.s.t.Helper()
	until(a.s.t, "the application of raw notices that its device is gone", func() bool { return a.err() != nil })
	a.abandon()
	a.failed.Store(nil)
	a.j.Crashed()
}

func (a *rawApp) abandon() {
	if a.c == nil {
		return
	}
	a.cancel()
	a.c.Abort() // a request may wait for ever
	a.wg.Wait()
}

func (a *rawApp) rest(v *soakVolume) {
	a.s.t.Helper()
	now := a.j.Now()
	for _, x := range v.members {
		x.checkDisk(v.name, a.j, now)
	}
	a.j.Adopt(v.primary.checkDevice(v.name, a.j, now)) // everybody has everything: the next round need not look at this again
}

func (a *rawApp) prefix(image string, must mark) {
	a.s.t.Helper()
	f, err := os.Open(image)
	if err != nil {
		a.s.t.Fatal(err)
	}
	defer f.Close()
	img, err := stamp.ReadImage(f, volumeSize)
	if err == nil {
		err = a.j.Check(img, stamp.Time(must.a))
	}
	if err != nil {
		a.s.t.Errorf("%s: %v", image, err)
	}
}
