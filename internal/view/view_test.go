package view

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"mars/internal/control"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// The builders below make a healthy world, which each scenario then damages.

func allOn() control.Switches {
	return control.Switches{Attach: true, Fetch: true, Replay: true, Sync: true}
}

func primary(node string) control.Member {
	return control.Member{
		Node: node, Alive: true, Disk: "/dev/vg/mydata", DiskState: control.DiskUpToDate, ReplState: control.ReplReplicating, Role: control.RolePrimary,
		Consistent: true, Switches: allOn(), Device: "/dev/mars/mydata",
	}
}

func secondary(node string) control.Member {
	return control.Member{
		Node: node, Alive: true, Disk: "/dev/vg/mydata", DiskState: control.DiskUpToDate, ReplState: control.ReplReplaying, Role: control.RoleSecondary,
		Consistent: true, Switches: allOn(),
	}
}

func self(m control.Member) control.Member { m.Self = true; return m }

func resource(name string, members ...control.Member) control.Resource {
	r := control.Resource{Name: name, SizeBytes: 10 << 30, DesignatedPrimary: "node-a", Members: members}
	for _, m := range members {
		if m.Role == control.RolePrimary {
			r.ActualPrimary = append(r.ActualPrimary, m.Node)
		}
	}
	return r
}

func world(resources ...control.Resource) control.Status {
	return control.Status{
		Time: noon, Node: "node-a", Cluster: "c0ffee", Resources: resources,
		Nodes:    []control.Node{{Name: "node-a", Self: true, Alive: true}, {Name: "node-b", Alive: true}},
		LogStore: control.LogStore{Dir: "/mars", UsedBytes: 1 << 30, FreeBytes: 60 << 30},
	}
}

func since(d time.Duration) time.Time { return noon.Add(-d) }

func fresh() control.Status {
	return world(resource("mydata", self(primary("node-a")), secondary("node-b")))
}

func several() control.Status {
	small := resource("vm-17.disk_0", self(secondary("node-a")), primary("node-b"))
	small.SizeBytes, small.DesignatedPrimary, small.Members[1].Device = 512<<20, "node-b", "/dev/mars/vm-17.disk_0"
	used := resource("db", self(primary("node-a")))
	used.SizeBytes, used.Members[0].Users, used.Members[0].Device = 3<<40, []string{"mounted on /srv"}, "/dev/mars/db"
	return world(fresh().Resources[0], small, used)
}

func syncing() control.Status {
	m := self(secondary("node-b"))
	m.DiskState, m.ReplState, m.Consistent = control.DiskInconsistent, control.ReplSyncing, false
	m.Progress = []control.Progress{
		{Kind: control.ProgressSync, DoneBytes: 4961 << 20, TotalBytes: 10 << 30, Rate: 112 << 20, RemainingSeconds: 47.2},
		{Kind: control.ProgressFetch, DoneBytes: 300 << 20, TotalBytes: 301 << 20, Rate: 9.3e6, RemainingSeconds: 0.1},
	}
	m.LagBytes, m.LagSeconds = 301<<20, 66
	return world(resource("mydata", m, primary("node-a")))
}

func syncingSeenFromPrimary() control.Status {
	m := syncing().Resources[0].Members[0]
	m.Self, m.Node = false, "node-with-a-long-name"
	slow := secondary("node-c")
	slow.DiskState, slow.ReplState, slow.LagBytes, slow.LagSeconds = "OutDated[FR]", control.ReplReplaying, 1288490189, 14.2
	gone := secondary("node-d")
	gone.Alive, gone.LastContactSeconds, gone.Messages = false, 192, []control.Message{{Level: control.LevelErr, Key: "disk", Text: "EIO at /dev/vg/mydata"}}
	return world(resource("mydata", self(primary("node-a")), m, secondary("node-b"), slow, gone))
}

func outdatedUnderLoad() control.Status {
	m := self(secondary("node-b"))
	m.DiskState, m.LagBytes, m.LagSeconds = "OutDated[FR]", 1471026299, 14.6
	m.Progress = []control.Progress{
		{Kind: control.ProgressFetch, DoneBytes: 1535 << 20, TotalBytes: 2 << 30, Rate: 104 << 20, RemainingSeconds: 5.2},
		{Kind: control.ProgressReplay, DoneBytes: 635 << 20, TotalBytes: 2 << 30, Rate: 80 << 20, RemainingSeconds: 17.6},
	}
	return world(resource("mydata", m, primary("node-a")))
}

func pausedFetch() control.Status {
	m := self(secondary("node-b"))
	m.DiskState, m.ReplState, m.Switches.Fetch, m.LagBytes, m.LagSeconds = "OutDated[F]", control.ReplPausedFetch, false, 700<<20, 3900
	return world(resource("mydata", m, primary("node-a")))
}

