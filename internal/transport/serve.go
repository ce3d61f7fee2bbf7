package transport

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"mars/internal/identity"
)

// After the TLS handshake the server answers with one frame, so that the client knows whether it is accepted, and if not, why.
const (
	kindAccept byte = 1
	kindRefuse byte = 2 // payload: a reason, see refusals
)

// refusals are the reasons that travel.
var refusals = map[string]error{
	"not-a-member": ErrNotMember,
	"busy":         ErrBusy,
}

const (
	minBackoff = 5 * time.Millisecond
	maxBackoff = time.Second
)

// Serve accepts connections on ln until the endpoint is closed, which also closes ln, and then returns nil. Errors of accepting, such as
// running out of file descriptors, are reported and outlived.
func (e *Endpoint) Serve(ln net.Listener) error {
	if !e.own(ln) {
		return errors.Join(ErrClosed, ln.Close())
	}
	backoff := minBackoff
	for {
		raw, err := ln.Accept()
		switch {
		case err == nil:
			backoff = minBackoff
			e.admit(raw)
		case e.ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return e.disown(ln)
		default:
			e.counts.acceptErrors.Add(1)
			e.log.warn("accept failed", "accept", "err", err, "retry", backoff)
			e.pause(backoff)
			backoff = min(2*backoff, maxBackoff)
		}
	}
}

func (e *Endpoint) own(ln net.Listener) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.lns[ln] = struct{}{}
	return e.ctx.Err() == nil
}

func (e *Endpoint) disown(ln net.Listener) error {
	e.mu.Lock()
	delete(e.mu.lns, ln)
	e.mu.Unlock()
	if err := ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func (e *Endpoint) pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-e.ctx.Done():
	}
}

// pending is a connection that is not authenticated yet.
type pending struct {
	raw  *progressConn
	host string
	age  uint64
}

// admit starts the handshake of a new connection, at the expense of an older one if there are too many.
func (e *Endpoint) admit(raw net.Conn) {
	e.prepare(raw, "")
	p := &pending{raw: newProgressConn(raw), host: hostOf(raw)}
	victim, ok := e.addPending(p)
	if victim != nil {
		e.counts.evicted.Add(1)
		e.log.warn("connection cut", "too many handshakes", "addr", victim.host)
		victim.raw.Close()
	}
	if !ok {
		raw.Close()
	}
}

// addPending registers p and starts its goroutine, which ends with the handler of the connection, at the latest when the endpoint is closed.
func (e *Endpoint) addPending(p *pending) (victim *pending, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() != nil {
		return nil, false
	}
	victim = e.victim(p.host)
	if victim != nil {
		delete(e.mu.pending, victim)
	}
	e.mu.age++
	p.age = e.mu.age
	e.mu.pending[p] = struct{}{}
	e.wg.Go(func() { e.incoming(p) })
	return victim, true
}

// victim chooses whom to cut off to make room for a connection from host: the oldest of that host if it has too many, or else, if there are too many in
// all, the oldest of the host that has most. So whoever opens many gets nobody else cut off.
func (e *Endpoint) victim(host string) *pending {
	count, oldest := map[string]int{}, map[string]*pending{}
	busiest := ""
	for p := range e.mu.pending {
		count[p.host]++
		if o := oldest[p.host]; o == nil || p.age < o.age {
			oldest[p.host] = p
		}
		if count[p.host] > count[busiest] {
			busiest = p.host
		}
	}
	switch {
	case count[host] >= e.cfg.Limits.HandshakesPerHost:
		return oldest[host]
	case len(e.mu.pending) >= e.cfg.Limits.Handshakes:
		return oldest[busiest]
	}
	return nil
}

func hostOf(c net.Conn) string {
	host, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		return c.RemoteAddr().String()
	}
	return host
}

func (e *Endpoint) incoming(p *pending) {
	c, err := e.handshake(p)
	e.mu.Lock()
	delete(e.mu.pending, p)
	e.mu.Unlock()
	if err != nil {
		p.raw.Close()
		e.refused(p, err)
		return
	}
	defer c.Close()
	e.counts.accepted.Add(1)
	e.cfg.Handler(e.ctx, c)
}

func (e *Endpoint) refused(p *pending, err error) {
	if e.ctx.Err() != nil {
		return
	}
	e.counts.refuse(err)
	e.log.warn("connection refused", reason(err), "addr", p.host, "err", err)
}

func (e *Endpoint) handshake(p *pending) (*Conn, error) {
	end := e.withTimeout(e.ctx, p.raw)
	c, err := e.accept(p)
	if cause := end(); cause != nil {
		if c != nil {
			c.Close()
		}
		return nil, cause
	}
	return c, err
}

func (e *Endpoint) accept(p *pending) (*Conn, error) {
	var peer string
	t := tls.Server(p.raw, e.serverTLS(&peer))
	if err := t.HandshakeContext(e.ctx); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	class := Class(t.ConnectionState().NegotiatedProtocol)
	if !known(class) {
		return nil, errNoProtocol
	}
	c := newConn(p.raw, t, class, peer, e.cfg.Limits.maxFrame(class))
	if err := e.admitPeer(c, p.host); err != nil {
		refuse(c, err)
		c.Close()
		return nil, err
	}
	e.prepare(p.raw.Conn, class)
	if err := sendAccept(c); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func sendAccept(c *Conn) error {
	if err := c.WriteFrame(kindAccept); err != nil {
		return err
	}
	return c.Flush()
}

var errNoProtocol = errors.New("no protocol was negotiated")

func (e *Endpoint) admitPeer(c *Conn, host string) error {
	if c.class == Join {
		return e.register(c, host)
	}
	if err := e.register(c, c.peer); err != nil {
		return err
	}
	return e.checkMember(c.class, c.peer)
}

// checkMember is called when the connection is registered: either this sees that the peer was removed, or the Recheck after the removal
// sees the connection.
func (e *Endpoint) checkMember(class Class, id string) error {
	if !e.cfg.Members(class, id) {
		return fmt.Errorf("%w: node %s", ErrNotMember, id)
	}
	return nil
}

// refuse tells the client why, as well as it can: the connection is given up anyway.
func refuse(c *Conn, why error) {
	for text, err := range refusals {
		if errors.Is(why, err) && c.WriteFrame(kindRefuse, []byte(text)) == nil {
			_ = c.Flush()
		}
	}
}

// serverTLS asks for a certificate unless the client wants to join.
func (e *Endpoint) serverTLS(peer *string) *tls.Config {
	member, joiner := e.baseTLS(), e.baseTLS()
	member.NextProtos = []string{string(Meta), string(Log), string(Sync)}
	member.ClientAuth = tls.RequireAnyClientCert // whose chain VerifyConnection checks
	member.VerifyConnection = e.verifier("", peer)
	joiner.NextProtos = []string{string(Join)}
	outer := e.baseTLS()
	outer.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		switch {
		case len(hello.SupportedProtos) != 1:
			return nil, errNoProtocol
		case hello.SupportedProtos[0] == string(Join):
			return joiner, nil
		}
		return member, nil
	}
	return outer
}

func reason(err error) string {
	switch {
	case errors.Is(err, ErrNotMember):
		return "not a member"
	case errors.Is(err, identity.ErrForeign):
		return "foreign cluster"
	case errors.Is(err, ErrBusy):
		return "too many connections"
	case errors.Is(err, errHandshakeTime):
		return "handshake took too long"
	}
	return "handshake failed"
}
