package volume

import (
	"errors"
	"math/rand/v2"
	"path"
	"syscall"
	"testing"

	"mars/internal/block/blocktest"
	"mars/internal/history"
	"mars/internal/translog"
)

// largeWindow lets one window take everything.
func largeWindow(c *Config) { c.WindowSize = 1 << 20 }

// follower is a secondary of src that has fetched everything durable.
func follower(t *testing.T, src *Volume, change ...func(*Config)) *machine {
	t.Helper()
	m := newMachine(change...)
	start, size, err := src.CopyStart()
	must(t, err)
	m.v, err = CreateJoining(m.cfg, start, size)
	must(t, err)
	for copyPiece(t, src, m.v, 16*sector) {
	}
	until, err := src.StablePosition()
	must(t, errors.Join(err, m.v.EndCopy(until), shipTo(m.v, src, until.LSN), m.drain()))
	if s := m.v.Status(); !s.Consistent {
		t.Fatalf("the copy is complete but not consistent: %+v", s)
	}
	return m
}

// copyPiece copies one step; false when everything is copied.
func copyPiece(t *testing.T, src, dst *Volume, n int64) bool {
	t.Helper()
	c, err := dst.StartCopy(n)
	must(t, err)
	if c == nil {
		return false
	}
	buf := make([]byte, c.Len)
	pos, err := src.ReadStable(buf, c.Off)
	must(t, errors.Join(err, c.Disk().WriteAt(buf, c.Off, 0)))
	c.Saw(pos)
	must(t, c.Commit())
	return true
}

// shipTo fetches the log of src up to at least lsn, one record at a time.
func shipTo(dst, src *Volume, lsn history.LSN) error {
	buf := make([]byte, translog.MaxChunk)
	for dst.Log().End() < lsn {
		b, err := src.Log().ReadRaw(buf, dst.Log().End())
		if err != nil || len(b) == 0 {
			return errors.Join(err, errors.New("there is no more"))
		}
		if err := dst.Ingest(b); err != nil {
			return err
		}
	}
	return dst.Log().SyncTo(dst.Log().End())
}

// corruptAt damages the record of m's log that begins at lsn.
func corruptAt(t *testing.T, m *machine, lsn history.LSN) {
	t.Helper()
	dir := path.Join(m.cfg.Dir, "log")
	names, err := m.fs.ReadDir(dir)
	must(t, err)
	for i := len(names) - 1; i >= 0; i-- {
		first := segmentFirst(t, names[i])
		if first <= lsn {
			must(t, m.fs.Corrupt(path.Join(dir, names[i]), 4096+int64(lsn-first)+translog.HeaderSize-1, 1))
			return
		}
	}
	t.Fatalf("no segment for LSN %d", lsn)
}

func segmentFirst(t *testing.T, name string) history.LSN {
	t.Helper()
	var first history.LSN
	for _, c := range name[4:20] {
		d := history.LSN(c - '0')
		if c >= 'a' {
			d = history.LSN(c-'a') + 10
		}
		first = first<<4 | d
	}
	return first
}

// writeSome lets the primary do n modifications, durably, and returns the log's end behind each.
func (a *app) writeSome(t *testing.T, n int) (ends []history.Position) {
	t.Helper()
	for range n {
		must(t, a.modify())
		ends = append(ends, a.v.Log().EndPosition())
	}
	must(t, a.flush())
	return ends
}

func wantImage(t *testing.T, a *app, m *machine) {
	t.Helper()
	img, err := imageOf(m.disk, a.v.Size())
	must(t, errors.Join(err, img.same(a.image(len(a.log))[:len(img)])))
}

