// Package transport connects the nodes of one cluster, and nobody else: mutual TLS 1.3 on one TCP port, frames on top.
//
// Guarantees: before a Conn exists both ends have proven by certificate which node they are, both are members of the cluster at that moment
// as far as the other knows, and the class of traffic is agreed on. The exception is class Join, for newcomers, where only the server proves
// itself and the payload must carry a token. Who is removed from the cluster loses his connections with the next Recheck. Whatever a stranger
// does - connect and be silent, connect a thousand times, speak an old protocol - costs a bounded amount of memory and time and is counted.
//
// What it does not do: it knows no addresses, it does not reconnect, and it does not interpret frames.
package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"mars/internal/identity"
)

// Conditions that callers branch on.
var (
	// ErrNotMember says that the other end, or this node in the eyes of the other end, is not a member of the cluster (any more, or yet).
	ErrNotMember = errors.New("not a member of the cluster")
	// ErrBusy says that the other end has too many connections.
	ErrBusy = errors.New("too many connections")
	// ErrWrongNode says that another node than expected answered.
	ErrWrongNode = errors.New("wrong node")
	// ErrClosed says that the endpoint was closed.
	ErrClosed = errors.New("transport is closed")
)

// Config configures an Endpoint. Identity, Members and Handler are required.
type Config struct {
	Identity *identity.Identity
	// Members tells whether the node with this id may have a connection of this class now. It is asked about nodes that have a certificate of the
	// cluster, for each connection, and must not block.
	Members func(class Class, id string) bool
	// Handler serves an incoming connection, which is closed when it returns. Its context ends with the endpoint.
	Handler func(ctx context.Context, c *Conn)
	Network Network // default TCP
	Log     *slog.Logger
	Limits  Limits
	// DSCP marks the packets of a class, 0 to 63; default no mark.
	DSCP map[Class]int
}

// Endpoint is one node's end of all connections. It is safe for concurrent use.
type Endpoint struct {
	cfg    Config
	log    *limitedLog
	counts counters
	ctx    context.Context
	stop   context.CancelCauseFunc
	wg     sync.WaitGroup

	mu struct {
		sync.Mutex
		pending  map[*pending]struct{}
		age      uint64           // grows with each pending handshake and each connection
		conns    map[*Conn]string // to the key in perPeer; empty for outgoing ones
		incoming int
		joining  int            // of class Join, not in incoming
		perPeer  map[string]int // incoming ones
		lns      map[net.Listener]struct{}
	}
}

