package volume

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"mars/internal/block"
	"mars/internal/block/blocktest"
	"mars/internal/vfs/crashfs"
)

var errInjected = fmt.Errorf("injected: %w", syscall.EROFS)

// TestFailAnywhere: one operation of the file system or the disk fails, every one in turn. The error surfaces, nothing acknowledged is lost,
// and a new process works.
func TestFailAnywhere(t *testing.T) {
	for _, seed := range seedsOf(t, 1) {
		for _, drop := range []bool{false, true} {
			for _, part := range []string{"file system", "disk"} {
				failAnywhere(t, seed, part, drop)
			}
		}
	}
}

func failAnywhere(t *testing.T, seed uint64, part string, drop bool) {
	for k := 0; ; k++ {
		a := newApp(seed)
		if part == "disk" {
			a.disk.Inject(blocktest.Fault{Skip: k, Err: errInjected, Drop: drop,
				Match: func(o blocktest.Op) bool { return !drop || o.Kind == blocktest.OpFlush }})
		} else {
			a.fs.Inject(crashfs.Fault{Skip: k, Err: errInjected, Drop: drop,
				Match: func(o crashfs.Op) bool { return !drop || o.Kind == crashfs.OpSync || o.Kind == crashfs.OpSyncData }})
		}
		err := a.life(60)
		if a.fs.Fired()+a.disk.Fired() == 0 {
			return
		}
		fail := func(err error) {
			t.Helper()
			t.Fatalf("operation %d of the %s fails (drop %v): %v\n%s", k, part, drop, err, rerun(t, seed))
		}
		if err != nil && !errors.Is(err, errInjected) {
			fail(err)
		}
		a.fs.ClearFaults()
		a.disk.ClearFaults()
		o := []outcome{killed, powerLosingAll, powerRandom}[k%3]
		if drop && o == killed {
			o = powerLosingAll
		}
		a.end(o, a.rng)
		err = a.recoverAndCheck(o)
		if errors.Is(err, ErrNoReplica) && a.acked == 0 {
			continue
		}
		if err != nil {
			fail(fmt.Errorf("%v: %w", o, err))
		}
		if err := a.carryOn(); err != nil {
			fail(err)
		}
	}
}

// TestApplyIsRetried: what the disk refuses today it may take tomorrow; a flush that failed has lost data, so the whole window is written again.
func TestApplyIsRetried(t *testing.T) {
	for _, kind := range []blocktest.OpKind{blocktest.OpWrite, blocktest.OpFlush} {
		a := newPrimary(t, 3)
		for range 10 {
			must(t, a.modify())
		}
		must(t, a.flush())
		a.disk.Inject(blocktest.Fault{Match: func(o blocktest.Op) bool { return o.Kind == kind }, Err: syscall.EIO, Drop: true})
		_, err := a.v.ApplyStep()
		wantErr(t, "apply", err, syscall.EIO)
		wantErr(t, "status", a.v.Status().ApplyErr, syscall.EIO)
		must(t, a.check())
		must(t, a.drain())
		wantErr(t, "status", a.v.Status().ApplyErr, nil)
		a.end(powerLosingAll, nil)
		img, err := imageOf(a.disk, testSize)
		must(t, errors.Join(err, img.same(a.image(len(a.log))[:len(img)])))
	}
}

// TestReadErrors surface, for exactly the reads that they concern.
func TestReadErrors(t *testing.T) {
	a := newPrimary(t, 3)
	must(t, a.do(&block.Request{Op: block.OpDiscard, Len: testSize}))
	must(t, a.drain())
	a.disk.Inject(blocktest.Fault{Match: blocktest.Within(blocktest.OpRead, 0, 512), Err: syscall.EIO, Sticky: true})
	p := make([]byte, 512)
	wantErr(t, "bad sector", a.v.ReadAt(p, 0), syscall.EIO)
	wantErr(t, "its neighbour", a.v.ReadAt(p, 512), nil)
	must(t, a.do(&block.Request{Op: block.OpWrite, Len: 512, Data: p}))
	wantErr(t, "rewritten", a.v.ReadAt(p, 0), nil)
}

