package volume

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"mars/internal/history"
	"mars/internal/translog"
)

// member is one replica of a small cluster on one goroutine.
type member struct {
	*machine
	name string
}

// cluster has two members, one application that follows the primary, and the model of the only history that nobody threw away.
type cluster struct {
	model
	rng     *rand.Rand
	m       [2]*member
	primary int // who is, or was last
	up      bool
	tl      history.TimelineID
	trace   []string
}

func newCluster(seed uint64) *cluster {
	c := &cluster{rng: rand.New(rand.NewPCG(seed, 11))}
	for i := range c.m {
		c.m[i] = &member{machine: newMachine(), name: string(rune('a' + i))}
		// What a newcomer's disk had before must not be taken for anything.
		junk := make([]byte, testDisk)
		if i == 1 {
			fill(junk, 1<<40, 0)
		}
		c.m[i].disk.WriteAt(junk, 0, 0)
	}
	return c
}

func (c *cluster) create() error {
	v, err := Create(c.m[0].cfg, testSize)
	if err != nil {
		return err
	}
	c.m[0].v = v
	if c.rng.IntN(2) == 0 {
		err = c.join(1) // before there was any timeline
	}
	return errors.Join(err, c.activate(0, false))
}

func (c *cluster) activate(i int, forced bool) error {
	c.tl++
	t := timeline(c.tl)
	t.Forced = forced
	if err := c.m[i].v.Activate(c.m[i].name, t); err != nil {
		return err
	}
	c.primary, c.up = i, true
	return nil
}

// join makes member i a newcomer that is to be filled from the other one.
func (c *cluster) join(i int) error {
	path, size, err := c.m[1-i].v.CopyStart()
	if err != nil {
		return err
	}
	if c.m[i].v != nil {
		c.m[i].v.Close()
	}
	c.m[i].v, err = CreateJoining(c.m[i].cfg, path, size)
	return err
}

// copyStep copies a piece from the other member, or ends the copy.
func (c *cluster) copyStep(i int) error {
	src, dst := c.m[1-i].v, c.m[i].v
	if s := dst.Status(); s.Sync == nil || s.Sync.Copied {
		return nil
	}
	step, err := dst.StartCopy(sector * (1 + c.rng.Int64N(24)))
	if err != nil {
		return err
	}
	if step == nil {
		until, err := src.StablePosition()
		if err != nil {
			return err
		}
		return dst.EndCopy(until)
	}
	if src.Reflects().LSN < dst.Status().Applied.LSN || !src.Status().Consistent {
		step.Abort()
		return nil // it is behind: not a source now
	}
	buf := make([]byte, step.Len)
	pos, err := src.ReadStable(buf, step.Off)
	if err == nil {
		err = step.Disk().WriteAt(buf, step.Off, 0)
	}
	if err != nil || c.rng.IntN(4) == 0 {
		step.Abort()
		return err
	}
	step.Saw(pos)
	return step.Commit()
}

// fetch ships from the other member what is durable there.
func (c *cluster) fetch(i int) error {
	src, dst := c.m[1-i].v, c.m[i].v
	buf := make([]byte, translog.MaxChunk)
	if err := src.Log().CheckPosition(dst.Log().EndPosition()); err != nil {
		return err
	}
	b, err := src.Log().ReadRaw(buf[:4096+c.rng.IntN(8192)], dst.Log().End())
	if err != nil || len(b) == 0 {
		return err
	}
	if err := dst.Ingest(b); err != nil {
		return err
	}
	if c.rng.IntN(2) == 0 {
		dst.SyncStep()
	}
	return nil
}

// crash ends the process of member i and starts it again.
func (c *cluster) crash(i int) error {
	o := outcome(c.rng.IntN(int(outcomes)))
	m := c.m[i]
	newcomer := m.stopped() && i != c.primary
	m.end(o, c.rng)
	v, err := Open(m.cfg)
	if errors.Is(err, ErrNoReplica) && newcomer {
		return nil // it was about to become one
	}
	if err != nil {
		return fmt.Errorf("after %v: %w", o, err)
	}
	m.v = v
	if s := v.Status(); s.Defect != nil {
		return fmt.Errorf("after %v: %w", o, s.Defect)
	}
	if c.primary != i || !c.up {
		return nil
	}
	// What survives is the history from now on.
	k, err := c.survived(i, o)
	if err != nil {
		return err
	}
	c.truncate(k)
	return c.activate(i, false)
}

