package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"mars/internal/identity"
	"mars/internal/meta"
	"mars/internal/transport"
)

// member is the activity of a host that is in a cluster. It is started once and closed once.
type member struct {
	c      *Cluster
	id     *identity.Identity
	name   string
	at     address
	store  *meta.Store
	tokens *identity.Tokens
	ep     *transport.Endpoint
	log    *slog.Logger
	ctx    context.Context
	stop   context.CancelCauseFunc
	wg     sync.WaitGroup
	// joining lets newcomers in one after the other, so that two cannot get the same name: who has put something in may go on.
	joining chan struct{}
	refused refusals

	// changes is held by those who change the metadata, so that none is made any more when leaving is set: once a peer has confirmed, nobody takes
	// anything from here.
	changes sync.RWMutex
	leaving bool // under changes

	mu struct {
		sync.Mutex
		peers map[string]*peer
	}
}

// refusals counts entries that were not taken from peers.
type refusals struct {
	count  atomic.Uint64
	last   atomic.Value // string
	logged atomic.Int64 // when, in nanoseconds since the epoch
}

const refusalEvery = 10 * time.Second

func newMember(c *Cluster, id *identity.Identity, store *meta.Store, at address) (*member, error) {
	tokens, err := identity.OpenTokens(c.cfg.Dir)
	if err != nil {
		return nil, err
	}
	m := &member{
		c: c, id: id, name: c.cfg.NodeName, at: at, store: store, tokens: tokens, joining: make(chan struct{}, 1),
		log: c.cfg.Log.With("node", c.cfg.NodeName),
	}
	m.mu.peers = map[string]*peer{}
	m.ctx, m.stop = context.WithCancelCause(context.Background())
	if err := m.publishSelf(); err != nil {
		return nil, err
	}
	m.ep = transport.New(transport.Config{
		Identity: id, Members: m.mayConnect, Handler: m.serve, Network: c.cfg.Network, Log: m.log, Limits: c.cfg.Limits, DSCP: c.cfg.DSCP,
	})
	return m, nil
}

// start begins to listen and to connect. Everything it starts ends in close.
func (m *member) start() {
	m.wg.Go(func() {
		if err := m.ep.Serve(m.at.ln); err != nil {
			m.log.Error("listener ended", "err", err)
		}
	})
	m.wg.Go(m.manage)
}

// close ends everything and returns when it has ended.
func (m *member) close() error {
	m.stop(ErrClosed)
	err := m.ep.Close()
	m.wg.Wait()
	return errors.Join(err, m.store.Close())
}

// manage keeps one peer per other member, until the member is closed.
func (m *member) manage() {
	changed, cancel := m.store.Watch()
	defer cancel()
	var before map[string]record
	for m.ctx.Err() == nil {
		now, bad := m.records()
		if !maps.Equal(now, before) {
			m.reconcile(now, bad)
			before = now
		}
		select {
		case <-changed:
		case <-m.ctx.Done():
		}
	}
}

// reconcile starts peers for new members and stops those of members that are gone.
func (m *member) reconcile(records map[string]record, bad []error) {
	m.reportRecords(records, bad)
	if _, in := records[m.id.Node()]; !in && !m.isLeaving() {
		m.log.Error("this node was removed from the cluster: use leave-cluster --force, then join again", "cluster", m.id.Cluster())
	}
	m.mu.Lock()
	for id, p := range m.mu.peers {
		if _, in := records[id]; !in {
			p.stop(transport.ErrNotMember)
			delete(m.mu.peers, id)
		}
	}
	for id := range records {
		if id != m.id.Node() && m.mu.peers[id] == nil {
			m.mu.peers[id] = m.startPeer(id)
		}
	}
	m.mu.Unlock()
	// Sessions of class Meta look after themselves, because they have to answer a leaving node.
	m.ep.Recheck(transport.Log, transport.Sync)
}