// TestFullLog: writers wait for space as long as they are told, then fail cleanly; nothing that was acknowledged is lost; they go on by
// themselves when there is space again.
func TestFullLog(t *testing.T) {
	var pauses atomic.Int64
	var onPause func()
	a := newPrimary(t, 3, func(c *Config) {
		c.StallTimeout = time.Second
		c.Pause = func(time.Duration) {
			if pauses.Add(1); onPause != nil {
				onPause()
			}
		}
	})
	// The state file needs room as well, so the log leaves some.
	a.cfg.Reserve = func(n int64) error {
		if s, err := a.fs.Space("r"); err != nil || s.Free < n+16<<10 {
			return errors.Join(err, syscall.ENOSPC)
		}
		return nil
	}
	a.fs.SetQuota(80 << 10)
	must(t, a.reopen())
	write := func() error {
		p := make([]byte, 2048)
		fill(p, len(a.log)+1, 1024)
		if err := a.do(&block.Request{Op: block.OpWrite, Off: 1024, Len: 2048, Data: p}); err != nil {
			return err
		}
		a.log = append(a.log, change{1024, 2048, false})
		return nil
	}
	var err error
	for err == nil {
		err = write()
	}
	wantErr(t, "full", err, block.ErrNoSpace)
	wantErr(t, "full", err, syscall.ENOSPC)
	if n := pauses.Load(); n < 10 || n > 30 || !a.v.Status().LogFull {
		t.Errorf("paused %d times in a second, full: %v", n, a.v.Status().LogFull)
	}
	pauses.Store(0)
	wantErr(t, "still full", write(), block.ErrNoSpace)
	if pauses.Load() != 0 {
		t.Error("waited again although nothing has changed")
	}
	must(t, errors.Join(a.flush(), a.check(), a.drain(), a.check()))
	free := func() {
		_, err := a.v.Log().DeleteBelow(a.v.Checkpointed())
		must(t, err)
	}
	free()
	must(t, write())
	if a.v.Status().LogFull {
		t.Error("still called full")
	}
	onPause = func() { must(t, a.drain()); free() }
	for range 200 {
		must(t, write())
	}
	if pauses.Load() == 0 {
		t.Error("never had to wait")
	}
	onPause = nil
	must(t, errors.Join(a.check(), a.drain(), a.check(), a.v.Close()))
}

// TestFlushBesideAFailedWrite succeeds: it is about what had completed before.
func TestFlushBesideAFailedWrite(t *testing.T) {
	a := newPrimary(t, 3, func(c *Config) { c.SegmentSize = 4096 })
	must(t, a.modify())
	a.fs.SetQuota(0)
	var errs [4]error
	reqs := []*block.Request{
		{Op: block.OpWrite, Len: 4096, Data: make([]byte, 4096)}, {Op: block.OpFlush}, {Op: block.OpDiscard, Len: 0}, {Op: 77, Len: 512},
	}
	for i, r := range reqs {
		r.Done = func(err error) { errs[i] = err }
	}
	a.v.Submit(reqs)
	a.v.SyncStep()
	if !errors.Is(errs[0], block.ErrNoSpace) || errs[1] != nil || errs[2] != nil || errs[3] == nil {
		t.Errorf("write %v, flush %v, empty %v, unknown %v", errs[0], errs[1], errs[2], errs[3])
	}
}

