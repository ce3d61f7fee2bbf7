package volume

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"

	"mars/internal/block/blocktest"
	"mars/internal/history"
	"mars/internal/vfs/crashfs"
)

var update = flag.Bool("update", false, "write the golden files anew")

// procedure is a durable change of a replica that has to be all or nothing. TestCrashAnywhere and its like have the others, in a life.
type procedure struct {
	name string
	// begin makes the machine on which it is done.
	begin func(t *testing.T, a *app) *machine
	do    func(a *app, m *machine) error
	// left says what is wrong with what is there after it was interrupted; Open has given v or err.
	left func(v *Volume, err error) error
	// done says what is wrong with what is there after it was acknowledged.
	done func(v *Volume, err error) error
}

func start(a *app) (history.Path, int64, error) { return a.v.CopyStart() }

func none(_ *Volume, err error) error {
	if !errors.Is(err, ErrNoReplica) {
		return fmt.Errorf("there is a replica, or what is left of one: %w", err)
	}
	return nil
}

func either(x, y func(*Volume, error) error) func(*Volume, error) error {
	return func(v *Volume, err error) error {
		if x(v, err) == nil {
			return nil
		}
		return y(v, err)
	}
}

// joining: a replica that has to be filled, and says so.
func joining(v *Volume, err error) error {
	if err != nil {
		return err
	}
	if s := v.Status(); s.Sync == nil || s.Consistent || s.Defect != nil {
		return fmt.Errorf("not a replica to be filled: %+v", s)
	}
	return nil
}

// intact: a consistent replica.
func intact(v *Volume, err error) error {
	if err != nil {
		return err
	}
	if s := v.Status(); s.Sync != nil || !s.Consistent || s.Defect != nil {
		return fmt.Errorf("not an intact replica: %+v", s)
	}
	return nil
}

var procedures = []procedure{
	{
		name:  "create",
		begin: func(*testing.T, *app) *machine { return newMachine() },
		do: func(_ *app, m *machine) error {
			v, err := Create(m.cfg, testSize)
			if err != nil {
				return err
			}
			return errors.Join(v.Activate("b", timeline(7)), v.Close())
		},
		left: either(none, intact), done: intact,
	},
	{
		name:  "join",
		begin: func(*testing.T, *app) *machine { return newMachine() },
		do: func(a *app, m *machine) error {
			path, size, err := start(a)
			if err != nil {
				return err
			}
			v, err := CreateJoining(m.cfg, path, size)
			if err != nil {
				return err
			}
			return v.Close()
		},
		left: either(none, joining), done: joining,
	},
	{
		name: "invalidate",
		begin: func(t *testing.T, a *app) *machine {
			m := follower(t, a.v)
			for range 3 {
				ends := a.writeSome(t, 3)
				must(t, shipTo(m.v, a.v, ends[2].LSN))
				m.v.Log().Rotate()
			}
			must(t, errors.Join(m.drain(), m.v.Close()))
			return m
		},
		do:   func(_ *app, m *machine) error { return Wipe(m.cfg) },
		left: either(none, intact), done: none,
	},
	{
		name: "invalidate a replica that is being filled",
		begin: func(t *testing.T, a *app) *machine {
			m := newMachine()
			path, size, err := start(a)
			must(t, err)
			m.v, err = CreateJoining(m.cfg, path, size)
			must(t, err)
			copyPiece(t, a.v, m.v, 16*sector)
			must(t, m.v.Close())
			return m
		},
		do:   func(_ *app, m *machine) error { return Wipe(m.cfg) },
		left: either(none, joining), done: none,
	},
}

// check looks at what an interrupted procedure has left, and whether the replica can be filled from there.
func (p *procedure) check(a *app, m *machine, acked bool) error {
	v, err := Open(m.cfg)
	ok := p.left
	if acked {
		ok = p.done
	}
	if why := ok(v, err); why != nil {
		return why
	}
	if v != nil {
		if err := v.Close(); err != nil {
			return err
		}
	}
	path, size, err := start(a)
	if err != nil {
		return err
	}
	again, err := CreateJoining(m.cfg, path, size)
	if why := joining(again, err); why != nil {
		return fmt.Errorf("begun anew: %w", why)
	}
	return again.Close()
}

