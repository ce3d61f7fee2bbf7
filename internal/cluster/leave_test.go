package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"testing"

	"mars/internal/identity"
	"mars/internal/transport"
)

func TestLeaveIsKnownEverywhereAndLeavesNothing(t *testing.T) {
	w := newWorld(t)
	all := w.cluster("a", "b", "c")
	a, b, c := all[0], all[1], all[2]
	must(t, b.Put(nodeKey(b.Self().ID)+"/version", []byte("1")))
	old := b.Self().ID
	must(t, b.Leave(t.Context(), LeaveOptions{}))
	w.connected(a, c)
	for _, n := range []*Cluster{a, c} {
		sees(t, n, nodeKey(old)+"/version", "")
	}
	if _, err := identity.Load(b.cfg.Dir); err == nil {
		t.Fatal("the identity is still there")
	}
	w.join(b, c) // it can come back, as another one
	w.connected(a, b, c)
	if b.Self().ID == old {
		t.Fatal("the same id again")
	}
	must(t, b.Leave(t.Context(), LeaveOptions{}))
	inNoCluster(t, w, b)
}

// A change that is made while the node leaves would be acknowledged and lost: nobody takes it any more (found by the simulator, seed 30020).
func TestNoChangesWhileLeaving(t *testing.T) {
	w := newWorld(t)
	all := w.cluster("a", "b")
	m, err := all[1].current()
	must(t, err)
	m.setLeaving(true)
	if err := all[1].Put("k", []byte("v")); !errors.Is(err, ErrLeaving) {
		t.Errorf("put: %v", err)
	}
	m.setLeaving(false)
	must(t, all[1].Put("k", []byte("v")))
	sees(t, all[0], "k", "v")
	must(t, all[1].Leave(t.Context(), LeaveOptions{}))
	if err := all[1].Put("k", []byte("w")); !errors.Is(err, ErrNoCluster) {
		t.Errorf("put after leaving: %v", err)
	}
}

// The same, when others have ended the membership and the node knows (found by the simulator, seed 4799).
func TestNoChangesAfterRemoval(t *testing.T) {
	w := newWorld(t)
	all := w.cluster("a", "b")
	w.cut("a", "b")
	b := all[1]
	eventually(t, b, func() bool { return !anyAlive(b) })
	m, err := b.current()
	must(t, err)
	must(t, m.store.Batch(m.removal(m.id.Node())))
	wantErr(t, b.Put("k", []byte("v")), ErrEvicted)
	wantErr(t, b.RemoveNode("a"), ErrEvicted)
	if _, err := b.Node("a"); err != nil {
		t.Error("removed nevertheless:", err)
	}
	must(t, b.Leave(t.Context(), LeaveOptions{}))
}

// Whoever let a newcomer in may leave before the others have heard of it: the newcomer introduces itself (found by the simulator, seed 2172).
func TestNewcomerWhomOnlyALeaverKnew(t *testing.T) {
	w := newWorld(t)
	all := w.cluster("a", "b")
	a, b, c := all[0], all[1], w.open(w.config("c"))
	w.cut("a", "b")
	w.cut("a", "c")
	w.join(c, b)
	eventually(t, c, func() bool { return anyAlive(c) })
	must(t, b.Leave(t.Context(), LeaveOptions{}))
	m, err := a.current()
	must(t, err)
	id := c.Self().ID
	if !m.mayConnect(transport.Meta, id) || m.mayConnect(transport.Log, id) || m.mayConnect(transport.Sync, id) {
		t.Error("somebody unknown may exchange metadata, and nothing else")
	}
	w.heal()
	eventually(t, a, func() bool { n, err := a.Node(id); return err == nil && n.Alive && m.mayConnect(transport.Log, id) })
	w.connected(a, c)
	must(t, c.Leave(t.Context(), LeaveOptions{}))
	if m.mayConnect(transport.Meta, id) {
		t.Error("who has left may come back")
	}
}

// A node that was removed stays removed, whomever it reaches afterwards and whatever it says then: with another address its record is newer than its
// removal, and who has heard of neither takes it for a member.
func TestRemovedNodeComesBackThroughSomebodyUnaware(t *testing.T) {
	w := newWorld(t)
	all := w.cluster("a", "b")
	a, b, c := all[0], all[1], w.open(w.config("c"))
	w.cut("a", "b")
	w.cut("a", "c")
	w.join(c, b)
	eventually(t, b, func() bool { n, err := b.Node("c"); return err == nil && n.Alive && !n.Pending })
	id := c.Self().ID
	must(t, c.Close())
	eventually(t, b, func() bool { n, err := b.Node(id); return err == nil && !n.Alive })
	must(t, b.RemoveNode(id))
	w.heal()
	w.cut("a", "b")
	w.cut("b", "c")
	back := w.open(c.cfg) // listens on another port
	eventually(t, a, func() bool { n, err := a.Node(id); return err == nil && n.Alive })
	w.heal()
	eventually(t, a, func() bool { _, err := a.Node(id); return err != nil })
	eventually(t, back, back.Evicted)
	if n, err := b.Node(id); err == nil {
		t.Errorf("it is back: %+v", n)
	}
	must(t, back.Leave(t.Context(), LeaveOptions{Force: true}))
}

