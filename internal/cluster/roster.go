package cluster

import (
	"fmt"
	"slices"
	"strings"

	"mars/internal/identity"
	"mars/internal/meta"
)

// This file is the part of the membership that is pure: what the metadata say about the nodes, and what may be done about that. The
// simulator drives it, too.

// NodeKey is the key of the record of a node. As long as it exists the node is a member.
func NodeKey(id string) string { return nodeKey(id) }

// NodeRecord is the value of a node's record; pending until the node has confirmed that it has joined.
func NodeRecord(n NodeInfo) []byte {
	return record{Name: n.Name, Addr: n.Addr, Pending: n.Pending}.encode()
}

// Roster reads the records of the nodes, sorted by name, from the entries below node/. Records that cannot be read are left out, and explained
// in bad.
func Roster(entries []meta.Entry) (nodes []NodeInfo, bad []error) {
	for _, e := range entries {
		if !IsNodeKey(e.Key) {
			continue
		}
		id := strings.TrimPrefix(e.Key, nodePrefix)
		r, err := decodeRecord(e.Value)
		if err == nil {
			err = identity.CheckID(id)
		}
		if err != nil {
			bad = append(bad, fmt.Errorf("%s: %w", e.Key, err))
			continue
		}
		nodes = append(nodes, NodeInfo{ID: id, Name: r.Name, Addr: r.Addr, Pending: r.Pending})
	}
	slices.SortFunc(nodes, func(a, b NodeInfo) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return nodes, bad
}

// MakeRoom refuses a newcomer whose name is in use. A node of that name whose join has not come to its end, and which is not there, is replaced.
func MakeRoom(nodes []NodeInfo, name string) (replaced []string, err error) {
	for _, n := range nodes {
		switch {
		case n.Name != name:
		case n.Pending && !n.Alive:
			replaced = append(replaced, n.ID)
		default:
			return nil, fmt.Errorf("%w: %s is the name of a member at %s: choose another name, or remove that node first (leave-cluster --host %s --force) if it "+
				"is gone for good", ErrNameTaken, name, n.Addr, name)
		}
	}
	return replaced, nil
}

// MayRemove refuses to remove a node that could leave by itself.
func MayRemove(n NodeInfo, self string) error {
	switch {
	case n.ID == self:
		return fmt.Errorf("remove node %s: %w: it is this one: use leave-cluster", n.Name, ErrNodeAlive)
	case n.Alive:
		return fmt.Errorf("remove node %s: %w: use leave-cluster there, or stop it", n.Name, ErrNodeAlive)
	}
	return nil
}

// Removal deletes everything that a node has published about itself. published are the entries below the key of the node.
func Removal(id string, published []meta.Entry) []meta.Change {
	changes := []meta.Change{{Key: nodeKey(id), Delete: true}}
	for _, e := range published {
		changes = append(changes, meta.Change{Key: e.Key, Delete: true})
	}
	return changes
}
