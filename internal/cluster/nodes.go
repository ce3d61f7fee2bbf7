package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"time"

	"mars/internal/meta"
	"mars/internal/transport"
)

// nodePrefix is where the records of the members are: node/ID. Below node/ID/ a node may keep more facts about itself.
const nodePrefix = "node/"

func nodeKey(id string) string { return nodePrefix + id }

// IsNodeKey tells whether key is the record of a node, and not one of its other facts.
func IsNodeKey(key string) bool {
	id, ok := strings.CutPrefix(key, nodePrefix)
	return ok && !strings.Contains(id, "/")
}

var nameRule = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

func checkName(name string) error {
	if !nameRule.MatchString(name) {
		return fmt.Errorf("%w: node name %.70q: use 1 to 63 letters, digits, dots, dashes and underscores", ErrConfig, name)
	}
	return nil
}

// record is the value of node/ID. Unknown fields are ignored, so that newer nodes can add some.
type record struct {
	Name string `json:"name"`
	Addr string `json:"addr"`
	// Pending is set by the node that lets a newcomer in, and cleared by the newcomer when it has everything. Only as long as it is set
	// somebody else may get the same name.
	Pending bool `json:"pending,omitempty"`
}

const maxAddr = 300

func (r record) encode() []byte {
	data, _ := json.Marshal(r) // cannot fail for these fields
	return data
}

func decodeRecord(data []byte) (record, error) {
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return record{}, fmt.Errorf("node record: %w", err)
	}
	return r, r.check()
}

func (r record) check() error {
	if err := checkName(r.Name); err != nil {
		return err
	}
	if _, _, err := net.SplitHostPort(r.Addr); err != nil || len(r.Addr) > maxAddr {
		return fmt.Errorf("node %s: address %.80q is not HOST:PORT", r.Name, r.Addr)
	}
	return nil
}

// NodeInfo is what is known about a member.
type NodeInfo struct {
	ID   string
	Name string
	Addr string // host:port
	// Pending is true from the moment a node was let in until it has confirmed that it has joined.
	Pending bool
	// Alive: heard of within AliveWindow, and not known to be unreachable. Always true for this node.
	Alive bool
	// LastContact is the last sign of life in this life of the daemon; zero if there was none, now for this node.
	LastContact time.Time
	// ClockAhead is by how much its clock is ahead of this node's, as far as is known; it arrives with the delay of the network.
	ClockAhead time.Duration
	// Problem says why there is no connection; empty if there is one.
	Problem string
}

// record returns the record of the member with this id; the error wraps ErrNoNode.
func (m *member) record(id string) (record, error) {
	value, _, ok := m.store.Get(nodeKey(id))
	if !ok {
		return record{}, fmt.Errorf("%w: %s", ErrNoNode, id)
	}
	r, err := decodeRecord(value)
	if err != nil {
		return record{}, fmt.Errorf("node %s: %w", id, err)
	}
	return r, nil
}

// isMember tells whether id is one now.
func (m *member) isMember(id string) bool {
	_, _, ok := m.store.Get(nodeKey(id))
	return ok
}

// mayConnect tells whether a node that has a certificate of the cluster may have a connection. For metadata that is everybody whose membership has not
// ended: who let it in may have left, or have been lost, before this node was told, and then only the newcomer itself can tell (found by the
// simulator, seed 2172). The rest is for those who are in the list of nodes.
func (m *member) mayConnect(class transport.Class, id string) bool {
	return m.isMember(id) || class == transport.Meta && !m.isRemoved(id)
}

// isRemoved tells whether the membership of id has ended. That of nodes is never forgotten.
func (m *member) isRemoved(id string) bool {
	e, ok := m.store.Entry(nodeKey(id))
	return ok && e.Deleted
}

// records returns all members; records that cannot be read are left out, and explained in bad.
func (m *member) records() (map[string]record, []error) {
	all := map[string]record{}
	nodes, bad := Roster(m.store.List(nodePrefix))
	for _, n := range nodes {
		all[n.ID] = record{Name: n.Name, Addr: n.Addr, Pending: n.Pending}
	}
	return all, bad
}

func (m *member) info(id string, r record) NodeInfo {
	n := NodeInfo{ID: id, Name: r.Name, Addr: r.Addr, Pending: r.Pending}
	if id == m.id.Node() {
		n.Alive, n.LastContact = true, m.c.cfg.Now()
		return n
	}
	if p := m.peer(id); p != nil {
		p.describe(&n)
	}
	return n
}

func (m *member) nodes() []NodeInfo {
	var out []NodeInfo
	records, _ := m.records()
	for id, r := range records {
		out = append(out, m.info(id, r))
	}
	slices.SortFunc(out, func(a, b NodeInfo) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out
}

// Self is this node. In no cluster it has only a name.
func (c *Cluster) Self() NodeInfo {
	m, err := c.current()
	if err != nil {
		return NodeInfo{Name: c.cfg.NodeName}
	}
	return m.info(m.id.Node(), record{Name: m.name, Addr: m.at.advertise})
}

// Nodes lists all members, this one too, sorted by name. It is empty in no cluster.
func (c *Cluster) Nodes() []NodeInfo {
	m, err := c.current()
	if err != nil {
		return nil
	}
	return m.nodes()
}

// Node finds a member by its name or id; the error wraps ErrNoNode.
func (c *Cluster) Node(nameOrID string) (NodeInfo, error) {
	m, err := c.current()
	if err != nil {
		return NodeInfo{}, err
	}
	return m.find(nameOrID)
}

func (m *member) find(nameOrID string) (NodeInfo, error) {
	for _, n := range m.nodes() {
		if n.Name == nameOrID || n.ID == nameOrID {
			return n, nil
		}
	}
	return NodeInfo{}, fmt.Errorf("%w: %s: see the list of nodes", ErrNoNode, nameOrID)
}

// Evicted tells whether this node was removed from its cluster by another member. It cannot come back except by leaving (with force) and joining
// again.
func (c *Cluster) Evicted() bool {
	m, err := c.current()
	if err != nil {
		return false
	}
	return m.evicted()
}

func (m *member) evicted() bool {
	return m.isRemoved(m.id.Node())
}

// publishSelf writes this node's record if it is not right.
func (m *member) publishSelf() error {
	want := record{Name: m.name, Addr: m.at.advertise}
	if m.evicted() {
		return nil
	}
	have, err := m.record(m.id.Node())
	if err == nil && have == want {
		return nil
	}
	if err != nil && !errors.Is(err, ErrNoNode) {
		m.log.Warn("own node record replaced", "err", err)
	}
	return m.store.Put(nodeKey(m.id.Node()), want.encode())
}

// removal deletes everything that a node has published about itself.
func (m *member) removal(id string) []meta.Change {
	return Removal(id, m.store.List(nodeKey(id)+"/"))
}