func splitBrain() control.Status {
	m := self(primary("node-a"))
	m.ReplState = control.ReplSplitBrain
	m.Messages = []control.Message{{Level: control.LevelErr, Key: "split-brain", Since: since(125 * time.Second),
		Text: "decide which side survives, then run `marsadm invalidate mydata` on the other"}}
	other := primary("node-b")
	other.ReplState, other.Role = control.ReplSplitBrain, control.RoleRemainsPrimary
	r := resource("mydata", m, other)
	r.ActualPrimary = []string{"node-a", "node-b"}
	r.SplitBrain = "node-a (12.0 MiB) against node-b (4.00 KiB) since LSN 73400320"
	return world(r)
}

func primaryUnreachable() control.Status {
	m := self(secondary("node-b"))
	m.ReplState, m.WaitsFor = control.ReplPrimaryUnreach, "an answer from node-a (10.0.0.1:7777: connection refused), for 3m12s"
	gone := primary("node-a")
	gone.Alive, gone.LastContactSeconds = false, 192.4
	st := world(resource("mydata", m, gone))
	st.Nodes = append(st.Nodes, control.Node{Name: "node-x", LastContactSeconds: -1})
	return st
}

func defectiveLog() control.Status {
	m := self(secondary("node-b"))
	m.DiskState = control.DiskDefectiveLog
	m.Messages = []control.Message{
		{Level: control.LevelErr, Key: "defective-log", Since: since(4 * time.Second), Text: "checksum of the record at LSN 20971520 is wrong, valid records follow: replay has stopped there"},
		{Level: control.LevelInfo, Key: "noise", Text: "never shown"},
		{Level: control.LevelWarn, Key: "refetch", Text: "fetching the segment again from node-a"},
	}
	return world(resource("mydata", m, primary("node-a")))
}

func notJoined() control.Status {
	st := world(resource("mydata", primary("node-a"), secondary("node-b")))
	st.Node = "node-c"
	st.Nodes[0].Self = false
	st.Nodes = append(st.Nodes, control.Node{Name: "node-c", Self: true, Alive: true})
	return st
}

func noSpace() control.Status {
	m := self(primary("node-a"))
	m.WaitsFor = "space in the log store, for 7.0s"
	m.LagBytes, m.LagSeconds = 500<<20, 21
	m.Progress = []control.Progress{{Kind: control.ProgressWriteBack, DoneBytes: 12 << 20, TotalBytes: 512 << 20, Rate: 0, RemainingSeconds: -1}}
	st := world(resource("mydata", m, secondary("node-b")))
	st.LogStore = control.LogStore{Dir: "/mars", LimitBytes: 64 << 30, UsedBytes: 68700000000, FreeBytes: 12 << 20}
	st.Messages = []control.Message{{Level: control.LevelErr, Key: "log-space", Since: since(7 * time.Second),
		Text: "the log store is full: writes wait 10s, then fail with ENOSPC: free space on /mars or raise log_limit"}}
	return st
}

func remains() control.Status {
	m := self(primary("node-a"))
	m.Role, m.Users = control.RoleRemainsPrimary, []string{"mounted on /srv", "NBD client pid 4711 (qemu-img)"}
	r := resource("mydata", m, secondary("node-b"))
	r.DesignatedPrimary, r.ActualPrimary = "node-b", []string{"node-a"}
	r.Members[1].Role, r.Members[1].ReplState = control.RoleNotYetPrimary, control.ReplNotYetPrimary
	return world(r)
}

func hostile() control.Status {
	st := fresh()
	st.Resources[0].Members[0].WaitsFor = "\x1b[2J\x1b]0;owned\x07\r\nroot# \u202eevil"
	st.Resources[0].DesignatedPrimary = "node\xff"
	return st
}

func TestGolden(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		st   control.Status
		o    Options
	}{
		{"fresh", fresh(), Options{}},
		{"several", several(), Options{}},
		{"syncing", syncing(), Options{}},
		{"syncing-from-primary", syncingSeenFromPrimary(), Options{}},
		{"outdated", outdatedUnderLoad(), Options{}},
		{"outdated-ascii", outdatedUnderLoad(), Options{ASCII: true}},
		{"outdated-color", outdatedUnderLoad(), Options{Color: true}},
		{"paused-fetch", pausedFetch(), Options{}},
		{"split-brain", splitBrain(), Options{}},
		{"split-brain-narrow", splitBrain(), Options{Width: 60}},
		{"primary-unreachable", primaryUnreachable(), Options{}},
		{"defective-log", defectiveLog(), Options{}},
		{"not-joined", notJoined(), Options{}},
		{"no-cluster", control.Status{Node: "node-a"}, Options{}},
		{"no-resources", world(), Options{}},
		{"no-space", noSpace(), Options{}},
		{"remains-primary", remains(), Options{}},
		{"hostile", hostile(), Options{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var b strings.Builder
			if err := Render(&b, tc.st, tc.o); err != nil {
				t.Fatal(err)
			}
			golden(t, filepath.Join("testdata", tc.name+".golden"), b.String())
		})
	}
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *rewrite {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test ./internal/view -rewrite accepts it)\n--- got\n%s--- want\n%s", file, got, want)
	}
}

