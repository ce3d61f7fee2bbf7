package e2e

import (
	"slices"
	"testing"

	"mars/internal/control"
	"mars/tests/stamp"
)

// TestMixedRoles: three nodes, three resources, each node primary of one and secondary of the others; all roles move on by one under load.
func TestMixedRoles(t *testing.T) {
	t.Parallel()
	w := newCluster(t, 3)
	journals := []*stamp.Journal{{}, {}, {}}
	all := []string{"red", "green", "blue"}
	for i, x := range w.nodes {
		x.creates(all[i])
	}
	for i, x := range w.nodes {
		x.gets(all[(i+1)%3])
		x.gets(all[(i+2)%3])
	}
	primary := slices.Clone(w.nodes)
	for range 2 {
		var applications []*load
		for i, x := range primary {
			applications = append(applications, x.starts(all[i], journals[i]))
		}
		for i, application := range applications {
			application.runs(100)
			must := application.stops()
			next := w.nodes[(slices.Index(w.nodes, primary[i])+1)%3]
			next.do("primary", all[i])
			next.checkDevice(all[i], journals[i], must)
			primary[i] = next
		}
	}
	for i, r := range all {
		var others []*node
		for _, x := range w.nodes {
			if x != primary[i] {
				others = append(others, x)
			}
		}
		settle(r, primary[i], others...)
		checkEqual(t, r, w.nodes[0], w.nodes[1])
		checkEqual(t, r, w.nodes[1], w.nodes[2])
	}
}

// TestMigration moves a volume to another machine under load, without the application noticing more than the handover: a third node joins,
// becomes primary, and the first one leaves.
func TestMigration(t *testing.T) {
	t.Parallel()
	w := newCluster(t, 3)
	a, b, c := w.nodes[0], w.nodes[1], w.nodes[2]
	j := &stamp.Journal{}
	a.creates(res)
	b.gets(res)
	application := a.starts(res, j)
	application.runs(200)
	c.gets(res)
	application.runs(100)
	must := application.stops()
	c.do("primary", res)
	c.checkDevice(res, j, must)
	application = c.starts(res, j)
	application.runs(100)
	a.do("leave-resource", res)
	a.checkDisk(res, j, 0) // it keeps its content
	application.runs(100)
	must = application.stops()
	settle(res, c, b)
	b.checkDisk(res, j, must)
	if st := c.await("alpha is no member any more", func(st control.Status) bool { return member(st, res, a.name).Node == "" }); len(st.Nodes) != 3 {
		t.Errorf("alpha left the resource, not the cluster: %s", show(st))
	}
}

// TestLeaveOfADeadHost: a node that will never come back is taken out of the resource, and its log is no longer kept. When it comes back all
// the same, it knows that it is no member any more.
func TestLeaveOfADeadHost(t *testing.T) {
	t.Parallel()
	w := newCluster(t, 3, "--segment-size", "1MiB")
	a, b, c := w.nodes[0], w.nodes[1], w.nodes[2]
	j := &stamp.Journal{}
	a.creates(res)
	b.gets(res)
	c.gets(res)
	a.refuses([]string{"alive"}, "leave-resource", res, "--host", c.name, "--force")
	c.kill()
	a.awaitSight(c, false)
	application := a.starts(res, j)
	a.await("log is kept for gamma", func(st control.Status) bool { return st.LogStore.UsedBytes > 6*mib })
	must := application.stops()
	settle(res, a, b)
	b.checkDisk(res, j, must)
	if st, err := a.tryStatus(); err != nil || st.LogStore.UsedBytes < 6*mib {
		t.Errorf("log that gamma needs is gone: %v\n%s", err, show(st))
	}
	a.do("leave-resource", res, "--host", c.name, "--force")
	until(t, "log is no longer kept for gamma", func() bool { return a.segments(t) < 4 })
	c.start()
	c.await("gamma knows that it is out", func(st control.Status) bool {
		r, ok := find(st, res)
		return ok && len(r.Members) == 2 && member(st, res, c.name).Node == ""
	})
	c.gets(res)
	settle(res, a, b, c)
	checkEqual(t, res, a, c)
}

// TestRestartInAnyOrder: all three die at once, and come back in different orders.
func TestRestartInAnyOrder(t *testing.T) {
	t.Parallel()
	w := newCluster(t, 3)
	j := &stamp.Journal{}
	w.nodes[0].creates(res)
	w.nodes[1].gets(res)
	w.nodes[2].gets(res)
	for _, order := range [][]int{{2, 1, 0}, {1, 0, 2}} {
		application := w.nodes[0].starts(res, j)
		application.runs(150)
		for _, x := range w.nodes {
			x.kill()
		}
		application.dies()
		must := j.Now()
		for _, i := range order {
			w.nodes[i].start()
		}
		w.nodes[0].awaitSelf(res, "alpha is primary again", isPrimary)
		w.nodes[0].checkDevice(res, j, must)
	}
	settle(res, w.nodes[0], w.nodes[1], w.nodes[2])
	checkEqual(t, res, w.nodes[0], w.nodes[1])
	checkEqual(t, res, w.nodes[0], w.nodes[2])
}
