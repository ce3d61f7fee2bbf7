package cluster

import (
	"context"
	"errors"
	"fmt"

	"mars/internal/identity"
	"mars/internal/meta"
	"mars/internal/transport"
)

// Create makes a new cluster with this host as its only member, and starts to listen.
func (c *Cluster) Create(ctx context.Context) error {
	end, err := c.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if _, err := c.current(); err == nil {
		return fmt.Errorf("create cluster: %w", ErrInCluster)
	}
	id, err := identity.Create(c.cfg.Now())
	if err != nil {
		return fmt.Errorf("create cluster: %w", err)
	}
	at, err := c.listen()
	if err != nil {
		return fmt.Errorf("create cluster: %w", err)
	}
	self := record{Name: c.cfg.NodeName, Addr: at.advertise}
	entry := meta.Change{Key: nodeKey(id.Node()), Value: self.encode()}
	if err := c.found(id, at, func(s *meta.Store) error { return s.Batch([]meta.Change{entry}) }); err != nil {
		return fmt.Errorf("create cluster: %w", err)
	}
	return nil
}

// found makes the host a member with the identity id and the metadata that fill puts into the empty store. The moment of truth is when the
// identity is stored; before, a crash leaves nothing but a file that the next Open removes. It takes over the listener.
func (c *Cluster) found(id *identity.Identity, at address, fill func(*meta.Store) error) error {
	store, err := c.freshStore(id.Node())
	if err != nil {
		return errors.Join(err, at.ln.Close())
	}
	err = fill(store)
	if err == nil {
		err = id.Save(c.cfg.Dir)
	}
	if err != nil {
		return errors.Join(err, store.Close(), at.ln.Close(), c.removeStore())
	}
	return c.start(id, store, at)
}

func (c *Cluster) freshStore(node string) (*meta.Store, error) {
	if err := c.removeStore(); err != nil {
		return nil, err
	}
	return c.openStore(node, false)
}

// Join makes this host a member of the cluster that issued token. The address is that of the member that issued it; empty means the one in the
// token. When it returns nil everything is stored. When it fails - or the host crashes - this host is in no cluster, and needs a new token if the old
// one was accepted already; the errors of package identity and ErrNameTaken tell why it was refused.
func (c *Cluster) Join(ctx context.Context, addr, token string) error {
	end, err := c.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if _, err := c.current(); err == nil {
		return fmt.Errorf("join cluster: %w", ErrInCluster)
	}
	tok, err := identity.ParseToken(token)
	if err != nil {
		return fmt.Errorf("join cluster: %w", err)
	}
	if addr != "" {
		tok.Addr = addr
	}
	at, err := c.listen() // first, because the others must be told where
	if err != nil {
		return fmt.Errorf("join cluster: %w", err)
	}
	if err := c.joinVia(ctx, tok, at); err != nil {
		return fmt.Errorf("join cluster at %s: %w", tok.Addr, err)
	}
	return nil
}

// joinVia takes over the listener.
func (c *Cluster) joinVia(ctx context.Context, tok identity.Token, at address) error {
	conn, err := transport.DialJoin(ctx, c.cfg.Network, tok.Addr, tok.Pin)
	if err != nil {
		return errors.Join(err, at.ln.Close())
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	id, entries, err := c.apply(conn, tok, at.advertise)
	if err != nil {
		return errors.Join(err, at.ln.Close())
	}
	if err := c.found(id, at, func(s *meta.Store) error { return s.Import(entries) }); err != nil {
		return err
	}
	// Only to let the other side log it. The proof is the record that this node publishes itself from now on.
	if conn.WriteFrame(joinDone) == nil {
		_ = conn.Flush()
	}
	return nil
}

// apply asks to be let in and receives what a member has to have.
func (c *Cluster) apply(conn *transport.Conn, tok identity.Token, advertise string) (*identity.Identity, []meta.Entry, error) {
	req, err := identity.NewRequest()
	if err != nil {
		return nil, nil, err
	}
	ask := joinAsk{Proto: proto, Secret: tok.Secret[:], Name: c.cfg.NodeName, Addr: advertise, CSR: req.CSR()}
	if err := writeJSON(conn, joinRequest, ask); err != nil {
		return nil, nil, err
	}
	if err := conn.Flush(); err != nil {
		return nil, nil, err
	}
	grant, err := readGrant(conn)
	if err != nil {
		return nil, nil, err
	}
	id, err := req.Complete(grant)
	if err != nil {
		return nil, nil, err
	}
	if id.Pin() != tok.Pin {
		return nil, nil, fmt.Errorf("%w: the authority is not the one that the token names", identity.ErrForeign)
	}
	entries, err := readAll(conn)
	return id, entries, err
}

// readAll receives the whole metadata.
func readAll(conn *transport.Conn) ([]meta.Entry, error) {
	var all []meta.Entry
	var buf []byte
	size := 0
	for {
		kind, payload, err := conn.ReadFrame(buf)
		if err != nil {
			return nil, err
		}
		buf = payload[:0]
		switch kind {
		case joinEnd:
			return all, nil
		case joinEntries:
		default:
			return nil, fmt.Errorf("%w: frame %d among the metadata", errProtocol, kind)
		}
		if size += len(payload); size > maxJoinBytes {
			return nil, fmt.Errorf("%w: more than %d bytes of metadata", errProtocol, maxJoinBytes)
		}
		entries, err := decodeEntries(payload)
		if err != nil {
			return nil, err
		}
		all = append(all, entries...)
	}
}