// survived returns how many writes are in member i's log.
func (c *cluster) survived(i int, o outcome) (int, error) {
	clone := c.m[i].clone()
	v, err := Open(clone.cfg)
	if err != nil {
		return 0, err
	}
	clone.v = v
	if err := clone.drain(); err != nil {
		return 0, err
	}
	img, err := imageOf(clone.disk, v.Size())
	if err != nil {
		return 0, err
	}
	least := c.durable
	if o == killed {
		least = c.acked
	}
	return c.prefix(img, least)
}

func (c *cluster) truncate(k int) {
	c.log = c.log[:k]
	c.acked, c.durable = min(c.acked, k), min(c.durable, k)
}

// app is the application on the primary.
func (c *cluster) write(n int) error {
	a := &app{machine: c.m[c.primary].machine, model: c.model, rng: c.rng}
	defer func() { c.model = a.model }()
	for range n {
		if err := a.modify(); err != nil {
			return err
		}
	}
	switch c.rng.IntN(3) {
	case 0:
		return a.flush()
	case 1:
		return a.check()
	}
	return nil
}

// handover passes the role to the other member, which gets everything first.
func (c *cluster) handover() error {
	from, to := c.primary, 1-c.primary
	if !c.m[to].v.Status().Consistent {
		return nil
	}
	if err := c.m[from].v.Deactivate(c.m[to].name); err != nil {
		return err
	}
	c.up = false
	c.durable = c.acked
	for c.m[to].v.Log().End() < c.m[from].v.Log().End() {
		if err := c.fetch(to); err != nil {
			return err
		}
	}
	if err := c.activate(from, false); !errors.Is(err, ErrNoToken) {
		return fmt.Errorf("the old primary may go on: %v", err)
	}
	return c.activate(to, false)
}

// failover forces the other member to be primary with what it has; the old one has crashed or not, its tail is thrown away and it joins anew.
func (c *cluster) failover() error {
	old, to := c.primary, 1-c.primary
	if s := c.m[to].v.Status(); !s.Consistent || s.Sync != nil {
		return nil
	}
	c.durable = 0 // a forced failover may lose anything, but not the order
	c.acked = 0
	k, err := c.survived(to, powerLosingAll)
	if err != nil {
		return err
	}
	c.truncate(k)
	if err := c.m[old].v.Suspend(); err != nil {
		return err
	}
	if err := c.activate(to, true); err != nil {
		return err
	}
	c.acked, c.durable = k, k
	return c.rejoin(old)
}

// rejoin: a member without a tail follows; one whose tail has no data drops it; else it is filled again.
func (c *cluster) rejoin(i int) error {
	mine, theirs := c.m[i].v.Log().Path(), c.m[1-i].v.Log().Path()
	r := history.Compare(&mine, &theirs)
	switch {
	case !r.Unrelated && r.TailA == 0:
		return nil
	case !r.Unrelated && !r.ModifiedA:
		return c.m[i].v.DropTail(r.Fork)
	}
	return c.join(i)
}