// TestFitsAnyWidth: nothing panics, every word stays, and what can be wrapped fits (below 37 columns the terminal has to do it).
func TestFitsAnyWidth(t *testing.T) {
	t.Parallel()
	for width := 1; width < 200; width++ {
		for _, st := range []control.Status{fresh(), syncing(), splitBrain(), noSpace(), syncingSeenFromPrimary()} {
			var b, wide strings.Builder
			if err := errors.Join(Render(&b, st, Options{Width: width}), Render(&wide, st, Options{})); err != nil {
				t.Fatal(err)
			}
			if got, want := strings.Fields(b.String()), strings.Fields(wide.String()); len(got) != len(want) {
				t.Errorf("width %d: %d words, want %d", width, len(got), len(want))
			}
			for _, l := range strings.Split(b.String(), "\n") {
				if width >= 37 && utf8.RuneCountInString(l) > width {
					t.Errorf("width %d: %q", width, l)
				}
			}
		}
	}
}

func TestColorOnlyAddsEscapes(t *testing.T) {
	t.Parallel()
	var colored, plain strings.Builder
	st := syncingSeenFromPrimary()
	if err := Render(&colored, st, Options{Color: true}); err != nil {
		t.Fatal(err)
	}
	if err := Render(&plain, st, Options{}); err != nil {
		t.Fatal(err)
	}
	text := colored.String()
	for _, e := range escapes {
		if e != "" {
			text = strings.ReplaceAll(text, e, "")
		}
	}
	if strings.ReplaceAll(text, escapeEnd, "") != plain.String() {
		t.Errorf("colours change more than the colours:\n%q", text)
	}
}

func TestManyOthersAreSummed(t *testing.T) {
	t.Parallel()
	members := []control.Member{self(primary("node-a"))}
	for i := range 20 {
		m := secondary(fmt.Sprintf("node-%d", i))
		m.DiskState = "OutDated[R]"
		members = append(members, m)
	}
	var b strings.Builder
	if err := Render(&b, world(resource("mydata", members...)), Options{}); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(b.String(), "OutDated"); n != maxOthers || !strings.Contains(b.String(), "and 12 more members") {
		t.Errorf("%d shown:\n%s", n, b.String())
	}
}

func TestPercentIsNeverAhead(t *testing.T) {
	t.Parallel()
	if got := percent(1<<40-1, 1<<40); got != " 99.9 %" {
		t.Errorf("got %q", got)
	}
	for _, p := range [][2]int64{{5, 0}, {-1, 10}, {20, 10}} {
		if got := percent(p[0], p[1]); got != "  0.0 %" && got != "100.0 %" {
			t.Errorf("percent(%v) = %q", p, got)
		}
	}
}

func TestDuration(t *testing.T) {
	t.Parallel()
	for seconds, want := range map[float64]string{
		-3: "0.0s", 0: "0.0s", 0.44: "0.4s", 9.99: "9.9s", 14.9: "14s", 192: "3m12s", 7500: "2h05m", 1e6: "11d13h", 1e300: "36500d00h",
	} {
		if got := Seconds(seconds); got != want {
			t.Errorf("Seconds(%v) = %q, want %q", seconds, got, want)
		}
	}
}

func TestFlags(t *testing.T) {
	t.Parallel()
	with := func(m control.Member, change func(*control.Member)) control.Member { change(&m); return m }
	for want, m := range map[string]control.Member{
		"dCASFR": primary("a"),
		"DCASFR": with(primary("a"), func(m *control.Member) { m.Users = []string{"/srv"} }),
		"-CASFR": secondary("a"),
		"-CAS-R": with(secondary("a"), func(m *control.Member) { m.Switches.Fetch = false }),
		"-CASfR": with(secondary("a"), func(m *control.Member) { m.ReplState = control.ReplPrimaryUnreach }),
		"-CASFr": with(secondary("a"), func(m *control.Member) { m.DiskState = control.DiskDefectiveLog + "[bad crc]" }),
		"-CASfr": with(secondary("a"), func(m *control.Member) { m.ReplState = control.ReplSplitBrain }),
		"--asfr": with(secondary("a"), func(m *control.Member) { m.DiskState, m.Consistent = control.DiskError, false }),
		"--AsfR": with(secondary("a"), func(m *control.Member) {
			m.DiskState, m.ReplState, m.Consistent = control.DiskInconsistent, control.ReplNoPrimary, false
		}),
		"------": {DiskState: control.DiskNone},
	} {
		if got := flags(m); got != want {
			t.Errorf("%s/%s: flags %q, want %q", m.DiskState, m.ReplState, got, want)
		}
	}
}