// TestProceduresStoppedAnywhere: the process ends at any operation of a procedure, in every way; what is there is all or nothing of it.
func TestProceduresStoppedAnywhere(t *testing.T) {
	for _, p := range procedures {
		t.Run(p.name, func(t *testing.T) {
			for k := 0; ; k++ {
				a := newPrimary(t, 1)
				a.writeSome(t, 4)
				m := p.begin(t, a)
				m.stopAt(k)
				err := p.do(a, m)
				for o := range outcomes {
					c := m.clone()
					c.end(o, rand.New(rand.NewPCG(uint64(k), uint64(o))))
					if why := p.check(a, c, err == nil); why != nil {
						t.Fatalf("stopped at operation %d, %v: %v", k, o, why)
					}
				}
				if err == nil {
					return
				}
			}
		})
	}
}

// TestProceduresFailAnywhere: any operation fails; that is said, what is there is all or nothing, also after a power cut, and the procedure can be
// repeated.
func TestProceduresFailAnywhere(t *testing.T) {
	for _, p := range procedures {
		for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENOSPC} {
			t.Run(fmt.Sprintf("%s/%v", p.name, errno), func(t *testing.T) {
				for k := 0; ; k++ {
					a := newPrimary(t, 1)
					a.writeSome(t, 4)
					m := p.begin(t, a)
					m.fs.Inject(crashfs.Fault{Skip: k, Err: errno})
					m.disk.Inject(blocktest.Fault{Err: errno, Match: func(blocktest.Op) bool { return k == 0 }})
					err := p.do(a, m)
					if m.fs.Fired()+m.disk.Fired() == 0 {
						return
					}
					if err != nil && !errors.Is(err, errno) {
						t.Fatalf("operation %d: %v", k, err)
					}
					m.fs.ClearFaults()
					m.disk.ClearFaults()
					c := m.clone()
					c.end(powerLosingAll, nil)
					if why := p.check(a, c, err == nil); why != nil {
						t.Fatalf("operation %d (%v), after a power cut: %v", k, err, why)
					}
					if err != nil {
						if err := p.do(a, m); err != nil {
							t.Fatalf("operation %d, repeated: %v", k, err)
						}
					}
				}
			})
		}
	}
}

// TestOperationOrder of the procedures: it is what makes crashes harmless. TestSteps has that of a checkpoint, package translog that of the log.
func TestOperationOrder(t *testing.T) {
	var out strings.Builder
	trace := func(title string, m *machine, f func() error) {
		t.Helper()
		seen := 0
		m.fs.StartTrace()
		var ops []string
		m.disk.OnOp(func(o blocktest.Op) {
			now := m.fs.Trace()
			ops = append(append(ops, now[seen:]...), "disk "+o.Kind.String())
			seen = len(now)
		})
		must(t, f())
		ops = append(ops, m.fs.Trace()[seen:]...)
		fmt.Fprintf(&out, "%s\n  %s\n", title, strings.Join(ops, "\n  "))
		m.disk.OnOp(nil)
	}
	a := newPrimary(t, 1)
	a.writeSome(t, 2)
	for _, p := range procedures {
		m := p.begin(t, a)
		trace(p.name, m, func() error { return p.do(a, m) })
	}
	must(t, a.modify())
	trace("handover", a.machine, func() error { return a.v.Deactivate("b") })
	a.end(killed, nil)
	trace("recovery", a.machine, func() (err error) {
		a.v, err = Open(a.cfg)
		return err
	})
	const file = "testdata/order.golden"
	if *update {
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(file, []byte(out.String()), 0o644))
	}
	want, err := os.ReadFile(file)
	must(t, err)
	if out.String() != string(want) {
		t.Errorf("%s differs:\n%s", file, out.String())
	}
}
