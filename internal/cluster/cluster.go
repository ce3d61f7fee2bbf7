// Package cluster is a host's membership in a cluster: who the others are, whether they live, the metadata all share, and authenticated
// connections to them.
//
// Guarantees:
//   - A host is in a cluster or it is not: a crash during create, join or leave leaves one of the two, never half of it. The identity file is
//     the one and only sign (package identity); it appears last when joining and goes first when leaving.
//   - What Put returned from is on disk here, and on its way to every node that can be reached. All nodes end up with the same metadata when they
//     can talk, whatever happened before, without help (package meta).
//   - Nobody who is not a member gets or gives anything. A node is a member as long as the key node/ID exists. It is written by the node
//     that lets it in and by the node itself; anybody may delete it, and the deletion is remembered for ever.
//
// What it does not do: it knows no resources, and it does not decide anything about roles; losing contact has no consequence but being visible.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"mars/internal/identity"
	"mars/internal/lamport"
	"mars/internal/meta"
	"mars/internal/transport"
	"mars/internal/vfs"
)

// Conditions that callers branch on.
var (
	// ErrNoCluster says that this host is in no cluster.
	ErrNoCluster = errors.New("this host is in no cluster: use create-cluster or join-cluster first")
	// ErrInCluster says that this host is in a cluster already.
	ErrInCluster = errors.New("this host is in a cluster already: use leave-cluster first")
	// ErrNameTaken says that another member has the same node name.
	ErrNameTaken = errors.New("node name is taken")
	// ErrNoNode says that no member has that name or id.
	ErrNoNode = errors.New("no such node in the cluster")
	// ErrNodeAlive says that a node must leave by itself because it can.
	ErrNodeAlive = errors.New("node is alive")
	// ErrUnconfirmed says that no other member has taken note.
	ErrUnconfirmed = errors.New("no other member has confirmed")
	// ErrLeaving says that this host is about to leave: what it changes now nobody would take.
	ErrLeaving = errors.New("this host is leaving the cluster")
	// ErrEvicted says that another member has removed this node: what it changes nobody takes any more.
	ErrEvicted = errors.New("this node was removed from its cluster: use leave-cluster --force, then join again")
	// ErrRefused keeps a node in the cluster whose changes another one could not take: they would be lost.
	ErrRefused = errors.New("it has refused changes that are stamped too far in the future: correct the clocks, and wait a moment")
	// ErrConfig says that the configuration does not allow what was asked for.
	ErrConfig = errors.New("configuration")
	// ErrClosed says that the Cluster was closed.
	ErrClosed = errors.New("cluster is closed")
)

// AliveWindow is for how long a node counts as alive after its last sign of life.
const AliveWindow = 10 * time.Second

const storeFile = "meta.db"

// Config configures a Cluster. Dir and NodeName are required, and Listen as soon as the host shall be in a cluster.
type Config struct {
	// Dir holds identity and metadata; it is created when missing.
	Dir string
	// NodeName is the label of this host: 1 to 63 letters, digits, dots, dashes and underscores.
	NodeName string
	// Listen is the TCP address (host:port) for the other nodes.
	Listen string
	// Advertise is the host:port under which the others reach this node; default Listen, if its host is concrete.
	Advertise string
	Log       *slog.Logger
	// Now is the wall clock; default time.Now.
	Now func() time.Time
	// Rand gives numbers in [0,1) for the jitter of retries; default math/rand. It must be safe for concurrent use.
	Rand func() float64
	// Network is where connections go; default TCP.
	Network transport.Network
	// Limits bounds what peers can use.
	Limits transport.Limits
	// DSCP marks packets per class, 0 to 63.
	DSCP map[transport.Class]int
	// Bounds limits the metadata as a whole.
	Bounds meta.Bounds
	// Final names keys, besides those of the nodes, that are never used again once they are deleted, see meta.Options; default none.
	Final func(key string) bool
}

func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" {
		return c, fmt.Errorf("%w: the directory for identity and metadata is not set", ErrConfig)
	}
	if err := checkName(c.NodeName); err != nil {
		return c, err
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Float64
	}
	if c.Network == nil {
		c.Network = transport.TCP{}
	}
	if c.Final == nil {
		c.Final = func(string) bool { return false }
	}
	return c, nil
}

// Handler serves an incoming connection, which is closed when it returns. It must return soon after ctx has ended.
type Handler func(ctx context.Context, conn *transport.Conn, peer NodeInfo)

