package volume

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"mars/internal/block"
)

// step is one thing that an application or a node does.
func (a *app) step() error {
	switch n := a.rng.IntN(100); {
	case n < 50:
		return a.modify()
	case n < 60:
		return a.flush()
	case n < 62:
		a.v.Log().Rotate()
		return nil
	case n < 80:
		_, err := a.v.ApplyStep()
		return err
	case n < 86:
		_, err := a.v.Log().DeleteBelow(a.v.Checkpointed())
		return err
	case n < 88:
		return errors.Join(a.v.Deactivate("a"), a.activateSynced())
	case n < 90:
		return errors.Join(a.v.Suspend(), a.activateSynced())
	case n < 92:
		a.tl++
		return errors.Join(a.v.Suspend(), a.v.PassToken("a", "a", timeline(a.tl)), a.activateSynced())
	case n < 93:
		return a.grow()
	case n < 96:
		return a.reopen()
	}
	return a.check()
}

// activateSynced follows the end of a tenure, which has made everything durable.
func (a *app) activateSynced() error {
	err := a.activate()
	if err == nil {
		a.durable = a.acked
	}
	return err
}

func (a *app) reopen() error {
	if err := a.v.Close(); err != nil {
		return err
	}
	v, err := Open(a.cfg)
	if err != nil {
		return err
	}
	a.v = v
	return a.activateSynced()
}

func (a *app) grow() error {
	size := min(a.v.Size()+4*sector, testDisk)
	if size == a.v.Size() {
		return nil
	}
	return a.do(&block.Request{Op: opResize, Off: a.v.Size(), Len: size, Flags: block.FUA})
}

// life creates a volume and uses it for n steps, or until something fails.
func (a *app) life(n int) error {
	if err := a.create(); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	for i := range n {
		if err := a.step(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	return nil
}

// TestLife is what the crash tests do, without a crash.
func TestLife(t *testing.T) {
	for _, seed := range seedsOf(t, 40) {
		a := newApp(seed)
		if err := errors.Join(a.life(120)); err != nil {
			t.Fatalf("%v\n%s", err, rerun(t, seed))
		}
		if err := errors.Join(a.check(), a.drain(), a.check(), a.v.Close()); err != nil {
			t.Fatalf("%v\n%s", err, rerun(t, seed))
		}
		if img, err := imageOf(a.disk, testSize); err != nil || img.same(a.image(len(a.log))[:len(img)]) != nil {
			t.Fatalf("disk at the end: %v %v\n%s", err, img.same(a.image(len(a.log))[:len(img)]), rerun(t, seed))
		}
	}
}

// TestCrashAnywhere stops a life at every single operation of file system and disk, ends the process in every way, and lets recovery be
// interrupted in the same manner.
func TestCrashAnywhere(t *testing.T) {
	for _, seed := range seedsOf(t, 1) {
		for k := 0; ; k++ {
			a := newApp(seed)
			a.stopAt(k)
			err := a.life(60)
			if err == nil && !a.stopped() {
				t.Logf("seed %d: %d operations", seed, k)
				break
			}
			if err := a.crashAndRecover(seed, k); err != nil {
				t.Fatalf("stopped at operation %d (%v): %v\n%s", k, err, err, rerun(t, seed))
			}
		}
	}
}

func (a *app) crashAndRecover(seed uint64, k int) error {
	for o := range outcomes {
		rng := rand.New(rand.NewPCG(seed, uint64(k)<<8|uint64(o)))
		c := &app{machine: a.clone(), model: a.model, rng: rng, tl: a.tl}
		c.log = append([]change(nil), a.log...)
		c.end(o, rng)
		// A power cut during recovery: what the kill had left may be lost now.
		if rng.IntN(2) == 0 {
			c.stopAt(rng.IntN(40))
			o2 := outcome(rng.IntN(int(outcomes)))
			if v, err := Open(c.cfg); err == nil {
				c.v = v
				c.drain()
			}
			c.end(o2, rng)
			o = max(o, min(o2, powerLosingAll))
		}
		if err := c.recoverAndCheck(o); err != nil {
			if errors.Is(err, ErrNoReplica) && a.acked == 0 {
				continue // it was never created
			}
			return fmt.Errorf("%v: %w", o, err)
		}
		if err := c.carryOn(); err != nil {
			return fmt.Errorf("%v, carry on: %w", o, err)
		}
	}
	return nil
}