// setLeaving returns when all changes that were begun before are made.
func (m *member) setLeaving(leaving bool) {
	m.changes.Lock()
	defer m.changes.Unlock()
	m.leaving = leaving
}

// isLeaving: then it is no news to be removed.
func (m *member) isLeaving() bool {
	m.changes.RLock()
	defer m.changes.RUnlock()
	return m.leaving
}

// reportRecords tells the operator what is wrong with the list of nodes. Two nodes of the same name can come about when they join at two members at
// the same time.
func (m *member) reportRecords(records map[string]record, bad []error) {
	for _, err := range bad {
		m.log.Error("node record ignored", "err", err)
	}
	byName := map[string]string{}
	for id, r := range records {
		if other, taken := byName[r.Name]; taken {
			m.log.Error("two nodes have the same name: one of them has to leave, and to join with another name", "name", r.Name, "ids", []string{id, other})
		}
		byName[r.Name] = id
	}
}

// startPeer starts the goroutine that keeps the connection to a member; it ends when the peer or the member is stopped.
func (m *member) startPeer(id string) *peer {
	p := m.newPeer(id)
	m.wg.Go(p.run)
	return p
}

func (m *member) newPeer(id string) *peer {
	p := &peer{m: m, id: id}
	p.ctx, p.stop = context.WithCancelCause(m.ctx)
	p.mu.sessions = map[*session]struct{}{}
	return p
}

// peer returns the peer of a member, nil if there is none (yet).
func (m *member) peer(id string) *peer {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.peers[id]
}

func (m *member) allPeers() []*peer {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*peer
	for _, p := range m.mu.peers {
		out = append(out, p)
	}
	return out
}

// serve handles an incoming connection.
func (m *member) serve(ctx context.Context, conn *transport.Conn) {
	switch conn.Class() {
	case transport.Join:
		m.letIn(ctx, conn)
		return
	case transport.Meta:
		m.serveMeta(ctx, conn)
		return
	}
	h := m.c.handler(conn.Class())
	rec, err := m.record(conn.Peer())
	if h == nil || err != nil {
		m.log.Warn("connection not served", "class", conn.Class(), "peer", conn.Peer(), "handler", h != nil, "err", err)
		return
	}
	h(ctx, conn, m.info(conn.Peer(), rec))
}

// serveMeta runs a session that the peer has opened.
func (m *member) serveMeta(ctx context.Context, conn *transport.Conn) {
	p := m.peer(conn.Peer())
	if p == nil {
		p = m.newPeer(conn.Peer())
		defer p.stop(errIntroduced)
		p.guest = true
	}
	if err := p.talk(ctx, conn, false); err != nil && m.ctx.Err() == nil {
		m.log.Info("session ended", "peer", conn.Peer(), "err", err)
	}
}

// refusedEntry reports an entry that could not be taken, not more often than refusalEvery.
func (m *member) refusedEntry(peer string, err error) {
	m.refused.count.Add(1)
	m.refused.last.Store(fmt.Sprintf("from node %s: %v", peer, err))
	now := m.c.cfg.Now().UnixNano()
	if last := m.refused.logged.Load(); (now-last > int64(refusalEvery) || now < last) && m.refused.logged.CompareAndSwap(last, now) {
		m.log.Error("metadata refused", "peer", peer, "err", err, "total", m.refused.count.Load())
	}
}

// Stats counts what was refused.
type Stats struct {
	// Conns counts incoming connections.
	Conns transport.Stats
	// RefusedEntries counts metadata that peers have sent and that could not be taken, and LastRefusal says why the last one was not.
	RefusedEntries uint64
	LastRefusal    string
}

// Stats returns the counts since this host became a member or was started.
func (c *Cluster) Stats() Stats {
	m, err := c.current()
	if err != nil {
		return Stats{}
	}
	last, _ := m.refused.last.Load().(string)
	return Stats{Conns: m.ep.Stats(), RefusedEntries: m.refused.count.Load(), LastRefusal: last}
}
