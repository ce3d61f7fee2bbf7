package volume

import (
	"bytes"
	"errors"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"mars/internal/block"
	"mars/internal/block/blocktest"
	"mars/internal/history"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if want == errAny && err != nil {
		return
	}
	if !errors.Is(err, want) {
		t.Fatalf("%s: %v, want %v", what, err, want)
	}
}

// newPrimary returns a created and activated volume.
func newPrimary(t testing.TB, seed uint64, change ...func(*Config)) *app {
	t.Helper()
	a := newApp(seed, change...)
	must(t, a.create())
	return a
}

// TestConform: it is a block device.
func TestConform(t *testing.T) {
	m := newMachine(func(c *Config) { c.SegmentSize, c.WindowSize, c.WritebackLimit = 1<<20, 1<<20, 8<<20 })
	m.disk = blocktest.NewDisk(8 << 20)
	m.wire()
	v, err := Create(m.cfg, 8<<20)
	must(t, err)
	must(t, v.Activate("a", timeline(1)))
	stop := pump(t, v)
	blocktest.Conform(t, v)
	stop()
	must(t, v.Close())
}

// pump runs what an owner runs beside a volume, until stop is called.
func pump(t testing.TB, v *Volume) (stop func()) {
	quit, ended := make(chan struct{}), make(chan struct{}, 2)
	go func() { // ends when quit is closed
		defer func() { ended <- struct{}{} }()
		for {
			select {
			case <-v.Waiters():
				v.SyncStep()
			case <-quit:
				v.SyncStep()
				return
			}
		}
	}()
	go func() { // ends when quit is closed
		defer func() { ended <- struct{}{} }()
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-v.Work():
			case <-tick.C:
			case <-quit:
				return
			}
			if _, err := v.ApplyStep(); err != nil {
				t.Errorf("apply: %v", err)
				return
			}
			if _, err := v.Log().DeleteBelow(v.Checkpointed()); err != nil {
				t.Errorf("delete: %v", err)
			}
		}
	}()
	return func() {
		close(quit)
		<-ended
		<-ended
	}
}

// TestTokenTravelsOnce: only who opened a timeline ends it, and only once.
func TestTokenTravelsOnce(t *testing.T) {
	a := newPrimary(t, 1)
	must(t, a.modify())
	must(t, a.v.Deactivate("b"))
	must(t, a.v.Deactivate("b")) // again, as after a lost answer
	end := a.v.Log().End()
	wantErr(t, "passed on twice", a.v.Deactivate("c"), ErrNoToken)
	wantErr(t, "activate without the token", a.v.Activate("a", timeline(9)), ErrNoToken)
	wantErr(t, "pass what is not here", a.v.PassToken("a", "c", timeline(9)), ErrNoToken)
	wantErr(t, "write", a.modify(), ErrNotPrimary)
	if a.v.Log().End() != end || a.v.Log().Successor() != "b" {
		t.Errorf("log at %d, was %d; token at %s", a.v.Log().End(), end, a.v.Log().Successor())
	}
	must(t, a.v.Activate("b", timeline(10)))
	must(t, a.v.Close())
	v, err := Open(a.cfg)
	must(t, err)
	wantErr(t, "end a timeline of an earlier process", v.Deactivate("c"), ErrNotPrimary)
	wantErr(t, "pass to nobody", v.PassToken("b", "", timeline(11)), errAny)
	must(t, v.PassToken("b", "c", timeline(11)))
	if h := v.Status().Path; h.Holder() != "c" {
		t.Errorf("token at %s", h.Holder())
	}
}

// errAny matches every error.
var errAny = anyError{}

type anyError struct{}

func (anyError) Error() string { return "any error" }

// TestLateWriter: a request that was admitted while the role was here and queued when it was gone is refused; were it written, it would lie
// behind the end record.
func TestLateWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		a := newPrimary(t, 1, func(c *Config) {
			c.WritebackLimit = 8 << 10
			c.Pause = func(time.Duration) { <-gate } // between admission and queue
		})
		for a.v.Unapplied() <= 6<<10 { // from three quarters of the limit on writers are paused
			r := &block.Request{Op: block.OpWrite, Len: 512, Data: make([]byte, 512), Done: func(error) {}}
			a.v.Submit([]*block.Request{r})
		}
		late := make(chan error, 1)
		go func() { late <- a.v.WriteAt(make([]byte, 512), 0, 0) }() // ends when the gate opens
		synctest.Wait()
		must(t, a.v.Deactivate("b"))
		end := a.v.Log().End()
		close(gate)
		wantErr(t, "late write", <-late, ErrNotPrimary)
		if a.v.Log().End() != end {
			t.Errorf("the log went on behind its end record, from %d to %d", end, a.v.Log().End())
		}
	})
}