// TestDamageOnASecondary is found before it reaches the disk, is not forgotten by a restart, stops fetching, and is healed by fetching again.
func TestDamageOnASecondary(t *testing.T) {
	a := newPrimary(t, 1)
	a.writeSome(t, 3)
	b := follower(t, a.v)
	ends := a.writeSome(t, 6)
	must(t, shipTo(b.v, a.v, ends[5].LSN))
	a.writeSome(t, 1)
	corruptAt(t, b, ends[2].LSN)
	damaged := func(when string, err error) {
		t.Helper()
		wantErr(t, when, err, translog.ErrDefective)
		s := b.v.Status()
		if s.Defect == nil || s.Defect.At != ends[2].LSN || s.Applied.LSN != ends[2].LSN || !s.Consistent || s.KnownDurable < ends[5].LSN {
			t.Fatalf("%s: %+v", when, s)
		}
		end := b.v.Log().End()
		raw := must1(a.v.Log().ReadRaw(make([]byte, translog.MaxChunk), end))(t)
		if err := b.v.Ingest(raw); !errors.Is(err, translog.ErrDefective) || len(raw) == 0 || b.v.Log().End() != end {
			t.Fatalf("%s: fetched %d bytes behind the damage: %v", when, len(raw), err)
		}
		wantErr(t, when+", activate", b.v.Activate("b", history.Timeline{ID: 99, Forced: true}), translog.ErrDefective)
	}
	damaged("replay", b.drain())
	for range 2 {
		must(t, b.v.Close())
		v, err := Open(b.cfg)
		must(t, err)
		b.v = v
		damaged("after a restart", b.drain())
	}
	must(t, errors.Join(b.v.Heal(), shipTo(b.v, a.v, a.v.Log().End()), b.drain()))
	wantImage(t, a, b)
	must(t, b.v.Close())
	v, err := Open(b.cfg)
	if err != nil || v.Status().Defect != nil || !v.Status().Consistent {
		t.Fatalf("after healing: %v %+v", err, v.Status())
	}
}

// TestDamageIsNotForgotten when the part before it is replayed, which saves the state, although only the state knew about it.
func TestDamageIsNotForgotten(t *testing.T) {
	a := newPrimary(t, 1)
	b := follower(t, a.v, func(c *Config) { c.WindowSize = 1 })
	ends := a.writeSome(t, 6)
	must(t, shipTo(b.v, a.v, ends[5].LSN))
	must1(b.v.ApplyStep())(t)
	corruptAt(t, b, ends[3].LSN)
	for range 4 {
		b.end(killed, nil)
		b.v = must1(Open(b.cfg))(t)
		if s := b.v.Status(); s.Defect == nil || s.Defect.At != ends[3].LSN || s.KnownDurable != ends[5].LSN {
			t.Fatalf("%+v", s)
		}
		b.v.ApplyStep() // one record each time
	}
}

// interrupted is a secondary whose disk has parts of a window that was not completed, and whose log is damaged inside of it.
func interrupted(t *testing.T, a *app) (b *machine, ends []history.Position) {
	b = follower(t, a.v, largeWindow)
	ends = a.writeSome(t, 6)
	must(t, shipTo(b.v, a.v, ends[5].LSN))
	b.disk.Inject(blocktest.Fault{Match: func(o blocktest.Op) bool { return o.Kind == blocktest.OpFlush }, Err: syscall.EIO})
	wantErr(t, "apply", b.drain(), syscall.EIO)
	corruptAt(t, b, ends[2].LSN)
	b.end(killed, nil)
	v, err := Open(b.cfg)
	must(t, err)
	b.v = v
	return b, ends
}

// TestFinishStep: what a crash has left half done is finished, and nothing else is applied, as long as replay is paused.
func TestFinishStep(t *testing.T) {
	a := newPrimary(t, 1)
	b := follower(t, a.v, largeWindow)
	ends := a.writeSome(t, 6)
	must(t, shipTo(b.v, a.v, ends[5].LSN))
	if more := must1(b.v.FinishStep())(t); more {
		t.Fatal("there is something to finish before anything has begun")
	}
	b.disk.Inject(blocktest.Fault{Match: func(o blocktest.Op) bool { return o.Kind == blocktest.OpFlush }, Err: syscall.EIO})
	wantErr(t, "apply", b.drain(), syscall.EIO)
	b.end(killed, nil)
	b.v = must1(Open(b.cfg))(t)
	want := a.image(len(a.log))
	must(t, shipTo(b.v, a.v, a.writeSome(t, 3)[2].LSN))
	if more := must1(b.v.FinishStep())(t); !more || b.v.Status().Applied != ends[5] {
		t.Fatalf("finished up to %v, the step goes up to %v", b.v.Status().Applied, ends[5])
	}
	img, err := imageOf(b.disk, a.v.Size())
	must(t, errors.Join(err, img.same(want[:len(img)])))
	if more := must1(b.v.FinishStep())(t); more {
		t.Error("it goes on behind the step")
	}
	must(t, b.drain())
	wantImage(t, a, b)
}

