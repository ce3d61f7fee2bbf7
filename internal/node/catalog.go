package node

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"mars/internal/cluster"
	"mars/internal/identity"
	"mars/internal/lamport"
	"mars/internal/meta"
	"mars/internal/name"
	"mars/internal/resource"
)

// The metadata of a resource with the id R, below `resource/R/`:
//
//	name           JSON string
//	primary        JSON string: id of the designated primary, empty = nobody
//	member/NODE    memberRecord; its existence is the membership
//	switch/NODE    resource.Switches: wishes
//	facts/NODE     resource.Facts: written by NODE only, volatile
//	former/NODE    resource.Former: written by NODE only, before it throws a log away; it outlives the membership
const resourcePrefix = resource.Prefix

// memberRecord is a replica as it was created or joined.
type memberRecord struct {
	Disk string `json:"disk"`
}

// entry is one resource as the metadata have it.
type entry struct {
	id         string
	name       string
	named      lamport.Stamp
	designated string
	since      lamport.Stamp // of designated
	members    map[string]*memberRecord
	switches   map[string]resource.Switches
	facts      map[string]*resource.Facts
	former     map[string]resource.Former
	stamp      lamport.Stamp // of the newest change
}

// catalog is all resources by id.
type catalog map[string]entry

func key(id string, parts ...string) string { return resource.Key(id, parts...) }

// catalog returns all resources as the metadata have them; it must not be modified. What cannot be read is left out: a newer node may have
// written it.
func (n *Node) catalog() catalog {
	l := &n.latest
	l.mu.Lock()
	defer l.mu.Unlock()
	v := n.cluster.Version() // before the list, which may be newer
	if l.catalog == nil || v != l.version {
		entries := n.cluster.List(resourcePrefix)
		l.version, l.catalog = v, catalogOf(entries, n.parsed.all(entries))
	}
	return l.catalog
}

// latest is the catalog that was read last: many runners ask for it after each change.
type latest struct {
	mu      sync.Mutex
	version cluster.Version
	catalog catalog
}

// catalogOf makes a catalog of entries and their decoded values. Ids and names become parts of paths: whatever is no id and no name does not get
// that far.
func catalogOf(entries []meta.Entry, values []any) catalog {
	c := catalog{}
	for i, m := range entries {
		id, rest, ok := strings.Cut(strings.TrimPrefix(m.Key, resourcePrefix), "/")
		if !ok || identity.CheckID(id) != nil {
			continue
		}
		e, ok := c[id]
		if !ok {
			e = entry{id: id, members: map[string]*memberRecord{}, switches: map[string]resource.Switches{}, facts: map[string]*resource.Facts{},
				former: map[string]resource.Former{}}
		}
		if m.Stamp.Time > e.stamp.Time {
			e.stamp = m.Stamp
		}
		e.take(rest, values[i], m.Stamp)
		c[id] = e
	}
	for id, e := range c {
		if name.CheckResource(e.name) != nil {
			delete(c, id) // or incomplete: on its way here, or being deleted
		}
	}
	return c
}

// parsed remembers decoded values by key and stamp: the catalog is read much more often than anything in it changes. Values are shared and
// must not be modified.
type parsed struct {
	mu sync.Mutex
	m  map[string]parsedValue
}

type parsedValue struct {
	stamp lamport.Stamp
	value any // nil: cannot be read
}

// all returns the decoded values of the entries, in their order.
func (p *parsed) all(entries []meta.Entry) []any {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := make(map[string]parsedValue, len(entries))
	out := make([]any, len(entries))
	for i, e := range entries {
		v, ok := p.m[e.Key]
		if !ok || v.stamp != e.Stamp {
			v = parsedValue{e.Stamp, parseValue(e.Key, e.Value)}
		}
		now[e.Key] = v
		out[i] = v.value
	}
	p.m = now
	return out
}

func parseValue(key string, value []byte) any {
	_, rest, _ := strings.Cut(strings.TrimPrefix(key, resourcePrefix), "/")
	kind, _, _ := strings.Cut(rest, "/")
	var v any
	switch kind {
	case "name", "primary":
		v = new(string)
	case "member":
		v = new(memberRecord)
	case "switch":
		v = new(resource.Switches)
	case "facts":
		v = new(resource.Facts)
	case "former":
		v = new(resource.Former)
	default:
		return nil
	}
	if json.Unmarshal(value, v) != nil {
		return nil
	}
	return v
}

func (e *entry) take(rest string, value any, stamp lamport.Stamp) {
	kind, node, _ := strings.Cut(rest, "/")
	switch v := value.(type) {
	case *string:
		if kind == "name" {
			e.name, e.named = *v, stamp
		} else {
			e.designated, e.since = *v, stamp
		}
	case *memberRecord:
		e.members[node] = v
	case *resource.Switches:
		e.switches[node] = *v
	case *resource.Facts:
		e.facts[node] = v
	case *resource.Former:
		e.former[node] = *v
	}
}

// switchesOf returns the wishes for a member; all on is the default.
func (e *entry) switchesOf(node string) resource.Switches {
	if s, ok := e.switches[node]; ok {
		return s
	}
	return resource.AllOn
}

// byName returns the resources with that name, the oldest first: a name that two operators gave at once on two nodes belongs to the older one.
func (c catalog) byName(name string) []entry {
	var found []entry
	for _, e := range c {
		if e.name == name || e.id == name {
			found = append(found, e)
		}
	}
	slices.SortFunc(found, func(a, b entry) int {
		if a.named.Time != b.named.Time {
			if a.named.Time < b.named.Time {
				return -1
			}
			return 1
		}
		return strings.Compare(a.id, b.id)
	})
	return found
}

// find returns the resource that a command names.
func (n *Node) find(name string) (entry, error) {
	found := n.catalog().byName(name)
	if len(found) == 0 {
		return entry{}, fmt.Errorf("resource %s does not exist in this cluster; `marsadm view all` lists what does", name)
	}
	return found[0], nil
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only our own plain structs
	}
	return b
}