// TestThrottle: unapplied log is bounded; writers wait at the bound, go on when something is applied, and are told when nothing can be.
func TestThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 16 << 10
		var slowed time.Duration
		a := newPrimary(t, 4, func(c *Config) {
			c.WritebackLimit = limit
			c.Pause = func(d time.Duration) { slowed += d }
		})
		stop := make(chan struct{})
		var acks atomic.Int64
		var last error
		go func() { // ends when a write fails
			for {
				if last = a.v.WriteAt(make([]byte, 1024), 0, 0); last != nil {
					close(stop)
					return
				}
				acks.Add(1)
			}
		}()
		for range 5 {
			synctest.Wait()
			if n := a.v.Unapplied(); n < limit || n > limit+2048 {
				t.Fatalf("%d bytes unapplied, limit %d", n, limit)
			}
			before := acks.Load()
			_, err := a.v.ApplyStep()
			must(t, err)
			synctest.Wait()
			if acks.Load() == before {
				t.Fatal("the writer was not released")
			}
		}
		if slowed == 0 {
			t.Error("was never slowed down before the bound")
		}
		a.disk.Vanish()
		_, err := a.v.ApplyStep()
		wantErr(t, "apply", err, blocktest.ErrVanished)
		<-stop
		wantErr(t, "write", last, blocktest.ErrVanished)
	})
}

// TestCloseUnderLoad: Close ends everybody who waits, exactly once each, wherever he waits.
func TestCloseUnderLoad(t *testing.T) {
	for name, end := range map[string]func(*Volume) error{
		"close":      func(v *Volume) error { return v.Close() },
		"deactivate": func(v *Volume) error { return errors.Join(v.Deactivate("b"), v.Close()) },
		"suspend":    func(v *Volume) error { return errors.Join(v.Suspend(), v.Close()) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newPrimary(t, 4, func(c *Config) { c.WritebackLimit = 8 << 10 })
				var wg sync.WaitGroup
				for i := range 8 {
					wg.Go(func() { // ends when a request fails
						for {
							var n atomic.Int64
							done := make(chan error, 1)
							r := &block.Request{Op: block.OpWrite, Len: 512, Data: make([]byte, 512), Flags: block.Flags(i & 1)}
							r.Done = func(err error) {
								if n.Add(1) > 1 {
									t.Error("done twice")
								}
								done <- err
							}
							a.v.Submit([]*block.Request{r})
							if err := <-done; err != nil {
								if !errors.Is(err, block.ErrClosed) && !errors.Is(err, ErrNotPrimary) {
									t.Error(err)
								}
								return
							}
						}
					})
				}
				synctest.Wait() // all wait: for writeback or for a flush
				must(t, end(a.v))
				wg.Wait()
				v, err := Open(a.cfg)
				must(t, err)
				must(t, v.Close())
			})
		})
	}
}

// TestWriteThrough: no write completes before it is durable.
func TestWriteThrough(t *testing.T) {
	a := newPrimary(t, 4, func(c *Config) { c.WriteThrough = true })
	done := make(chan error, 1)
	p := make([]byte, 512)
	fill(p, 1, 0)
	a.v.Submit([]*block.Request{{Op: block.OpWrite, Len: 512, Data: p, Done: func(err error) { done <- err }}})
	select {
	case <-done:
		t.Fatal("completed without a sync")
	case <-a.v.Waiters():
	}
	a.v.SyncStep()
	must(t, <-done)
	a.log = append(a.log, change{0, 512, false})
	a.acked, a.durable = 1, 1
	a.end(powerLosingAll, nil)
	must(t, a.recoverAndCheck(powerLosingAll))
}

// TestLogFailure: when the log cannot be synced nothing is acknowledged as durable any more.
func TestLogFailure(t *testing.T) {
	a := newPrimary(t, 4)
	must(t, errors.Join(a.modify(), a.flush()))
	a.fs.Inject(crashfs.Fault{Match: func(o crashfs.Op) bool { return o.Kind == crashfs.OpSyncData }, Err: syscall.EIO, Drop: true})
	r := &block.Request{Op: block.OpWrite, Len: 512, Data: make([]byte, 512)}
	must(t, a.do(r))
	for range 3 {
		wantErr(t, "flush", a.do(&block.Request{Op: block.OpFlush}), syscall.EIO)
	}
	wantErr(t, "write", a.do(r), syscall.EIO)
	_, err := a.v.ApplyStep()
	wantErr(t, "apply", err, syscall.EIO)
	a.log = append(a.log, change{0, 512, true})
	a.end(powerLosingAll, nil)
	must(t, a.recoverAndCheck(powerLosingAll))
}