// TestDamageInsideTheWindow: the replica cannot be made consistent until the damaged part is fetched again, and says so all the time.
func TestDamageInsideTheWindow(t *testing.T) {
	a := newPrimary(t, 1)
	b, ends := interrupted(t, a)
	inconsistent := func(when string) {
		t.Helper()
		if b.v.Status().Consistent {
			t.Fatalf("%s: claims to be consistent", when)
		}
		wantErr(t, when, b.v.Activate("b", history.Timeline{ID: 99, Forced: true}), errAny)
	}
	inconsistent("damaged")
	must(t, b.v.Heal())
	inconsistent("healed")
	b.end(killed, nil)
	v, err := Open(b.cfg)
	must(t, err)
	if b.v = v; v.Status().Defect != nil {
		t.Fatalf("healed, but defective after a restart: %v", v.Status().Defect)
	}
	inconsistent("healed, restarted")
	must(t, b.drain())
	inconsistent("replayed what is there")
	must(t, shipTo(b.v, a.v, ends[5].LSN))
	if !b.v.Status().Consistent {
		t.Error("everything is there again, but inconsistent")
	}
	must(t, b.drain())
	wantImage(t, a, b)
}

// TestDamageThenOtherHistory: what an interrupted window left on the disk is not part of the history that comes instead. It must not be
// replayed over it and called consistent.
func TestDamageThenOtherHistory(t *testing.T) {
	a := newPrimary(t, 1)
	c := follower(t, a.v)
	b, ends := interrupted(t, a)
	must(t, b.v.Heal())
	// c has exactly as much as b has now, and is forced to go on from there.
	buf := make([]byte, ends[2].LSN-c.v.Log().End())
	must(t, c.v.Ingest(must1(a.v.Log().ReadRaw(make([]byte, 1<<21), c.v.Log().End()))(t)[:len(buf)]))
	must(t, c.v.Activate("c", history.Timeline{ID: 77, Forced: true}))
	x := &app{machine: c, model: a.model, rng: rand.New(rand.NewPCG(1, 1))}
	end := x.writeSome(t, 12)[11]
	must(t, shipTo(b.v, c.v, end.LSN))
	wantErr(t, "replay", b.drain(), ErrInconsistent)
	if b.v.Status().Consistent {
		t.Error("claims to be consistent with parts of two histories on its disk")
	}
}

func must1[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		must(t, err)
		return v
	}
}

// TestCopyFromTwoHistories: half of a copy is made from a source whose tail is thrown away later. With the other half from the winner it is
// a state that nobody ever had.
func TestCopyFromTwoHistories(t *testing.T) {
	a := newPrimary(t, 1)
	a.writeSome(t, 6)
	c := follower(t, a.v)
	d := newMachine()
	start, size, err := a.v.CopyStart()
	must(t, err)
	d.v, err = CreateJoining(d.cfg, start, size)
	must(t, err)
	a.writeSome(t, 20) // only a has this
	copyPiece(t, a.v, d.v, size/2)
	must(t, c.v.Activate("c", history.Timeline{ID: 77, Forced: true}))
	x := &app{machine: c, model: a.model, rng: rand.New(rand.NewPCG(1, 1))}
	x.writeSome(t, 40)
	for copyPiece(t, c.v, d.v, size/2) {
	}
	until, err := c.v.StablePosition()
	must(t, errors.Join(err, d.v.EndCopy(until), shipTo(d.v, c.v, until.LSN)))
	wantErr(t, "end of the sync", d.drain(), translog.ErrDiverged)
	if d.v.Status().Consistent {
		t.Error("claims to be consistent with parts of two histories on its disk")
	}
}

