package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"mars/internal/identity"
)

// leaveTime is how long one other member may take to confirm.
const leaveTime = 10 * time.Second

// LeaveOptions modify Leave.
type LeaveOptions struct {
	// Force leaves although no other member can be told. They go on to list this node, until one of them removes it.
	Force bool
}

// Leave ends this host's membership: one of the other members confirms that it knows, then identity and metadata are deleted here. ErrUnconfirmed
// says that none has; then nothing has changed.
func (c *Cluster) Leave(ctx context.Context, o LeaveOptions) error {
	end, err := c.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	m, err := c.current()
	if err != nil {
		return fmt.Errorf("leave cluster: %w", err)
	}
	m.setLeaving(true)
	defer m.setLeaving(false)
	if err := m.sayGoodbye(ctx); err != nil && !o.Force {
		return fmt.Errorf("leave cluster: %w: if another node leaves at this moment try again, else connect the network, or use --force and remove this node at "+
			"another one later", err)
	} else if err != nil {
		m.log.Warn("left without telling anybody", "err", err)
	}
	if err := c.forget(); err != nil {
		return fmt.Errorf("leave cluster: %w", err)
	}
	return nil
}

// forget deletes the membership, the identity first: a crash in between leaves a file that the next Open removes.
func (c *Cluster) forget() error {
	defer c.notifier.Notify()
	stopped := c.stop()
	if err := identity.Remove(c.cfg.Dir); err != nil {
		return err
	}
	return errors.Join(stopped, c.removeStore())
}

// sayGoodbye returns nil as soon as one other member has confirmed, or if there is none.
func (m *member) sayGoodbye(ctx context.Context) error {
	if m.evicted() {
		return nil
	}
	var err error
	for _, p := range m.allPeers() {
		err = m.goodbyeTo(ctx, p)
		if err == nil {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnconfirmed, err)
	}
	return nil
}

func (m *member) goodbyeTo(ctx context.Context, p *peer) error {
	ctx, cancel := context.WithTimeoutCause(ctx, leaveTime, fmt.Errorf("node %s does not answer", p.id))
	defer cancel()
	err := p.request(ctx, requestLeave)
	if err != nil && m.evicted() {
		return nil // the deletion came faster than the answer
	}
	return err
}

// letGo ends the membership of a peer that asks for that. Who is about to leave, or was removed, cannot confirm: nobody would take it from here. Who
// has refused what the peer has changed with a wrong clock must not: that would be lost with the peer.
func (m *member) letGo(id string, refused bool) error {
	m.changes.RLock()
	defer m.changes.RUnlock()
	if m.leaving {
		return fmt.Errorf("node %s: %w", m.name, ErrLeaving)
	}
	if m.evicted() {
		return fmt.Errorf("node %s: %w", m.name, ErrEvicted)
	}
	if !m.isMember(id) {
		return fmt.Errorf("node %s: %w: %s", m.name, ErrNoNode, id) // and nothing would remember that it has left
	}
	if refused {
		return fmt.Errorf("node %s: %w", m.name, ErrRefused)
	}
	return m.store.Batch(m.removal(id))
}

// RemoveNode removes a dead node, given by name or id, from the cluster. ErrNodeAlive refuses one that could leave by itself. A removed node that
// comes back is refused by all who know of the removal, and has to leave and join again.
func (c *Cluster) RemoveNode(nameOrID string) error {
	m, err := c.current()
	if err != nil {
		return fmt.Errorf("remove node %s: %w", nameOrID, err)
	}
	n, err := m.find(nameOrID)
	if err != nil {
		return fmt.Errorf("remove node: %w", err)
	}
	if err := MayRemove(n, m.id.Node()); err != nil {
		return err
	}
	return c.Batch(m.removal(n.ID))
}

// Sync returns when all that alive members had put before is here, all that was put here before is there, and both are on disk. Members
// that are not alive are left out; a member that dies meanwhile, too. An error says who has not answered when ctx ended.
func (c *Cluster) Sync(ctx context.Context) error {
	m, err := c.current()
	if err != nil {
		return err
	}
	peers := m.allPeers()
	errs := make([]error, len(peers))
	var wg sync.WaitGroup
	for i, p := range peers {
		wg.Go(func() { errs[i] = p.sync(ctx) }) // ends with ctx or the peer
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return m.store.Flush()
}

func (p *peer) sync(ctx context.Context) error {
	err := p.request(ctx, requestSync)
	if err == nil || errors.Is(err, errNotAlive) || p.ctx.Err() != nil && ctx.Err() == nil {
		return nil
	}
	return fmt.Errorf("wait for node %s: %w", p.id, err)
}