// What somebody who leaves itself has confirmed could be lost with it.
func TestLeaverConfirmsNoOther(t *testing.T) {
	w := newWorld(t)
	all := w.cluster("a", "b")
	m, err := all[1].current()
	must(t, err)
	m.setLeaving(true)
	wantErr(t, all[0].Leave(t.Context(), LeaveOptions{}), ErrUnconfirmed)
	m.setLeaving(false)
	if n := all[1].Nodes(); len(n) != 2 {
		t.Errorf("members: %+v", n)
	}
	must(t, all[0].Leave(t.Context(), LeaveOptions{}))
}

func TestLastNodeLeaves(t *testing.T) {
	w := newWorld(t)
	a := w.cluster("a")[0]
	must(t, a.Leave(t.Context(), LeaveOptions{}))
	inNoCluster(t, w, a)
}

func TestLeaveUnheardNeedsForce(t *testing.T) {
	w := newWorld(t)
	all := w.cluster("a", "b")
	a, b := all[0], all[1]
	w.cut("a", "b")
	wantErr(t, b.Leave(t.Context(), LeaveOptions{}), ErrUnconfirmed)
	if b.ID() == "" || b.Evicted() {
		t.Fatal("has left nevertheless")
	}
	must(t, b.Leave(t.Context(), LeaveOptions{Force: true}))
	inNoCluster(t, w, b)
	eventually(t, a, func() bool { n, err := a.Node("b"); return err == nil && !n.Alive })
	must(t, a.RemoveNode("b"))
	if n := a.Nodes(); len(n) != 1 {
		t.Fatalf("%+v", n)
	}
}

func TestDeadNodeIsNotAliveAtOnceAndCanBeRemoved(t *testing.T) {
	w := newWorld(t)
	all := w.cluster("a", "b", "c")
	a, b, c := all[0], all[1], all[2]
	wantErr(t, a.RemoveNode("b"), ErrNodeAlive)
	wantErr(t, a.RemoveNode("a"), ErrNodeAlive)
	wantErr(t, a.RemoveNode("x"), ErrNoNode)
	id := b.Self().ID
	must(t, b.Close())
	eventually(t, a, func() bool {
		n, err := a.Node(id)
		return err == nil && !n.Alive && n.Problem != "" && !n.LastContact.IsZero()
	})
	must(t, a.RemoveNode("b"))
	eventually(t, c, func() bool { return len(c.Nodes()) == 2 })

	// It does not know, and comes back: refused, and it learns why.
	w.heal()
	back := w.open(b.cfg)
	eventually(t, back, func() bool {
		for _, n := range back.Nodes() {
			if n.Alive && n.ID != id || n.Problem == "" && n.ID != id {
				return false
			}
		}
		return true
	})
	must(t, back.Put("poison", []byte("x")))
	must(t, a.Sync(t.Context()))
	if _, _, ok := a.Get("poison"); ok {
		t.Fatal("took something from a removed node")
	}
	eventually(t, a, func() bool { return a.Stats().Conns.NotMember > 0 })
	_, err := back.DialNode(t.Context(), transport.Log, a.Self().ID)
	wantErr(t, err, transport.ErrNotMember)
	_, err = a.DialNode(t.Context(), transport.Log, id)
	wantErr(t, err, ErrNoNode)
	must(t, back.Leave(t.Context(), LeaveOptions{Force: true}))
	w.join(back, a)
	w.connected(a, c, back)
}

func TestConnectionsOfARemovedNodeAreCut(t *testing.T) {
	w := newWorld(t)
	all := w.cluster("a", "b", "c")
	a, b, c := all[0], all[1], all[2]
	a.Handle(transport.Log, func(ctx context.Context, conn *transport.Conn, _ NodeInfo) {
		_, _, _ = conn.ReadFrame(nil)
	})
	conn, err := b.DialNode(t.Context(), transport.Log, a.Self().ID)
	must(t, err)
	defer conn.Close()
	// Another node, to which b is dead, removes it.
	w.cut("b", "c")
	eventually(t, c, func() bool { n, err := c.Node("b"); return err == nil && !n.Alive })
	must(t, c.RemoveNode("b"))
	if _, _, err := conn.ReadFrame(nil); err == nil {
		t.Fatal("still connected")
	}
	eventually(t, b, func() bool { return b.Evicted() || !anyAlive(b) })
	must(t, b.Leave(t.Context(), LeaveOptions{Force: true}))
}

func anyAlive(c *Cluster) bool {
	for _, n := range c.Nodes() {
		if n.Alive && n.ID != c.Self().ID {
			return true
		}
	}
	return false
}

func TestForeignClusterStaysOut(t *testing.T) {
	w := newWorld(t)
	a := w.cluster("a")[0]
	f := w.open(w.config("f"))
	must(t, f.Create(t.Context()))
	m, err := f.current()
	must(t, err)
	conn, err := tls.Dial("tcp", a.Self().Addr, &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{string(transport.Meta)}, Certificates: []tls.Certificate{m.id.Certificate()},
	})
	if err == nil {
		defer conn.Close()
		if n, err := conn.Read(make([]byte, 1)); err == nil || n > 0 {
			t.Fatal("a foreigner was sent something")
		}
	}
	eventually(t, a, func() bool { return a.Stats().Conns.Foreign == 1 })
	// Even when its record comes into our metadata, by whatever way.
	must(t, a.Put(nodeKey(f.Self().ID), record{Name: "f", Addr: f.Self().Addr}.encode()))
	_, err = a.DialNode(t.Context(), transport.Meta, f.Self().ID)
	wantErr(t, err, identity.ErrForeign)
}