// TestSyncOfAnUntouchedResource can be completed although there is no log at all.
func TestSyncOfAnUntouchedResource(t *testing.T) {
	a := newApp(1)
	v, err := Create(a.cfg, testSize)
	must(t, err)
	a.v = v
	b := follower(t, a.v)
	must(t, a.activate())
	must(t, a.v.Log().CheckPosition(b.v.Log().EndPosition()))
	ends := a.writeSome(t, 5)
	must(t, errors.Join(shipTo(b.v, a.v, ends[4].LSN), b.drain()))
	wantImage(t, a, b)
}

// TestEndOfSyncSurvives: stopped anywhere around the end of a sync, it ends after a restart without another write at the source.
func TestEndOfSyncSurvives(t *testing.T) {
	for k := 0; ; k++ {
		a := newPrimary(t, 1)
		a.writeSome(t, 6)
		b := newMachine()
		start, size, err := a.v.CopyStart()
		must(t, err)
		b.v, err = CreateJoining(b.cfg, start, size)
		must(t, err)
		for copyPiece(t, a.v, b.v, size) {
		}
		until := must1(a.v.StablePosition())(t)
		must(t, errors.Join(shipTo(b.v, a.v, until.LSN), b.drain()))
		b.stopAt(k)
		err = errors.Join(b.v.EndCopy(until), b.drain())
		for o := range outcomes {
			c := b.clone()
			c.end(o, rand.New(rand.NewPCG(uint64(k), 1)))
			c.v, _ = Open(c.cfg)
			if s := c.v.Status(); s.Sync != nil && !s.Sync.Copied {
				must(t, c.v.EndCopy(until))
			}
			must(t, c.drain())
			if s := c.v.Status(); !s.Consistent {
				t.Fatalf("stopped at operation %d, %v: %+v", k, o, s.Sync)
			}
			wantImage(t, a, c)
		}
		if err == nil {
			return
		}
	}
}

// TestDropTailAnywhere: stopped anywhere, the tail is there or gone, never half, and the other history can be followed afterwards.
func TestDropTailAnywhere(t *testing.T) {
	for k := 0; ; k++ {
		a := newPrimary(t, 1)
		a.writeSome(t, 6)
		b := follower(t, a.v)
		fork := b.v.Log().EndPosition()
		// b is forced, writes nothing, its tail is applied and checkpointed; a goes on.
		must(t, b.v.Activate("b", history.Timeline{ID: 88, Forced: true}))
		must(t, errors.Join(b.v.Suspend(), b.drain()))
		if b.v.Status().Applied == fork {
			t.Fatal("the tail is not applied")
		}
		ends := a.writeSome(t, 4)
		mine, theirs := b.v.Log().Path(), a.v.Log().Path()
		r := history.Compare(&mine, &theirs)
		if r.Split() || r.Fork != fork {
			t.Fatalf("an empty tail is no split brain: %+v", r)
		}
		b.stopAt(k)
		err := b.v.DropTail(fork)
		for o := range outcomes {
			c := b.clone()
			c.end(o, rand.New(rand.NewPCG(uint64(k), 2)))
			v, err := Open(c.cfg)
			must(t, err)
			c.v = v
			if s := v.Status(); s.Defect != nil || !s.Consistent || s.Path.End < fork.LSN {
				t.Fatalf("stopped at operation %d, %v: %+v", k, o, s)
			}
			must(t, errors.Join(v.DropTail(fork), shipTo(v, a.v, ends[3].LSN), c.drain()))
			wantImage(t, a, c)
		}
		if err == nil {
			break
		}
	}
}

// TestDropTailRefuses what is not meant.
func TestDropTailRefuses(t *testing.T) {
	a := newPrimary(t, 1)
	ends := a.writeSome(t, 4)
	wantErr(t, "of a primary", a.v.DropTail(ends[3]), errAny)
	must(t, a.v.Suspend())
	wantErr(t, "with data", a.v.DropTail(ends[2]), errAny)
	wrong := ends[3]
	wrong.Digest[0]++
	wantErr(t, "another history", a.v.DropTail(wrong), translog.ErrDiverged)
	wrong = ends[3]
	wrong.LSN -= 32
	wantErr(t, "no record boundary", a.v.DropTail(wrong), errAny)
	must(t, a.v.DropTail(ends[3]))
	must(t, errors.Join(a.drain(), a.activate()))
}

