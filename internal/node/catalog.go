package node

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"mars/internal/lamport"
	"mars/internal/resource"
)

// The metadata of a resource with the id R, below `resource/R/`:
//
//	name           JSON string
//	primary        JSON string: id of the designated primary, empty = nobody
//	member/NODE    memberRecord; its existence is the membership
//	switch/NODE    resource.Switches: wishes
//	facts/NODE     resource.Facts: written by NODE only, volatile
const resourcePrefix = "resource/"

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
	stamp      lamport.Stamp // of the newest change
}

// catalog is all resources by id.
type catalog map[string]entry

func key(id string, parts ...string) string {
	return resourcePrefix + id + "/" + strings.Join(parts, "/")
}

// catalog reads all resources from the metadata. What cannot be read is left out: a newer node may have written it.
func (n *Node) catalog() catalog {
	c := catalog{}
	for _, m := range n.cluster.List(resourcePrefix) {
		id, rest, ok := strings.Cut(strings.TrimPrefix(m.Key, resourcePrefix), "/")
		if !ok {
			continue
		}
		e, ok := c[id]
		if !ok {
			e = entry{id: id, members: map[string]*memberRecord{}, switches: map[string]resource.Switches{}, facts: map[string]*resource.Facts{}}
		}
		if m.Stamp.Time > e.stamp.Time {
			e.stamp = m.Stamp
		}
		e.take(rest, m.Value, m.Stamp)
		c[id] = e
	}
	for id, e := range c {
		if e.name == "" {
			delete(c, id) // incomplete: on its way here, or being deleted
		}
	}
	return c
}

func (e *entry) take(rest string, value []byte, stamp lamport.Stamp) {
	kind, node, _ := strings.Cut(rest, "/")
	switch kind {
	case "name":
		if json.Unmarshal(value, &e.name) == nil {
			e.named = stamp
		}
	case "primary":
		if json.Unmarshal(value, &e.designated) == nil {
			e.since = stamp
		}
	case "member":
		m := new(memberRecord)
		if json.Unmarshal(value, m) == nil {
			e.members[node] = m
		}
	case "switch":
		var s resource.Switches
		if json.Unmarshal(value, &s) == nil {
			e.switches[node] = s
		}
	case "facts":
		f := new(resource.Facts)
		if json.Unmarshal(value, f) == nil {
			e.facts[node] = f
		}
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