// Cluster is this host's view. It is safe for concurrent use.
type Cluster struct {
	cfg      Config
	notifier meta.Notifier
	// op makes Create, Join, Leave and Close strictly one after the other: who has put something in may go on.
	op chan struct{}

	mu struct {
		sync.Mutex
		member   *member // nil: in no cluster
		handlers map[transport.Class]Handler
		closed   bool
	}
}

// Open continues the membership stored in cfg.Dir: it listens, and connects to the others. If there is none, the Cluster waits for Create or
// Join. The caller must Close it.
func Open(cfg Config) (*Cluster, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := vfs.OS().MkdirAll(cfg.Dir); err != nil { // durable, as what will be in it
		return nil, fmt.Errorf("open cluster: %w", err)
	}
	c := &Cluster{cfg: cfg, op: make(chan struct{}, 1)}
	c.mu.handlers = map[transport.Class]Handler{}
	id, err := identity.Load(cfg.Dir)
	if errors.Is(err, identity.ErrNone) {
		// What is left of a join that did not come to its end, or of a membership that has ended.
		return c, c.removeStore()
	}
	if err != nil {
		return nil, err
	}
	if err := c.resume(id); err != nil {
		return nil, fmt.Errorf("continue in cluster %s: %w", id.Cluster(), err)
	}
	return c, nil
}

func (c *Cluster) resume(id *identity.Identity) error {
	at, err := c.listen()
	if err != nil {
		return err
	}
	store, err := c.openStore(id.Node(), true)
	if err != nil {
		return errors.Join(err, at.ln.Close())
	}
	return c.start(id, store, at)
}

// start makes the host an active member. It takes over store and listener, and closes them if it fails.
func (c *Cluster) start(id *identity.Identity, store *meta.Store, at address) error {
	m, err := newMember(c, id, store, at)
	if err != nil {
		return errors.Join(err, store.Close(), at.ln.Close())
	}
	c.mu.Lock()
	c.mu.member = m
	c.mu.Unlock()
	m.start()
	c.notifier.Notify()
	return nil
}

// Close ends all activity and returns when everything has ended. The membership stays.
func (c *Cluster) Close() error {
	c.op <- struct{}{}
	defer func() { <-c.op }()
	c.mu.Lock()
	c.mu.closed = true
	c.mu.Unlock()
	return c.stop()
}

// stop ends the activity of the member, if there is one.
func (c *Cluster) stop() error {
	c.mu.Lock()
	m := c.mu.member
	c.mu.member = nil
	c.mu.Unlock()
	if m == nil {
		return nil
	}
	return m.close()
}

// begin waits for its turn to change the membership; the caller must call end if there is no error.
func (c *Cluster) begin(ctx context.Context) (end func(), err error) {
	select {
	case c.op <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closed {
		<-c.op
		return nil, ErrClosed
	}
	return func() { <-c.op }, nil
}

// current returns the member, or ErrNoCluster.
func (c *Cluster) current() (*member, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.mu.closed:
		return nil, ErrClosed
	case c.mu.member == nil:
		return nil, ErrNoCluster
	}
	return c.mu.member, nil
}

// address is where a node listens, and what it tells the others.
type address struct {
	ln        net.Listener
	advertise string
}

// listen opens the listener.
func (c *Cluster) listen() (address, error) {
	if c.cfg.Listen == "" {
		return address{}, fmt.Errorf("%w: no listen address for the other nodes: set it", ErrConfig)
	}
	ln, err := c.cfg.Network.Listen(c.cfg.Listen)
	if err != nil {
		return address{}, fmt.Errorf("listen for the other nodes on %s: %w", c.cfg.Listen, err)
	}
	adv, err := advertised(c.cfg.Advertise, ln.Addr().String())
	if err != nil {
		return address{}, errors.Join(err, ln.Close())
	}
	return address{ln, adv}, nil
}

func advertised(configured, actual string) (string, error) {
	adv := configured
	if adv == "" {
		adv = actual
	}
	host, port, err := net.SplitHostPort(adv)
	if err != nil || port == "" || port == "0" {
		return "", fmt.Errorf("%w: advertised address %q is not HOST:PORT", ErrConfig, adv)
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		return "", fmt.Errorf("%w: listening on all addresses (%s): set the address that the other nodes shall use", ErrConfig, adv)
	}
	return adv, nil
}

// openStore opens the metadata. A member has some: should they be gone, the replicas here would be taken for those of former memberships.
func (c *Cluster) openStore(node string, member bool) (*meta.Store, error) {
	return meta.Open(filepath.Join(c.cfg.Dir, storeFile), meta.Options{
		Node: node, Existing: member, Now: c.cfg.Now, Log: c.cfg.Log, Bounds: c.cfg.Bounds, Notifier: &c.notifier,
		TrustClock: c.trustClock,
		Final:      func(key string) bool { return IsNodeKey(key) || c.cfg.Final(key) },
	})
}