// TestIndexOutlivesRole: what was written but not applied stays readable and gets applied after the role has ended, failed to begin, or changed.
func TestIndexOutlivesRole(t *testing.T) {
	for name, turn := range map[string]func(*testing.T, *app){
		"deactivated": func(t *testing.T, a *app) { must(t, a.v.Deactivate("b")) },
		"suspended":   func(t *testing.T, a *app) { must(t, a.v.Suspend()) },
		"half applied": func(t *testing.T, a *app) {
			_, err := a.v.ApplyStep()
			must(t, errors.Join(err, a.modify(), a.v.Deactivate("b")))
		},
		"no space to begin again": func(t *testing.T, a *app) {
			must(t, a.v.Suspend())
			a.fs.SetQuota(0)
			wantErr(t, "activate", a.v.Activate("a", timeline(99)), syscall.ENOSPC)
			a.fs.SetQuota(1 << 40)
		},
		"no space after a restart": func(t *testing.T, a *app) {
			must(t, a.v.Close())
			v, err := Open(a.cfg)
			must(t, err)
			a.v = v
			a.fs.SetQuota(0)
			wantErr(t, "activate", a.v.Activate("a", timeline(99)), syscall.ENOSPC)
			a.fs.SetQuota(1 << 40)
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newPrimary(t, 5)
			for range 30 {
				must(t, a.modify())
			}
			turn(t, a)
			must(t, errors.Join(a.check(), a.drain(), a.check()))
			if n := a.v.Unapplied(); n != 0 {
				t.Fatalf("%d bytes stay unapplied", n)
			}
			img, err := imageOf(a.disk, testSize)
			must(t, errors.Join(err, img.same(a.image(len(a.log))[:len(img)])))
		})
	}
}

// TestReadsOfWhatIsDeleted: a frozen index may refer to log that is applied and deleted; reads find it on the disk, also when the rest of the
// window cannot be applied.
func TestReadsOfWhatIsDeleted(t *testing.T) {
	a := newPrimary(t, 6)
	for range 60 {
		must(t, a.modify())
	}
	for range 3 {
		_, err := a.v.ApplyStep()
		must(t, err)
	}
	a.disk.Inject(blocktest.Fault{Match: blocktest.Within(blocktest.OpWrite, 0, testDisk), Err: syscall.EIO, Sticky: true})
	a.disk.Inject(blocktest.Fault{Match: blocktest.Within(blocktest.OpDiscard, 0, testDisk), Err: syscall.EIO, Sticky: true})
	a.disk.Inject(blocktest.Fault{Match: blocktest.Within(blocktest.OpWriteZeroes, 0, testDisk), Err: syscall.EIO, Sticky: true})
	wantErr(t, "apply", a.drain(), syscall.EIO)
	freed, err := a.v.Log().DeleteBelow(a.v.Checkpointed())
	if err != nil || freed == 0 {
		t.Fatalf("nothing was deleted: %v", err)
	}
	must(t, a.check())
	// More is deleted than may be: an error, not a wait for what will never come.
	a.v.Log().Rotate()
	must(t, errors.Join(a.modify(), a.flush()))
	_, err = a.v.Log().DeleteBelow(a.v.Log().End())
	must(t, err)
	if err := a.check(); err == nil {
		t.Error("read what is nowhere")
	}
}

// TestResizes: two in flight do not undo each other, and the new room reads as zeroes everywhere.
func TestResizes(t *testing.T) {
	a := newPrimary(t, 1)
	must(t, a.disk.WriteAt(make([]byte, 512), testSize, 0))
	junk := make([]byte, testDisk-testSize)
	fill(junk, 77, testSize)
	must(t, a.disk.WriteAt(junk, testSize, 0))
	p := make([]byte, sector)
	fill(p, 1, testSize)
	a.log = append(a.log, change{testSize, sector, false})
	var errs [4]error
	reqs := []*block.Request{
		{Op: opResize, Off: testSize, Len: testSize + 8*sector},
		{Op: opResize, Off: testSize, Len: testSize + 4*sector},
		{Op: block.OpWrite, Off: testSize, Len: sector, Data: p},
		{Op: opResize, Off: testSize, Len: testSize + 16*sector}, // asked for before the first one was done
	}
	for i, r := range reqs {
		r.Done = func(err error) { errs[i] = err }
	}
	a.v.Submit(reqs)
	a.v.SyncStep()
	if errs[0] != nil || errs[1] == nil || errs[2] != nil || errs[3] != nil || a.v.Size() != testSize+16*sector {
		t.Fatalf("%v, size %d", errs, a.v.Size())
	}
	must(t, errors.Join(a.check(), a.drain(), a.check(), a.v.Close()))
	v, err := Open(a.cfg)
	must(t, err)
	a.v = v
	must(t, a.check())
}

