package cluster

import (
	"context"
	"fmt"
	"time"

	"mars/internal/identity"
	"mars/internal/meta"
	"mars/internal/transport"
)

// Times on one Join connection: for everything, and for a stranger to say what it wants.
const (
	letInTime = 2 * time.Minute
	askTime   = 10 * time.Second
)

// IssueToken makes a token with which one host can join within ttl, at this node.
func (c *Cluster) IssueToken(ttl time.Duration) (string, error) {
	m, err := c.current()
	if err != nil {
		return "", err
	}
	if ttl < time.Second {
		return "", fmt.Errorf("%w: a join token must be valid for at least a second, not %s", ErrConfig, ttl)
	}
	now := c.cfg.Now()
	tok := identity.NewToken(m.at.advertise, m.id.Pin(), now.Add(ttl))
	if err := m.tokens.Add(tok, now); err != nil {
		return "", err
	}
	return tok.String(), nil
}

// letIn serves a newcomer.
func (m *member) letIn(ctx context.Context, conn *transport.Conn) {
	ctx, cancel := context.WithTimeout(ctx, letInTime)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	silent := time.AfterFunc(askTime, func() { conn.Close() })
	ask, err := readAsk(conn)
	silent.Stop()
	if err != nil {
		m.log.Warn("newcomer refused", "addr", conn.RemoteAddr(), "err", err)
		return
	}
	id, err := m.letInOne(ctx, conn, ask)
	if err != nil {
		m.log.Warn("newcomer refused", "addr", conn.RemoteAddr(), "name", ask.Name, "err", err)
		return
	}
	// The rest is for the log only: the newcomer's own record tells all nodes when it is ready.
	kind, _, err := conn.ReadFrame(nil)
	if err != nil || kind != joinDone {
		m.log.Warn("newcomer has not confirmed", "peer", id, "name", ask.Name, "err", err)
		return
	}
	m.log.Info("node has joined", "peer", id, "name", ask.Name, "addr", ask.Addr)
}

func (m *member) letInOne(ctx context.Context, conn *transport.Conn, ask joinAsk) (id string, err error) {
	select {
	case m.joining <- struct{}{}:
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	id, grant, err := m.decide(ask)
	<-m.joining
	if err != nil {
		writeRefusal(conn, err)
		return "", err
	}
	if err := writeJSON(conn, joinGrant, grant); err != nil {
		return id, err
	}
	entries, _ := m.store.Since(0)
	for len(entries) > 0 {
		var payload []byte
		payload, entries = encodeEntries(entries)
		if err := conn.WriteFrame(joinEntries, payload); err != nil {
			return id, err
		}
	}
	if err := conn.WriteFrame(joinEnd); err != nil {
		return id, err
	}
	return id, conn.Flush()
}

// decide checks a newcomer, uses up its token, and makes it a (pending) member. What can be refused is refused before the token is spent.
func (m *member) decide(ask joinAsk) (id string, grant identity.Grant, err error) {
	m.amend() // if this node is the only one, nobody has said so yet
	now := m.c.cfg.Now()
	secret, err := identity.SecretOf(ask.Secret)
	if err != nil {
		return "", grant, err
	}
	if err := m.tokens.Check(secret, now); err != nil {
		return "", grant, err
	}
	rec := record{Name: ask.Name, Addr: ask.Addr, Pending: true}
	if err := rec.check(); err != nil {
		return "", grant, err
	}
	if m.evicted() {
		return "", grant, fmt.Errorf("%w: this node itself was removed: use another one", transport.ErrNotMember)
	}
	changes, err := m.makeRoom(ask.Name)
	if err != nil {
		return "", grant, err
	}
	if id, err = identity.Requester(ask.CSR); err != nil {
		return "", grant, err
	}
	if _, known := m.store.Entry(nodeKey(id)); known {
		return "", grant, fmt.Errorf("%w: the node id %s was in use before", identity.ErrBadID, id)
	}
	if grant, err = m.id.Sign(ask.CSR, now); err != nil {
		return "", grant, err
	}
	if err := m.tokens.Redeem(secret, now); err != nil {
		return "", identity.Grant{}, err
	}
	return id, grant, m.store.Batch(append(changes, meta.Change{Key: nodeKey(id), Value: rec.encode()}))
}

// makeRoom removes what stands in the way of a newcomer, or says why it must not.
func (m *member) makeRoom(name string) ([]meta.Change, error) {
	replaced, err := MakeRoom(m.nodes(), name)
	var changes []meta.Change
	for _, id := range replaced {
		changes = append(changes, m.removal(id)...)
	}
	return changes, err
}