// New returns an endpoint that neither listens nor dials yet. The caller must Close it.
func New(cfg Config) *Endpoint {
	if cfg.Network == nil {
		cfg.Network = TCP{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Limits = cfg.Limits.withDefaults()
	e := &Endpoint{cfg: cfg, log: newLimitedLog(cfg.Log)}
	e.ctx, e.stop = context.WithCancelCause(context.Background())
	e.mu.pending = map[*pending]struct{}{}
	e.mu.conns = map[*Conn]string{}
	e.mu.perPeer = map[string]int{}
	e.mu.lns = map[net.Listener]struct{}{}
	return e
}

// Close ends all listeners, handshakes and connections and returns when all handlers have returned.
func (e *Endpoint) Close() error {
	e.stop(ErrClosed)
	for _, c := range e.snapshot() {
		c.Close()
	}
	e.wg.Wait()
	return nil
}

type closer interface{ Close() error }

// snapshot lists everything that is open.
func (e *Endpoint) snapshot() []closer {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []closer
	for ln := range e.mu.lns {
		all = append(all, ln)
	}
	for p := range e.mu.pending {
		all = append(all, p.raw)
	}
	for c := range e.mu.conns {
		all = append(all, c)
	}
	return all
}

// Recheck closes all connections of the classes to nodes that are not members any more, and returns how many.
func (e *Endpoint) Recheck(classes ...Class) int {
	n := 0
	for _, c := range e.strangers(classes) {
		e.log.warn("connection cut", "not a member", "peer", c.peer, "addr", c.addr, "class", c.class)
		c.Close()
		n++
	}
	return n
}

func (e *Endpoint) strangers(classes []Class) []*Conn {
	var out []*Conn
	for _, c := range e.connsOf(classes) {
		if c.peer != "" && !e.cfg.Members(c.class, c.peer) {
			out = append(out, c)
		}
	}
	return out
}

func (e *Endpoint) connsOf(classes []Class) []*Conn {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []*Conn
	for c := range e.mu.conns {
		for _, class := range classes {
			if c.class == class {
				out = append(out, c)
			}
		}
	}
	return out
}

// register ties the end of c to the book-keeping. Incoming connections count against the limits, under a key that is not empty.
func (e *Endpoint) register(c *Conn, key string) error {
	silent, err := e.tryRegister(c, key)
	if silent != nil {
		e.counts.evicted.Add(1)
		e.log.warn("connection cut", "too many newcomers", "addr", silent.addr)
		silent.Close()
	}
	return err
}

func (e *Endpoint) tryRegister(c *Conn, key string) (silent *Conn, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() != nil {
		return nil, ErrClosed
	}
	if key != "" {
		n, most, mostPerPeer := e.counter(c.class)
		if full := e.mu.perPeer[key] >= mostPerPeer; full || *n >= most {
			if silent = e.silentJoin(c.class, key, full); silent == nil {
				return nil, ErrBusy
			}
			e.forget(silent)
		}
		*n++
		e.mu.perPeer[key]++
	}
	e.mu.age++
	c.age = e.mu.age
	e.mu.conns[c] = key
	c.onClose = func() { e.unregister(c) }
	return silent, nil
}

// silentJoin finds whom to cut off when there are too many connections of class Join: the oldest one on which nothing was said yet, of one host that
// has too many, or of that which has most. It returns nil if there is none, or if class is another one.
func (e *Endpoint) silentJoin(class Class, host string, ofHost bool) *Conn {
	if class != Join {
		return nil
	}
	count, oldest := map[string]int{}, map[string]*Conn{}
	busiest := ""
	for c, key := range e.mu.conns {
		if c.class != Join || key == "" || c.spoken.Load() {
			continue
		}
		count[key]++
		if o := oldest[key]; o == nil || c.age < o.age {
			oldest[key] = c
		}
		if count[key] > count[busiest] {
			busiest = key
		}
	}
	if ofHost {
		return oldest[host]
	}
	return oldest[busiest]
}

// counter returns what incoming connections of a class count against, with its limits.
func (e *Endpoint) counter(class Class) (n *int, most, mostPerPeer int) {
	l := &e.cfg.Limits
	if class == Join {
		return &e.mu.joining, l.Joins, l.HandshakesPerHost
	}
	return &e.mu.incoming, l.Conns, l.ConnsPerPeer
}

func (e *Endpoint) unregister(c *Conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.forget(c)
}

// forget needs mu. It does nothing when c is forgotten already.
func (e *Endpoint) forget(c *Conn) {
	key, ok := e.mu.conns[c]
	delete(e.mu.conns, c)
	if !ok || key == "" {
		return
	}
	n, _, _ := e.counter(c.class)
	*n--
	if e.mu.perPeer[key]--; e.mu.perPeer[key] == 0 {
		delete(e.mu.perPeer, key)
	}
}

// prepare sets what has no bearing on correctness; failures are reported, not returned.
func (e *Endpoint) prepare(raw net.Conn, class Class) {
	if err := setUserTimeout(raw); err != nil {
		e.log.warn("socket option not set", "user timeout", "err", err)
	}
	if dscp, ok := e.cfg.DSCP[class]; ok {
		if err := setDSCP(raw, dscp); err != nil {
			e.log.warn("socket option not set", "dscp", "class", class, "err", err)
		}
	}
}

// baseTLS is what both sides share. Verification is ours (identity.Verify), for it must neither look at the date nor at host names; no
// session is ever resumed, so that it always takes place.
func (e *Endpoint) baseTLS() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{e.cfg.Identity.Certificate()},
		SessionTicketsDisabled: true,
		InsecureSkipVerify:     true, // the standard verification; ours is VerifyConnection

		DynamicRecordSizingDisabled: true, // bulk is our business
	}
}

// verifier returns a function for tls.Config.VerifyConnection that stores the peer's node id.
func (e *Endpoint) verifier(class Class, peer *string) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		if class != "" && Class(cs.NegotiatedProtocol) != class {
			return fmt.Errorf("no agreement on protocol %s", class)
		}
		if Class(cs.NegotiatedProtocol) == Join {
			return nil
		}
		id, err := e.verify(cs.PeerCertificates)
		*peer = id
		return err
	}
}

func (e *Endpoint) verify(certs []*x509.Certificate) (string, error) {
	id, err := e.cfg.Identity.Verify(certs)
	if err != nil {
		return "", err
	}
	if id == e.cfg.Identity.Node() {
		return "", fmt.Errorf("%w: this node itself", ErrWrongNode)
	}
	return id, nil
}

// withTimeout bounds a handshake on raw: when ctx ends or the time is over raw is closed. The caller must call the function returned; it
// tells why, if that had happened.
func (e *Endpoint) withTimeout(ctx context.Context, raw net.Conn) (end func() error) {
	ctx, cancel := context.WithTimeoutCause(ctx, e.cfg.Limits.HandshakeTimeout, errHandshakeTime)
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	return func() error {
		defer cancel()
		if !stop() {
			return context.Cause(ctx)
		}
		return nil
	}
}

var errHandshakeTime = errors.New("handshake took too long")

const maxRefusal = 1 << 10