// TestClosed: everything after Close says so, and Close can be repeated.
func TestClosed(t *testing.T) {
	a := newPrimary(t, 1)
	flushed := make(chan error, 1)
	a.v.Submit([]*block.Request{{Op: block.OpFlush, Done: func(err error) { flushed <- err }}})
	must(t, errors.Join(a.v.Close(), a.v.Close()))
	wantErr(t, "waiting flush", <-flushed, block.ErrClosed)
	must(t, Wipe(a.cfg))
	for what, err := range map[string]error{
		"write": a.v.WriteAt(make([]byte, 512), 0, 0), "flush": a.v.Flush(), "ingest": a.v.Ingest([]byte{1}), "heal": a.v.Heal(),
		"activate": a.v.Activate("a", timeline(9)), "end copy": a.v.EndCopy(history.Position{}), "drop": a.v.DropTail(history.Position{}),
		"apply": func() error { _, err := a.v.ApplyStep(); return err }(),
		"copy":  func() error { _, err := a.v.StartCopy(512); return err }(),
	} {
		wantErr(t, what, err, block.ErrClosed)
	}
	if _, err := Open(a.cfg); !errors.Is(err, ErrNoReplica) {
		t.Errorf("something came back after Wipe: %v", err)
	}
}

// TestSteps is the order in which a window is applied.
func TestSteps(t *testing.T) {
	a := newPrimary(t, 1)
	a.v.Submit([]*block.Request{{Op: block.OpWrite, Len: 512, Data: make([]byte, 512), Done: func(err error) { must(t, err) }}})
	var order []string
	a.fs.StartTrace()
	seen := 0
	a.disk.OnOp(func(o blocktest.Op) {
		ops := a.fs.Trace()
		order = append(order, ops[seen:]...)
		seen = len(ops)
		order = append(order, "disk "+o.Kind.String())
	})
	_, err := a.v.ApplyStep()
	must(t, err)
	want := []string{
		"syncdata: r/log/seg-0000000000000000-0000000000000000",
		"read: r/log/seg-0000000000000000-0000000000000000",
		"create: r/state.json.tmp", "write: r/state.json.tmp", "sync: r/state.json.tmp", "close: r/state.json.tmp",
		"rename: r/state.json.tmp -> r/state.json", "syncdir: r",
		"read: r/log/seg-0000000000000000-0000000000000000",
		"disk write", "disk flush",
	}
	if len(order) != len(want) {
		t.Fatalf("%q\nwant %q", order, want)
	}
	for i := range want {
		if order[i] != want[i] {
			t.Errorf("step %d is %q, want %q", i, order[i], want[i])
		}
	}
	if s := a.fs.Trace()[seen:]; len(s) != 0 {
		t.Errorf("after the flush: %q", s)
	}
}

// TestLastDataIsExact: a checkpoint behind records that change nothing does not count them as data, else an empty tail would look like a split
// brain after a restart.
func TestLastDataIsExact(t *testing.T) {
	a := newPrimary(t, 1, func(c *Config) { c.WindowSize = 1 })
	must(t, a.modify())
	data := a.v.Log().End()
	must(t, errors.Join(a.v.Deactivate("a"), a.activate()))
	before := a.v.Log().End()
	must(t, a.modify())
	for a.v.Status().Applied.LSN < before {
		if got := a.v.st.Applied.LastData; got > data {
			t.Fatalf("applied up to %d, data up to %d, want %d", a.v.Status().Applied.LSN, got, data)
		}
		_, err := a.v.ApplyStep()
		must(t, err)
	}
}

// The log does not tell what the disk contained before it began: that must not change with a power cut (found by the simulator, with a resource
// that was created anew on a disk whose former content was not flushed).
func TestFirstContentSurvives(t *testing.T) {
	t.Parallel()
	m := newMachine()
	was := bytes.Repeat([]byte{7}, sector)
	if err := m.disk.WriteAt(was, 0, 0); err != nil {
		t.Fatal(err)
	}
	v, err := Create(m.cfg, testSize)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	got := make([]byte, sector)
	if err := m.disk.CrashLosingAll().ReadAt(got, 0); err != nil || !bytes.Equal(got, was) {
		t.Errorf("after a power cut the disk begins with %x, %v", got[:4], err)
	}
}