func (c *Cluster) trustClock() bool {
	m, err := c.current()
	return err == nil && m.trustClock()
}

func (c *Cluster) removeStore() error {
	err := os.Remove(filepath.Join(c.cfg.Dir, storeFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove old metadata: %w", err)
	}
	return nil
}

// ID is the id of the cluster, empty if there is none.
func (c *Cluster) ID() string {
	m, err := c.current()
	if err != nil {
		return ""
	}
	return m.id.Cluster()
}

// Get returns the value of key, which must not be modified, and its stamp; ok is false if there is none.
func (c *Cluster) Get(key string) (value []byte, stamp lamport.Stamp, ok bool) {
	m, err := c.current()
	if err != nil {
		return nil, lamport.Stamp{}, false
	}
	return m.store.Get(key)
}

// Deleted tells whether key was there once and was deleted.
func (c *Cluster) Deleted(key string) bool {
	m, err := c.current()
	if err != nil {
		return false
	}
	e, ok := m.store.Entry(key)
	return ok && e.Deleted
}

// List returns the entries whose keys begin with prefix, sorted by key. Their values must not be modified.
func (c *Cluster) List(prefix string) []meta.Entry {
	m, err := c.current()
	if err != nil {
		return nil
	}
	return m.store.List(prefix)
}

// Version stands for the state of the metadata: while it is the same nothing has changed.
type Version struct {
	store *meta.Store
	seq   uint64
}

// Version returns that of the moment.
func (c *Cluster) Version() Version {
	m, err := c.current()
	if err != nil {
		return Version{}
	}
	return Version{m.store, m.store.Seq()}
}

// Put sets key to value. When it returns nil the change is on disk here, and goes to the other nodes at once.
func (c *Cluster) Put(key string, value []byte) error {
	return c.withStore(func(s *meta.Store) error { return s.Put(key, value) })
}

// PutVolatile sets key to value for facts that change often: it goes to the other nodes at once, and to the disk within some seconds.
func (c *Cluster) PutVolatile(key string, value []byte) error {
	return c.withStore(func(s *meta.Store) error { return s.PutVolatile(key, value) })
}

// PutAfter is a Put that loses against every change of key made concurrently by Put, here or elsewhere: it succeeds the version with the stamp
// old (from Get), and nothing newer. ErrSuperseded of package meta says that it has lost already.
func (c *Cluster) PutAfter(key string, value []byte, old lamport.Stamp) error {
	return c.withStore(func(s *meta.Store) error { return s.PutAfter(key, value, old) })
}

// Delete deletes key, like a Put. Deleting what is not there does nothing.
func (c *Cluster) Delete(key string) error {
	return c.withStore(func(s *meta.Store) error { return s.Delete(key) })
}

// Batch makes several changes; a crash here leaves all or none. Other nodes may see some before the others.
func (c *Cluster) Batch(changes []meta.Change) error {
	return c.withStore(func(s *meta.Store) error { return s.Batch(changes) })
}

func (c *Cluster) withStore(f func(*meta.Store) error) error {
	m, err := c.current()
	if err != nil {
		return err
	}
	m.changes.RLock()
	defer m.changes.RUnlock()
	if m.leaving {
		return ErrLeaving
	}
	if m.evicted() {
		return ErrEvicted
	}
	return f(m.store)
}

// Watch signals changes of metadata and of membership, also while the host is in no cluster yet; see meta.Notifier.
func (c *Cluster) Watch() (changed <-chan struct{}, cancel func()) { return c.notifier.Watch() }

// Handle sets who serves incoming connections of a class (transport.Log or transport.Sync). It may be called at any time; connections for
// which there is no handler are closed.
func (c *Cluster) Handle(class transport.Class, h Handler) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.handlers[class] = h
}

func (c *Cluster) handler(class transport.Class) Handler {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.handlers[class]
}

// DialNode connects to the node with that id. The caller must close the connection; leaving the cluster closes it, too.
func (c *Cluster) DialNode(ctx context.Context, class transport.Class, nodeID string) (*transport.Conn, error) {
	m, err := c.current()
	if err != nil {
		return nil, err
	}
	rec, err := m.record(nodeID)
	if err != nil {
		return nil, err
	}
	return m.ep.Dial(ctx, rec.Addr, transport.Target{Class: class, Node: nodeID})
}