func (c *cluster) step() error {
	s := 1 - c.primary
	n := c.rng.IntN(100)
	c.trace = append(c.trace, fmt.Sprint(n))
	if c.m[s].v == nil {
		if n < 60 {
			return c.write(1)
		}
		return c.join(s)
	}
	switch {
	case n < 30:
		return c.write(1 + c.rng.IntN(4))
	case n < 70 && c.rng.IntN(8) == 0:
		return c.stoppedStep(s, n)
	case n < 70:
		return c.follow(s, n)
	case n < 79:
		_, err := c.m[c.primary].v.ApplyStep()
		return err
	case n < 80:
		return errors.Join(c.m[c.primary].v.NoteDurable(), c.m[s].v.NoteDurable())
	case n < 84:
		need := min(c.m[s].v.Log().Durable(), c.m[c.primary].v.Checkpointed())
		_, err := c.m[c.primary].v.Log().DeleteBelow(need)
		return err
	case n < 86:
		_, err := c.m[s].v.Log().DeleteBelow(c.m[s].v.Checkpointed())
		return err
	case n < 91:
		return errors.Join(c.crash(s), c.mayClaim(s))
	case n < 94:
		return c.crash(c.primary)
	case n < 96:
		return c.handover()
	case n < 97:
		return c.failover()
	case n < 98:
		return c.join(s) // invalidate
	}
	return c.mayClaim(s)
}

// follow is what a secondary does.
func (c *cluster) follow(s, n int) error {
	switch {
	case n < 50:
		return c.fetch(s)
	case n < 60:
		return c.copyStep(s)
	case n < 62:
		return c.join(s)
	}
	_, err := c.m[s].v.ApplyStep()
	return errors.Join(err, c.mayClaim(s))
}

// stoppedStep is a follow in the middle of which the process ends.
func (c *cluster) stoppedStep(s, n int) error {
	c.m[s].stopAt(c.rng.IntN(20))
	err := c.follow(s, n)
	if err != nil && !c.m[s].stopped() {
		return err
	}
	if err := c.crash(s); err != nil || c.m[s].v == nil {
		return err
	}
	return c.mayClaim(s)
}

// mayClaim checks that a member that says it is consistent is so: what it would have after recovery is the state after some prefix.
func (c *cluster) mayClaim(i int) error {
	if !c.m[i].v.Status().Consistent {
		return nil
	}
	clone := c.m[i].clone()
	clone.end(killed, nil)
	v, err := Open(clone.cfg)
	if err != nil {
		return err
	}
	clone.v = v
	if err := clone.drain(); err != nil {
		return err
	}
	img, err := imageOf(clone.disk, v.Size())
	if err != nil {
		return fmt.Errorf("member %s claims to be consistent: %w", c.m[i].name, err)
	}
	if _, err := c.prefix(img, 0); err != nil {
		return fmt.Errorf("member %s claims to be consistent: %w", c.m[i].name, err)
	}
	return nil
}

// settle lets everything come to rest.
func (c *cluster) settle() error {
	p, s := c.primary, 1-c.primary
	if c.m[s].v == nil {
		if err := c.join(s); err != nil {
			return err
		}
	}
	for range 300 {
		if c.m[s].v.Status().Consistent && c.m[s].v.Log().End() == c.m[p].v.Log().End() && c.m[s].v.Unapplied() == 0 {
			break
		}
		c.m[p].v.SyncStep()
		if err := errors.Join(c.fetch(s), c.copyStep(s), c.m[s].drain()); err != nil {
			return err
		}
	}
	if err := c.m[p].drain(); err != nil {
		return err
	}
	want := c.image(len(c.log))
	for _, m := range c.m {
		if !m.v.Status().Consistent {
			return fmt.Errorf("member %s is not consistent in the end: %+v", m.name, m.v.Status())
		}
		img, err := imageOf(m.disk, m.v.Size())
		if err == nil {
			err = img.same(want[:len(img)])
		}
		if err != nil {
			return fmt.Errorf("member %s in the end: %w", m.name, err)
		}
	}
	return nil
}

// TestPair: two replicas, random interleavings, crashes of either side, planned and forced changes of the role; at the end both are equal, and
// a member that calls itself consistent always is.
func TestPair(t *testing.T) {
	for _, seed := range seedsOf(t, 60) {
		c := newCluster(seed)
		err := c.create()
		for i := 0; i < 120 && err == nil; i++ {
			if err = c.step(); err != nil {
				err = fmt.Errorf("step %d (%s): %w", i, c.trace[len(c.trace)-1], err)
			}
		}
		if err == nil {
			err = c.settle()
		}
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, rerun(t, seed))
		}
	}
}
