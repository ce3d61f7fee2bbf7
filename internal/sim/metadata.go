package sim

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"mars/internal/lamport"
	"mars/internal/meta"
	"mars/internal/resource"
)

// metadata is one node's copy of the metadata: the real tree and the real clock, and a second tree that stands for the disk, on which changes
// are as package meta's Store says: durable ones at once, with all that they may be based on, the others a little later.
type metadata struct {
	n     *node
	tree  *meta.Tree
	saved *meta.Tree
	clock *lamport.Clock
	floor int64    // persisted with saved
	dirty []string // keys

	cache   map[string]cached
	catalog map[string]*entry
	at      uint64 // tree.Seq() of catalog
}

type cached struct {
	stamp lamport.Stamp
	value any
}

func newMetadata(n *node) *metadata {
	m := &metadata{n: n, saved: meta.NewTree(meta.Bounds{})}
	m.restart()
	return m
}

// restart reads everything from the disk.
func (m *metadata) restart() {
	m.tree = meta.NewTree(meta.Bounds{})
	for _, e := range m.saved.List("") {
		m.tree.Apply(e)
	}
	for _, e := range m.saved.Since(0) {
		if e.Deleted {
			m.tree.Apply(e)
		}
	}
	m.clock = lamport.New(m.n.id, m.n.wall, m.floor)
	m.dirty, m.cache, m.catalog, m.at = nil, map[string]cached{}, nil, 0
}

// flush writes what is in memory only.
func (m *metadata) flush() {
	if m.n.dying {
		return
	}
	for _, k := range m.dirty {
		if e, ok := m.tree.Get(k); ok {
			m.saved.Apply(e)
		}
	}
	m.dirty = nil
	m.floor = m.clock.Floor()
}

// batch makes changes durably.
func (m *metadata) batch(changes ...meta.Change) error {
	if m.n.dying || m.n.mayDie() {
		return errDead
	}
	for _, c := range changes {
		old, ok := m.tree.Get(c.Key)
		if c.Delete && (!ok || old.Deleted) {
			continue
		}
		m.apply(meta.Entry{Key: c.Key, Value: c.Value, Deleted: c.Delete, Stamp: m.clock.Next()})
	}
	m.flush()
	if m.n.mayDie() {
		return errDead
	}
	return nil
}

func (m *metadata) put(key string, v any) error {
	return m.batch(meta.Change{Key: key, Value: encode(v)})
}

// putAfter makes v the immediate successor of the version with the stamp old.
func (m *metadata) putAfter(key string, v any, old lamport.Stamp) error {
	if m.n.dying {
		return errDead
	}
	if !m.apply(meta.Entry{Key: key, Value: encode(v), Stamp: lamport.Stamp{Time: old.Time + 1, Node: m.n.id}}) {
		return meta.ErrSuperseded
	}
	m.flush()
	return nil
}

// putVolatile changes a value in memory; it reaches the disk soon.
func (m *metadata) putVolatile(key string, value []byte) {
	if !m.n.dying {
		m.apply(meta.Entry{Key: key, Value: value, Stamp: m.clock.Next()})
	}
}

func (m *metadata) apply(e meta.Entry) bool {
	changed, err := m.tree.Apply(e)
	if err != nil {
		panic(err)
	}
	if changed {
		m.dirty = append(m.dirty, e.Key)
	}
	return changed
}

// merge takes what another node has sent.
func (m *metadata) merge(entries []meta.Entry) {
	for _, e := range entries {
		if m.n.w.canary("meta-drop") && strings.Contains(e.Key, "/primary") {
			continue
		}
		before, _ := m.tree.Get(e.Key)
		if err := m.clock.Observe(e.Stamp); err != nil {
			continue
		}
		m.apply(e)
		if now, _ := m.tree.Get(e.Key); now.Stamp.Compare(before.Stamp) < 0 {
			m.n.w.failf("I8", "%s: the stamp of %s went back from %v to %v", m.n.id, e.Key, before.Stamp, now.Stamp)
		}
	}
}

// entry is one resource as the metadata have it. See package node for the keys.
type entry struct {
	id         string
	name       string
	designated string
	since      lamport.Stamp
	members    map[string]bool
	switches   map[string]resource.Switches
	facts      map[string]*resource.Facts
	former     map[string]*resource.Former
}

