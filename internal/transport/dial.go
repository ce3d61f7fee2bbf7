package transport

import (
	"context"
	"crypto/tls"
	"fmt"

	"mars/internal/identity"
)

// Dial connects to the node with the id want, which should be at addr. The connection exists when both sides agree that the other one is a
// member; ErrNotMember, ErrWrongNode and ErrBusy tell why not. The caller must close it; the end of the endpoint closes it, too.
func (e *Endpoint) Dial(ctx context.Context, addr string, to Target) (*Conn, error) {
	c, err := e.dial(ctx, addr, to)
	if err != nil {
		return nil, fmt.Errorf("connect to %s (%s): %w", addr, to.Class, err)
	}
	return c, nil
}

// Target is what a Dial wants at the other end.
type Target struct {
	Class Class
	Node  string // id
}

func (e *Endpoint) dial(ctx context.Context, addr string, to Target) (*Conn, error) {
	if err := e.checkMember(to.Class, to.Node); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(e.ctx, func() { cancel(ErrClosed) })()
	raw, err := e.cfg.Network.Dial(ctx, addr)
	if err != nil {
		return nil, because(context.Cause(e.ctx), err)
	}
	e.prepare(raw, to.Class)
	p := newProgressConn(raw)
	end := e.withTimeout(ctx, p)
	c, err := e.connect(ctx, p, to)
	if err = because(end(), err); err != nil {
		p.Close()
		if c != nil {
			c.Close()
		}
		return nil, err
	}
	return c, nil
}

// because gives the cause of err on the same line; either may be nil.
func because(cause, err error) error {
	switch {
	case cause == nil:
		return err
	case err == nil:
		return cause
	}
	return fmt.Errorf("%w: %w", cause, err)
}

func (e *Endpoint) connect(ctx context.Context, p *progressConn, to Target) (*Conn, error) {
	var peer string
	cfg := e.baseTLS()
	cfg.NextProtos = []string{string(to.Class)}
	verify := e.verifier(to.Class, &peer)
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verify(cs); err != nil {
			return err
		}
		if peer != to.Node {
			return fmt.Errorf("%w: wanted %s, got %s", ErrWrongNode, to.Node, peer)
		}
		return nil
	}
	t := tls.Client(p, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	c := newConn(p, t, to.Class, peer, e.cfg.Limits.maxFrame(to.Class))
	if err := c.awaitAccept(); err != nil {
		return nil, err
	}
	if err := e.register(c, ""); err != nil {
		return c, err
	}
	return c, e.checkMember(to.Class, peer)
}

// awaitAccept reads the server's word about this connection.
func (c *Conn) awaitAccept() error {
	kind, payload, err := readFrame(c.r, nil, maxRefusal)
	switch {
	case err != nil:
		return fmt.Errorf("refused by the other end: %w", err)
	case kind == kindAccept:
		return nil
	case kind != kindRefuse:
		return fmt.Errorf("unknown answer %d from the other end", kind)
	}
	if known := refusals[string(payload)]; known != nil {
		return fmt.Errorf("refused by the other end: %w", known)
	}
	return fmt.Errorf("refused by the other end: %.100q", payload)
}

// DialJoin connects a host that is in no cluster to a member of the cluster whose authority has the given pin. Only the server is authenticated.
// The caller must close the connection.
func DialJoin(ctx context.Context, network Network, addr string, pin identity.Pin) (*Conn, error) {
	limits := Limits{}.withDefaults()
	ctx, cancel := context.WithTimeoutCause(ctx, limits.HandshakeTimeout, errHandshakeTime)
	defer cancel()
	raw, err := network.Dial(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	p := newProgressConn(raw)
	stop := context.AfterFunc(ctx, func() { p.Close() })
	c, err := connectJoin(ctx, p, pin)
	if !stop() {
		err = because(context.Cause(ctx), err)
	}
	if err != nil {
		p.Close()
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	return c, nil
}

func connectJoin(ctx context.Context, p *progressConn, pin identity.Pin) (*Conn, error) {
	var peer string
	t := tls.Client(p, &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{string(Join)},
		InsecureSkipVerify: true, // the standard verification; ours is VerifyConnection
		VerifyConnection: func(cs tls.ConnectionState) (err error) {
			peer, err = identity.VerifyPinned(cs.PeerCertificates, pin)
			if err == nil && cs.NegotiatedProtocol != string(Join) {
				err = errNoProtocol
			}
			return err
		},
	})
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	c := newConn(p, t, Join, peer, Limits{}.maxFrame(Join))
	return c, c.awaitAccept()
}
