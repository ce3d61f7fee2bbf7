package node

import (
	"strings"
	"testing"

	"mars/internal/meta"
	"mars/internal/resource"
)

const someID = "0123456789abcdef0123456789abcdef"

func catalogFrom(values map[string]string) catalog {
	var entries []meta.Entry
	for key, value := range values {
		entries = append(entries, meta.Entry{Key: key, Value: []byte(value)})
	}
	var p parsed
	return catalogOf(entries, p.all(entries))
}

// Ids and names from other nodes become parts of paths here.
func TestCatalogTakesNothingThatLeadsElsewhere(t *testing.T) {
	t.Parallel()
	member := "/member/" + someID
	ok := catalogFrom(map[string]string{"resource/" + someID + "/name": `"vol"`, "resource/" + someID + member: `{"disk":"/dev/x"}`})
	if e := ok[someID]; len(ok) != 1 || e.name != "vol" || e.members[someID] == nil {
		t.Fatalf("a good resource became %+v", ok)
	}
	for _, name := range []string{"..", "../vol", "a/b", "/etc", "a\u0000b", "a\nb", "\u202evol", "ü", "-f", "all", "", strings.Repeat("n", 4096)} {
		if c := catalogFrom(map[string]string{"resource/" + someID + "/name": `"` + name + `"`, "resource/" + someID + member: `{}`}); len(c) != 0 {
			t.Errorf("the name %.20q is taken", name)
		}
	}
	for _, id := range []string{"..", ".", "", someID[1:], someID + "0", strings.ToUpper(someID)} {
		if c := catalogFrom(map[string]string{"resource/" + id + "/name": `"vol"`, "resource/" + id + member: `{}`}); len(c) != 0 {
			t.Errorf("the id %q is taken", id)
		}
	}
}

// FuzzFacts: whatever another node says about its replica, a decision comes out.
func FuzzFacts(f *testing.F) {
	f.Add([]byte(`{}`), []byte(`{"attached":true,"writable":true,"path":{"timelines":[{"id":1,"origin":"b"}],"end":10}}`))
	f.Add([]byte(`{"attached":true,"consistent":true,"durable":18446744073709551615,"path":{"end":18446744073709551615}}`),
		encode(resource.Facts{Attached: true, Consistent: true, Writable: true}))
	f.Fuzz(func(t *testing.T, ours, theirs []byte) {
		mine, ok1 := parseValue(key("R", "facts", "a"), ours).(*resource.Facts)
		their, ok2 := parseValue(key("R", "facts", "b"), theirs).(*resource.Facts)
		if !ok1 || !ok2 {
			return
		}
		in := resource.Input{Self: "a", Designated: "b", Switches: resource.AllOn, Settled: true, Peers: []resource.Peer{{Node: "b", Alive: true, Facts: their}}}
		in.Local.Open, in.Local.Path, in.Local.Consistent = true, mine.Path, mine.Consistent
		in.Local.Writable, in.Local.Durable, in.Local.Sync = mine.Writable, mine.Durable, mine.Sync
		plan := resource.Decide(in)
		resource.Describe(in, plan)
		resource.Next(&in.Local, &plan)
		for _, may := range []func(*resource.Input) error{resource.MayBePrimary, resource.MayWish, resource.MayForce, resource.MayInvalidate} {
			_ = may(&in) // its opinion does not matter here
		}
		_ = resource.MayLeave(&in, false)
		thrownAway(in)
	})
}