func key(id string, parts ...string) string {
	return "resource/" + id + "/" + strings.Join(parts, "/")
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// find returns what the metadata say about a resource; nil if it does not exist.
func (m *metadata) find(id string) *entry {
	if m.catalog == nil || m.at != m.tree.Seq() {
		m.read()
	}
	e := m.catalog[id]
	if e == nil || e.name == "" {
		return nil
	}
	return e
}

func (m *metadata) read() {
	m.catalog, m.at = map[string]*entry{}, m.tree.Seq()
	for _, x := range m.tree.List("resource/") {
		id, rest, _ := strings.Cut(strings.TrimPrefix(x.Key, "resource/"), "/")
		e := m.catalog[id]
		if e == nil {
			e = &entry{id: id, members: map[string]bool{}, switches: map[string]resource.Switches{}, facts: map[string]*resource.Facts{},
				former: map[string]*resource.Former{}}
			m.catalog[id] = e
		}
		kind, node, _ := strings.Cut(rest, "/")
		switch kind {
		case "name":
			e.name = *decodeCached[string](m, x)
		case "primary":
			e.designated, e.since = *decodeCached[string](m, x), x.Stamp
		case "member":
			e.members[node] = true
		case "switch":
			e.switches[node] = *decodeCached[resource.Switches](m, x)
		case "facts":
			e.facts[node] = decodeCached[resource.Facts](m, x)
		case "former":
			e.former[node] = decodeCached[resource.Former](m, x)
		}
	}
}

// decodeCached decodes a value once.
func decodeCached[T any](m *metadata, x meta.Entry) *T {
	if c, ok := m.cache[x.Key]; ok && c.stamp == x.Stamp {
		return c.value.(*T)
	}
	v := new(T)
	if err := json.Unmarshal(x.Value, v); err != nil {
		panic(fmt.Sprintf("%s: %v", x.Key, err))
	}
	m.cache[x.Key] = cached{x.Stamp, v}
	return v
}

func (e *entry) formerOf(node string) resource.Former {
	if f := e.former[node]; f != nil {
		return *f
	}
	return nil
}

func (e *entry) switchesOf(node string) resource.Switches {
	if s, ok := e.switches[node]; ok {
		return s
	}
	return resource.AllOn
}

// gossip is one node's side of the exchange with one peer.
type gossip struct {
	n       *node
	peer    *node
	conn    *end
	dialing bool
	sent    uint64 // tree.Seq() up to which everything was sent
	heard   time.Duration
	ever    bool // heard of since the start
	refused bool // the last attempt to connect has failed
	queued  bool
}

const (
	frameEntries = 1
	pingEvery    = time.Second
	aliveWindow  = 10 * time.Second
)

// alive is what package cluster says of a peer.
func (g *gossip) alive() bool {
	return g.ever && g.n.w.now-g.heard < aliveWindow && !(g.conn == nil && g.refused)
}

// connect keeps a connection with the peer; the node with the lower index dials.
func (g *gossip) connect() {
	if g.conn != nil || g.dialing || g.n.index > g.peer.index {
		return
	}
	g.dialing = true
	other := g.peer
	self := g.n
	g.n.w.net.dial(g.n, other, "meta", func(e *end) bool {
		other.gossip[self.index].open(e)
		return true
	}, func(e *end, err error) {
		g.dialing = false
		g.refused = err != nil
		if err == nil {
			g.open(e)
		} else {
			g.n.after(between(g.n.w.rng.net, 200*time.Millisecond, 2*time.Second), g.connect)
		}
	})
}

// open begins the exchange: all that the other one may lack goes first.
func (g *gossip) open(e *end) {
	if g.conn != nil {
		g.conn.close()
	}
	g.conn, g.sent, g.refused = e, 0, false
	e.frames = func(_ byte, payload []byte) { g.take(payload) }
	e.ended = func(error) {
		if g.conn == e {
			g.conn = nil
			g.refused = true
			g.n.after(between(g.n.w.rng.net, 100*time.Millisecond, time.Second), g.connect)
		}
	}
	g.send()
	g.ping(e)
}

func (g *gossip) ping(e *end) {
	if g.conn != e {
		return
	}
	if !e.full() {
		e.WriteFrame(frameEntries)
	}
	g.n.after(pingEvery, func() { g.ping(e) })
}

func (g *gossip) take(payload []byte) {
	g.heard, g.ever, g.refused = g.n.w.now, true, false
	var entries []meta.Entry
	for len(payload) > 0 {
		e, rest, err := meta.Decode(payload)
		if err != nil {
			panic(err)
		}
		entries, payload = append(entries, e), rest
	}
	g.n.meta.merge(entries)
}

// changed sends soon what is new.
func (g *gossip) changed() {
	if g.conn == nil || g.queued || g.sent >= g.n.meta.tree.Seq() {
		return
	}
	g.queued = true
	g.n.after(between(g.n.w.rng.net, 0, 10*time.Millisecond), func() {
		g.queued = false
		g.send()
	})
}

func (g *gossip) send() {
	if g.conn == nil {
		return
	}
	if g.conn.full() {
		g.n.after(50*time.Millisecond, g.changed)
		return
	}
	var b []byte
	for _, e := range g.n.meta.tree.Since(g.sent) {
		b = e.Append(b)
	}
	g.sent = g.n.meta.tree.Seq()
	if len(b) > 0 {
		g.conn.WriteFrame(frameEntries, b)
	}
}
