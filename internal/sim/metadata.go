package sim

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"mars/internal/cluster"
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

// newTree makes one as packages cluster and node have it.
func newTree() *meta.Tree {
	return meta.NewTree(meta.Bounds{}, final)
}

func final(key string) bool { return cluster.IsNodeKey(key) || resource.IsName(key) }

func newMetadata(n *node) *metadata {
	m := &metadata{n: n, saved: newTree()}
	m.restart()
	return m
}

// restart reads everything from the disk.
func (m *metadata) restart() {
	m.tree = newTree()
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

// batch makes changes durably, unless nobody would take them.
func (m *metadata) batch(changes ...meta.Change) error {
	if err := m.n.mayChange(); err != nil {
		return err
	}
	return m.commit(changes...)
}

// mayChange is what package cluster asks before each change.
func (n *node) mayChange() error {
	switch {
	case n.leaving:
		return cluster.ErrLeaving
	case n.evicted():
		return cluster.ErrEvicted
	}
	return nil
}

func (m *metadata) commit(changes ...meta.Change) error {
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
	if err := m.n.mayChange(); err != nil {
		return err
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

// has reports whether key is there now.
func (m *metadata) has(key string) bool {
	e, ok := m.tree.Get(key)
	return ok && !e.Deleted
}

// gone reports whether key was deleted.
func (m *metadata) gone(key string) bool {
	e, ok := m.tree.Get(key)
	return ok && e.Deleted
}

// merge takes what another node has sent. It returns true if something was too far in the future.
func (m *metadata) merge(entries []meta.Entry) (early bool) {
	for _, e := range entries {
		if m.n.w.canary("meta-drop") && strings.Contains(e.Key, "/primary") {
			continue
		}
		before, _ := m.tree.Get(e.Key)
		if err := m.clock.Observe(e.Stamp); err != nil {
			m.n.w.stats.TooEarly++
			early = true
			if !m.n.w.canary("far-future") {
				continue
			}
		}
		m.apply(e)
		if now, _ := m.tree.Get(e.Key); now.Stamp.Compare(before.Stamp) < 0 && (before.Deleted || !now.Deleted || !final(e.Key)) {
			m.n.w.failf("I8", "%s: the stamp of %s went back from %v to %v", m.n.id, e.Key, before.Stamp, now.Stamp)
		}
	}
	return early
}

// entry is one resource as the metadata have it. See package node for the keys.
type entry struct {
	id         string
	name       string
	named      lamport.Stamp
	designated string
	since      lamport.Stamp
	members    map[string]bool
	switches   map[string]resource.Switches
	facts      map[string]*resource.Facts
	former     map[string]*resource.Former
}

func key(id string, parts ...string) string { return resource.Key(id, parts...) }

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// named returns the id of the oldest resource of that name, as package node chooses; empty if there is none.
func (m *metadata) named(name string) string {
	if m.catalog == nil || m.at != m.tree.Seq() {
		m.read()
	}
	best := ""
	for id, e := range m.catalog {
		if e.name != name {
			continue
		}
		if b := m.catalog[best]; best == "" || e.named.Time < b.named.Time || e.named.Time == b.named.Time && id < best {
			best = id
		}
	}
	return best
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
			e.name, e.named = *decodeCached[string](m, x), x.Stamp
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
	dialing bool   // or about to
	sent    uint64 // tree.Seq() up to which everything was sent
	heard   time.Duration
	from    string // the node that was heard; empty = nobody since the start
	refused bool   // the last attempt to connect has failed
	queued  bool
	asking  func(error) // who waits for the answer to a request
	shown   time.Time   // what the peer's clock showed
	shownAt time.Duration
	early   bool // something was refused for its time
}

// Frames of class meta, see package cluster.
const (
	frameEntries = iota + 1
	frameDigest
	frameLeave
	frameReply
	framePing
)

const (
	compareEvery = time.Minute
	pingEvery    = time.Second
	aliveWindow  = 10 * time.Second
)

// alive is what package cluster says of a peer.
func (g *gossip) alive() bool {
	return g.from != "" && g.n.w.now-g.heard < aliveWindow && !(g.conn == nil && g.refused)
}

// connect keeps a connection with the peer; the node with the lower index dials, or that which alone knows the other one.
func (g *gossip) connect() {
	if g.conn != nil || g.dialing || !g.wanted() || g.n.index > g.peer.index && g.peer.knows(g.n.id) {
		return
	}
	g.dialing = true
	other := g.peer
	self := g.n
	g.n.w.net.dial(g.n, other, "meta", func(e *end) bool {
		other.gossip[self.index].open(e)
		return true
	}, func(e *end, err error) {
		g.refused = err != nil
		if err == nil {
			g.dialing = false
			g.open(e)
		} else {
			g.again(between(g.n.w.rng.net, 200*time.Millisecond, 2*time.Second))
		}
	})
}

// again connects in d.
func (g *gossip) again(d time.Duration) {
	g.dialing = true
	g.n.after(d, func() {
		g.dialing = false
		g.connect()
	})
}

// wanted reports whether the metadata name the peer as a member.
func (g *gossip) wanted() bool {
	return g.peer != g.n && g.n.cluster != "" && g.peer.cluster != "" && g.n.knows(g.peer.id)
}

// open begins the exchange: all that the other one may lack goes first.
func (g *gossip) open(e *end) {
	if g.conn != nil {
		g.conn.close()
	}
	g.conn, g.sent, g.refused = e, 0, false
	e.frames = g.take
	e.ended = func(error) {
		if g.conn == e {
			g.over()
		}
	}
	g.send()
	g.ping(e)
	g.compare(e)
}

// over is when there is no connection any more.
func (g *gossip) over() {
	g.conn = nil
	g.refused = true
	g.answered(errReset)
	g.again(between(g.n.w.rng.net, 100*time.Millisecond, time.Second))
}

// compare sends the digest now and then: that repairs what the other one could not take at first.
func (g *gossip) compare(e *end) {
	if g.conn != e {
		return
	}
	if !e.full() {
		e.WriteFrame(frameDigest, encodeSums(g.n.meta.tree.Digest()))
	}
	g.n.after(compareEvery, func() { g.compare(e) })
}

func encodeSums(d meta.Digest) []byte {
	var b []byte
	for _, s := range d {
		b = append(b, s[:]...)
	}
	return b
}

func decodeSums(b []byte) (d meta.Digest) {
	for i := range d {
		b = b[copy(d[i][:], b):]
	}
	return d
}

func (g *gossip) ping(e *end) {
	if g.conn != e {
		return
	}
	if !e.full() {
		e.WriteFrame(framePing, encode(g.n.wall()))
	}
	g.n.after(pingEvery, func() { g.ping(e) })
}

func (g *gossip) take(kind byte, payload []byte) {
	e := g.conn
	if e == nil {
		return
	}
	g.heard, g.from, g.refused = g.n.w.now, e.peer.as, false
	switch kind {
	case frameDigest:
		g.sendEntries(g.n.meta.tree.Differing(decodeSums(payload)))
	case frameLeave:
		g.letGo(e)
	case frameReply:
		var err error
		if len(payload) > 0 {
			err = errors.New(string(payload))
		}
		g.answered(err)
	case framePing:
		var theirs time.Time
		if err := json.Unmarshal(payload, &theirs); err != nil {
			panic(err)
		}
		g.shown, g.shownAt = theirs, g.n.w.now
		g.n.amend()
		if g.early && theirs.Sub(g.n.wall()) < lamport.MaxAhead {
			g.early = false
			e.WriteFrame(frameDigest, encodeSums(g.n.meta.tree.Digest()))
		}
	case frameEntries:
		g.takeEntries(payload)
	}
}

// takeEntries merges what a member has sent.
func (g *gossip) takeEntries(payload []byte) {
	if g.n.removed(g.from) && !g.n.w.canary("strangers") {
		return // nothing is taken any more; the session ends when it has answered
	}
	var entries []meta.Entry
	for len(payload) > 0 {
		e, rest, err := meta.Decode(payload)
		if err != nil {
			panic(err)
		}
		entries, payload = append(entries, e), rest
	}
	if len(entries) > 0 {
		g.n.w.checkSource(g.n, g.conn.peer)
	}
	g.early = g.n.meta.merge(entries) || g.early
}

// letGo deletes the peer, which wants that.
func (g *gossip) letGo(e *end) {
	problem := ""
	if g.n.leaving || !g.n.knows(g.n.id) || !g.n.knows(e.peer.as) {
		problem = cluster.ErrLeaving.Error()
	} else if g.early {
		problem = cluster.ErrRefused.Error()
	} else if err := g.n.meta.commit(g.n.removal(e.peer.as)...); err != nil {
		problem = err.Error()
	}
	if g.n.dying {
		return
	}
	g.send()
	e.WriteFrame(frameReply, []byte(problem))
}

// answered passes the answer to a request on.
func (g *gossip) answered(err error) {
	if f := g.asking; f != nil {
		g.asking = nil
		f(err)
	}
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
	g.sendEntries(g.n.meta.tree.Since(g.sent))
	g.sent = g.n.meta.tree.Seq()
}

func (g *gossip) sendEntries(entries []meta.Entry) {
	var b []byte
	for _, e := range entries {
		b = e.Append(b)
	}
	if len(b) > 0 {
		g.conn.WriteFrame(frameEntries, b)
	}
}

// alone reports whether there are no other members, or only such whose join has not come to its end.
func (n *node) alone() bool {
	return !slices.ContainsFunc(n.roster(), func(i cluster.NodeInfo) bool { return i.ID != n.id && !i.Pending })
}

// amend repairs what was stamped while the clock was too far ahead, as package cluster does.
func (n *node) amend() {
	m, now := n.meta, n.wall()
	newest := max(m.tree.Newest(), m.clock.Floor())
	if n.cluster == "" || n.dying || n.w.canary("far-future") {
		return
	}
	var theirs []time.Time
	for _, g := range n.gossip {
		if g.peer != n && g.alive() && !g.shown.IsZero() {
			theirs = append(theirs, g.shown.Add(n.w.now-g.shownAt))
		}
	}
	if !cluster.PutRight(newest, now, theirs, n.alone()) {
		return
	}
	m.flush()
	late := meta.AmendTree(m.tree, m.clock, n.id, now)
	n.w.logf("%s: the clock is right again, %d entries have new stamps", n.id, len(late))
	n.w.stats.Amended += len(late)
	m.saved.Restamp(late)
	m.flush()
}