// TestDamageOnThePrimary in what was durable is reported for ever, not taken for a torn tail.
func TestDamageOnThePrimary(t *testing.T) {
	a := newPrimary(t, 1)
	ends := a.writeSome(t, 5)
	a.writeSome(t, 2) // says that the first five were durable
	corruptAt(t, a.machine, ends[1].LSN)
	for range 2 {
		a.end(killed, nil)
		v, err := Open(a.cfg)
		must(t, err)
		a.v = v
		wantErr(t, "replay", a.drain(), translog.ErrDefective)
		if s := v.Status(); s.Defect == nil || s.Defect.At != ends[1].LSN || s.Applied.LSN != ends[1].LSN || !s.Consistent {
			t.Fatalf("%+v", s)
		}
		wantErr(t, "activate", a.activate(), translog.ErrDefective)
	}
}

// TestDamageWhileRunning inside of what an interrupted window has touched makes the replica inconsistent at once.
func TestDamageWhileRunning(t *testing.T) {
	a := newPrimary(t, 1)
	b := follower(t, a.v, largeWindow)
	ends := a.writeSome(t, 6)
	must(t, shipTo(b.v, a.v, ends[5].LSN))
	b.disk.Inject(blocktest.Fault{Match: func(o blocktest.Op) bool { return o.Kind == blocktest.OpFlush }, Err: syscall.EIO})
	wantErr(t, "apply", b.drain(), syscall.EIO)
	corruptAt(t, b, ends[2].LSN)
	wantErr(t, "apply", b.drain(), translog.ErrDefective)
	if s := b.v.Status(); s.Consistent {
		t.Errorf("%+v", s)
	}
}

// TestOneTokenAnywhere: however a handover is interrupted, afterwards exactly one of the two may go on without force.
func TestOneTokenAnywhere(t *testing.T) {
	passed, kept := 0, 0
	for k := 0; ; k++ {
		a := newPrimary(t, 1)
		b := follower(t, a.v)
		a.writeSome(t, 3)
		must(t, a.modify())
		a.stopAt(k)
		err := a.v.Deactivate("b")
		for o := range outcomes {
			x := &app{machine: a.clone(), model: a.model, tl: 50}
			y := b.clone()
			x.end(o, rand.New(rand.NewPCG(uint64(k), 3)))
			x.v = must1(Open(x.cfg))(t)
			y.end(killed, nil)
			y.v = must1(Open(y.cfg))(t)
			must(t, shipTo(y.v, x.v, x.v.Log().Durable()))
			errA, errB := x.v.Activate("a", timeline(60)), y.v.Activate("b", timeline(61))
			if (errA == nil) == (errB == nil) {
				t.Fatalf("stopped at operation %d, %v: a: %v, b: %v", k, o, errA, errB)
			}
			if err == nil && errB != nil {
				t.Fatalf("%v: the token was passed on but came back", o)
			}
			if errB == nil {
				passed++
			} else {
				kept++
			}
		}
		if err == nil {
			break
		}
	}
	if passed == 0 || kept == 0 {
		t.Errorf("passed %d times, kept %d times", passed, kept)
	}
}

// TestHealAnywhere: stopped anywhere, healing can be repeated, and what was cut off is fetched again.
func TestHealAnywhere(t *testing.T) {
	for k := 0; ; k++ {
		a := newPrimary(t, 1)
		b, ends := interrupted(t, a)
		b.stopAt(k)
		err := b.v.Heal()
		for o := range outcomes {
			c := b.clone()
			c.end(o, rand.New(rand.NewPCG(uint64(k), 4)))
			c.v = must1(Open(c.cfg))(t)
			if c.v.Status().Consistent {
				t.Fatalf("stopped at operation %d, %v: claims to be consistent", k, o)
			}
			must(t, c.v.Heal())
			must(t, errors.Join(shipTo(c.v, a.v, ends[5].LSN), c.drain()))
			wantImage(t, a, c)
		}
		if err == nil {
			return
		}
	}
}