// TestStress: everything at once, for the race detector. Each writer owns a part of the volume and checks what it reads.
func TestStress(t *testing.T) {
	a := newPrimary(t, 4, func(c *Config) { c.WritebackLimit = 64 << 10 })
	stop := pump(t, a.v)
	var wg sync.WaitGroup
	const writers, part = 4, testSize / 4
	final := make([][]byte, writers)
	for w := range writers {
		wg.Go(func() { final[w] = stressWriter(t, a.v, w, part) })
	}
	wg.Go(func() { // ends after its rounds
		for range 200 {
			a.v.Status()
			a.v.ReadAt(make([]byte, testSize), 0)
			a.v.Extents(0, testSize, 5)
		}
	})
	wg.Wait()
	stop()
	must(t, a.drain())
	for w, want := range final {
		got := make([]byte, part)
		must(t, a.disk.ReadAt(got, int64(w*part)))
		if string(got) != string(want) {
			t.Errorf("part %d differs on the disk", w)
		}
	}
	must(t, a.v.Close())
}

func stressWriter(t *testing.T, v *Volume, w, part int) []byte {
	rng := rand.New(rand.NewPCG(uint64(w), 1))
	want, base := make([]byte, part), int64(w*part)
	for i := range 150 {
		n := (1 + rng.IntN(4)) * sector
		off := rng.IntN((part-n)/sector+1) * sector
		var err error
		switch rng.IntN(6) {
		case 0:
			clear(want[off : off+n])
			err = v.Discard(base+int64(off), int64(n), 0)
		case 1:
			err = v.Flush()
		default:
			fill(want[off:off+n], i+1, base+int64(off))
			err = v.WriteAt(want[off:off+n], base+int64(off), block.Flags(rng.IntN(8)/7))
		}
		got := make([]byte, part)
		if err = errors.Join(err, v.ReadAt(got, base)); err != nil || string(got) != string(want) {
			t.Errorf("writer %d, operation %d: error %v, equal %v", w, i, err, string(got) == string(want))
			break
		}
	}
	return want
}

// TestRoleChangesUnderLoad: tenures end and begin while others write. What was acknowledged is there; the log stays whole.
func TestRoleChangesUnderLoad(t *testing.T) {
	a := newPrimary(t, 4)
	stop := pump(t, a.v)
	var wg sync.WaitGroup
	quit := make(chan struct{})
	last := make([]int, 4)
	for w := range last {
		wg.Go(func() { // ends when quit is closed
			p := make([]byte, 512)
			for seq := 1; ; seq++ {
				select {
				case <-quit:
					return
				default:
				}
				fill(p, seq, int64(w*512))
				err := a.v.WriteAt(p, int64(w*512), 0)
				if err != nil && !errors.Is(err, ErrNotPrimary) {
					t.Error(err)
					return
				}
				if err == nil {
					last[w] = seq
				}
			}
		})
	}
	for i := range 10 {
		must(t, a.v.WriteAt(make([]byte, 512), 8192, block.FUA))
		if i%2 == 0 {
			must(t, a.v.Deactivate("a"))
		} else {
			must(t, a.v.Suspend())
		}
		must(t, a.activate())
	}
	close(quit)
	wg.Wait()
	stop()
	must(t, errors.Join(a.drain(), a.v.Close()))
	v, err := Open(a.cfg)
	must(t, err)
	img, err := imageOf(v, testSize)
	must(t, err)
	for w, seq := range last {
		if img[w] < seq {
			t.Errorf("writer %d: write %d was acknowledged, found %d", w, seq, img[w])
		}
	}
	must(t, v.Close())
}
