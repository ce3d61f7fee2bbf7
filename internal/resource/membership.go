package resource

import (
	"fmt"
	"strings"

	"mars/internal/meta"
)

// Prefix is where the metadata of the resources are, see package node for the keys.
const Prefix = "resource/"

// Key is the key of something about the resource id.
func Key(id string, parts ...string) string { return Prefix + id + "/" + strings.Join(parts, "/") }

// IsName reports whether key is that of a resource's name. Its deletion is the deletion of the resource and must never be forgotten: a node that
// was away for longer than tombstones live would bring the resource back.
func IsName(key string) bool {
	id, ok := strings.CutPrefix(key, Prefix)
	id, ok2 := strings.CutSuffix(id, "/name")
	return ok && ok2 && id != "" && !strings.Contains(id, "/")
}

// Leftovers returns the keys of deleted resources that somebody who did not know of that has written meanwhile: a member its facts, an operator
// a wish, a newcomer its membership. live are entries below Prefix, sorted by key.
func Leftovers(live []meta.Entry, deleted func(key string) bool) []string {
	var keys []string
	last, gone := "", false
	for _, e := range live {
		id, _, ok := strings.Cut(strings.TrimPrefix(e.Key, Prefix), "/")
		if !ok {
			continue
		}
		if id != last {
			last, gone = id, deleted(Key(id, "name"))
		}
		if gone {
			keys = append(keys, e.Key)
		}
	}
	return keys
}

// MayDelete refuses to delete a resource that somebody writes or uses. all are all members. Only the word of the operator (force) deletes one whose
// primary may still write; a device in use is taken from nobody who lives.
func MayDelete(all []Peer, force bool) error {
	for _, m := range all {
		f := m.Facts
		if f != nil && f.Writable && !force {
			return fmt.Errorf("RES has a primary, node %s; `marsadm secondary RES` there first, or --force", m.Node)
		}
		if f != nil && len(f.Users) > 0 && (m.Alive || !force) {
			return fmt.Errorf("the device of RES on node %s is in use: %s", m.Node, f.Users[0])
		}
	}
	return nil
}

// MayRemove refuses to end the membership of another node that can end it itself, with all the care that needs, or whose replica is the only
// one with a content that is known: nobody could become primary any more, or be filled. all are all members, node is one of them.
func MayRemove(all []Peer, node string) error {
	remains := false
	for _, m := range all {
		if m.Node == node && m.Alive {
			return fmt.Errorf("node %s is alive; run `marsadm leave-resource RES` there", node)
		}
		remains = remains || m.Node != node && m.Facts != nil && m.Facts.Consistent
	}
	if !remains {
		return fmt.Errorf("no other member is known to have a consistent replica; wait for node %s, or give RES up with `marsadm delete-resource RES --force`", node)
	}
	return nil
}

// MayJoin refuses a newcomer whose disk is too small for what any member says is needed.
func MayJoin(all []Peer, diskSize int64) error {
	var need int64
	for _, m := range all {
		if m.Facts != nil {
			need = max(need, m.Facts.Size)
		}
	}
	if diskSize < need {
		return fmt.Errorf("the disk has %d bytes, RES needs %d; enlarge it", diskSize, need)
	}
	return nil
}

// Removal is what ends the membership of a node. The wish for a primary goes with the node that it names.
func Removal(id, node, designated string) []meta.Change {
	changes := []meta.Change{
		{Key: Key(id, "member", node), Delete: true},
		{Key: Key(id, "switch", node), Delete: true},
		{Key: Key(id, "facts", node), Delete: true},
	}
	if designated == node {
		changes = append(changes, meta.Change{Key: Key(id, "primary"), Value: []byte(`""`)})
	}
	return changes
}
