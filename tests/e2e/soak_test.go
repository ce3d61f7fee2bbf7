package e2e

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"mars/internal/control"
)

// Environment of the soak test: MARS_SOAK_DURATION is how long it goes on (it ends with the round in which the time is over),
// MARS_TEST_SEED repeats a schedule, as far as real processes allow.
const soakByDefault = 90 * time.Second

// TestSoak lets applications work on a cluster of three while everything goes wrong that may go wrong, at random moments, round by round. After
// each round it heals the world, waits until all replicas are up to date, and proves that nothing was lost: see soak.check.
//
// Two volumes: one is written by an application that stamps each sector and keeps its journal in this process, the other carries a file system
// with files and a database, whose journals are also kept here, outside of any victim.
func TestSoak(t *testing.T) {
	t.Parallel()
	s := newSoak(t)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM) // the world must be taken down in any case
	defer stop()
	for end := time.Now().Add(s.duration); ctx.Err() == nil && time.Now().Before(end); {
		s.round++
		s.story = nil
		s.play()
		s.check()
	}
	s.say("done: %s", s.figures())
}

// soak is one run. Only the test's goroutine may use it.
type soak struct {
	t        *testing.T
	w        *world
	rnd      *rand.Rand
	seed     uint64
	duration time.Duration
	began    time.Time
	vols     []*soakVolume
	round    int
	story    []string // what was done in this round

	kills, stops, failovers, lossy, handovers, freezes, netFaults, syncs, joins, clocks int
}

// soakVolume is a resource, what works on it, and what this test knows about it.
type soakVolume struct {
	name    string
	size    int64
	members []*node
	primary *node // who must be primary now
	app     soakApp
	running bool       // the application works
	watch   *shipWatch // nil while the application rests
}

// soakApp works on a volume. Its goroutines must not end the test; their complaints are in err.
type soakApp interface {
	// begin opens the device on x, proves that its content is a state that has everything up to must, and starts to work. adopt: what is not
	// there is lost and must never be seen again.
	begin(x *node, must mark, adopt bool)
	// end stops the work in an orderly way; everything is durable then.
	end()
	// crash waits until the application has noticed that its device is gone, and cleans up.
	crash()
	// abandon gets rid of everything, whatever state it is in. The daemons are dead by then.
	abandon()
	// mark is what is acknowledged by now. It may be called by any goroutine.
	mark() mark
	err() error
	// rest proves that the disk of a replica has exactly what must be there, after end, and that the primary's device has.
	rest(v *soakVolume)
	// prefix proves that the image is the disk of a consistent replica: a state with everything up to must.
	prefix(image string, must mark)
	written() int64
}

// mark is a moment in the journals of an application.
type mark struct{ a, b uint64 }

func newSoak(t *testing.T) *soak {
	t.Helper()
	s := &soak{t: t, seed: uint64(time.Now().UnixNano()), duration: soakByDefault, began: time.Now()}
	if text := os.Getenv("MARS_TEST_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("MARS_TEST_SEED: %v", err)
		}
		s.seed = seed
	}
	if text := os.Getenv("MARS_SOAK_DURATION"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("MARS_SOAK_DURATION: %v", err)
		}
		s.duration = d
	}
	s.rnd = rand.New(rand.NewPCG(s.seed, 1))
	t.Logf("MARS_TEST_SEED=%d MARS_SOAK_DURATION=%v", s.seed, s.duration)
	missing := needLoop("mkfs.ext4", "mkfs.xfs", "e2fsck", "xfs_repair", "mount", "umount", "sqlite3")
	if missing != "" && os.Getenv("MARS_TEST_REQUIRE") == "all" {
		t.Fatalf("REQUIRED BUT MISSING: %s", missing)
	}
	flags := []string{"--stall-timeout", "5m", "--segment-size", "1MiB"}
	if missing == "" {
		flags = append(flags, "--device", "loop")
	}
	s.w = newCluster(t, 3, flags...)
	t.Cleanup(s.takeDown)
	for _, x := range s.w.nodes {
		x.stop()
		x.getsJumpyClock()
		x.start()
	}
	s.addVolume("raw", volumeSize, s.w.nodes[0], newRawApp(s))
	if missing != "" {
		t.Logf("SKIPPED: file system and database under load: %s", missing)
		return s
	}
	s.addVolume("fs", fsVolumeSize, s.w.nodes[1], newFSApp(s))
	return s
}

// addVolume creates a resource with two or three replicas.
func (s *soak) addVolume(name string, size int64, primary *node, app soakApp) {
	s.t.Helper()
	v := &soakVolume{name: name, size: size, primary: primary, members: []*node{primary}, app: app}
	primary.do("create-resource", name, makeDisk(s.t, primary.diskOf(name), size))
	s.vols = append(s.vols, v)
	for i, x := range s.shuffled(s.others(primary)) {
		if i == 0 || s.rnd.IntN(2) == 0 {
			s.join(v, x)
		}
	}
}

// say tells what happens, and remembers it for the report of a failure.
func (s *soak) say(format string, args ...any) {
	line := fmt.Sprintf("%7.1fs round %d: ", time.Since(s.began).Seconds(), s.round) + fmt.Sprintf(format, args...)
	s.story = append(s.story, line)
	s.t.Log(line)
}

func (s *soak) figures() string {
	var bytes int64
	for _, v := range s.vols {
		bytes += v.app.written()
	}
	return fmt.Sprintf("%d rounds, %d daemons killed and %d stopped, %d forced failovers (%d with a split brain), %d handovers, %d daemons frozen, %d network faults, %d clocks set wrong, "+
		"%d full syncs, %d joins, %d MiB written by applications", s.round, s.kills, s.stops, s.failovers, s.lossy, s.handovers, s.freezes, s.netFaults, s.clocks, s.syncs, s.joins, bytes/mib)
}

// play is one round: the applications work while things go wrong.
func (s *soak) play() {
	s.t.Helper()
	for _, v := range s.vols {
		s.begin(v, v.app.mark(), false)
	}
	for range 2 + s.rnd.IntN(4) {
		s.pause(100*time.Millisecond, 1500*time.Millisecond)
		s.misfortune()
	}
	s.pause(100*time.Millisecond, time.Second)
}

// begin lets the application of a volume work on its primary.
func (s *soak) begin(v *soakVolume, must mark, adopt bool) {
	s.t.Helper()
	v.primary.awaitSelf(v.name, "it is primary", isPrimary)
	v.app.begin(v.primary, must, adopt)
	v.running = true
	if v.watch == nil || adopt {
		v.watch = &shipWatch{shipped: map[string]mark{}}
	}
	v.watch.start(v, v.primary)
}

// end lets the application rest.
func (s *soak) end(v *soakVolume) {
	s.t.Helper()
	v.watch.stop()
	v.app.end()
	s.healthy()
	v.running = false
}

// crashed cleans up behind an application whose device has gone.
func (s *soak) crashed(v *soakVolume) {
	v.watch.stop()
	v.app.crash()
	v.running = false
}

// check is the end of each round. The world is healthy; the applications end; and then everybody has the same, and it is what was acknowledged.
func (s *soak) check() {
	s.t.Helper()
	for _, v := range s.vols {
		s.end(v)
	}
	s.rightClocks()
	for _, v := range s.vols {
		s.converge(v)
	}
	for _, v := range s.vols {
		for _, x := range v.members[1:] {
			checkEqual(s.t, v.name, v.members[0], x)
		}
		v.app.rest(v)
		for _, x := range v.members {
			v.watch.arrived(x, v.app.mark())
		}
	}
	if s.t.Failed() {
		s.t.FailNow()
	}
	s.say("all is well: %s", s.figures())
}

// converge waits until all nodes agree that all replicas are up to date and that there is nothing to complain about.
func (s *soak) converge(v *soakVolume) {
	s.t.Helper()
	settle(v.name, v.primary, slices.DeleteFunc(slices.Clone(v.members), func(x *node) bool { return x == v.primary })...)
	for _, x := range s.w.nodes {
		var why string
		defer func() {
			if why != "" {
				s.t.Logf("%s did not converge: %s", v.name, why)
			}
		}()
		x.await(v.name+" is up to date everywhere, without messages", func(st control.Status) bool { why = v.unwell(st); return why == "" })
	}
}

// unwell says what is wrong with the volume in a status, "" if nothing is.
func (v *soakVolume) unwell(st control.Status) string {
	r, ok := find(st, v.name)
	switch {
	case !ok:
		return "not known"
	case len(st.Messages) > 0:
		return "message: " + st.Messages[0].Text
	case r.SplitBrain != "":
		return "split brain: " + r.SplitBrain
	case len(r.Members) != len(v.members):
		return fmt.Sprintf("%d members, want %d", len(r.Members), len(v.members))
	case r.DesignatedPrimary != v.primary.name || !slices.Equal(r.ActualPrimary, []string{v.primary.name}):
		return fmt.Sprintf("designated %q, primary %q, want %q", r.DesignatedPrimary, r.ActualPrimary, v.primary.name)
	}
	for _, m := range r.Members {
		switch {
		case !m.Alive || m.DiskState != control.DiskUpToDate || !m.Consistent:
			return fmt.Sprintf("%s: alive %t, %s, consistent %t", m.Node, m.Alive, m.DiskState, m.Consistent)
		case len(m.Messages) > 0:
			return m.Node + ": message: " + m.Messages[0].Text
		}
	}
	return ""
}

// takeDown ends what the run has started, before the world ends its daemons. After a failure it says how to repeat it and keeps the evidence.
func (s *soak) takeDown() {
	s.calm()
	if !s.t.Failed() {
		return
	}
	s.w.keepStates()
	for _, x := range s.w.nodes {
		if x.running() {
			x.cmd.Process.Kill() // applications that wait for anything get an error now
			<-x.ended
			x.cmd = nil
		}
	}
	for _, v := range s.vols {
		if v.watch != nil {
			v.watch.stop()
		}
		v.app.abandon()
	}
	s.keepDisks()
	s.sweep()
	s.t.Logf("FAILED in round %d with seed %d. This round:\n  %s\nAgain:\n  MARS_TEST_SEED=%d MARS_SOAK_DURATION=%v go test -count=1 -timeout 0 -v -run 'TestSoak$' ./tests/e2e",
		s.round, s.seed, strings.Join(s.story, "\n  "), s.seed, s.duration)
}

// sweep removes the devices that killed daemons leave behind until they are started again.
func (s *soak) sweep() {
	for _, dev := range loopsBelow(s.w.root) {
		if out, err := exec.Command("losetup", "-d", dev).CombinedOutput(); err != nil {
			s.t.Logf("losetup -d %s: %v\n%s", dev, err, out)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		s.t.Log(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], s.w.root+"/") {
			if out, err := exec.Command("umount", "-l", f[1]).CombinedOutput(); err != nil {
				s.t.Logf("umount %s: %v\n%s", f[1], err, out)
			}
		}
	}
}

// keepDisks keeps the disks and the logs of all nodes.
func (s *soak) keepDisks() {
	base := cmp.Or(os.Getenv("MARS_E2E_KEEP"), filepath.Join(os.TempDir(), "mars-e2e-failed"))
	dir := filepath.Join(base, s.t.Name(), fmt.Sprintf("seed-%d", s.seed))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		s.t.Log(err)
		return
	}
	images, _ := filepath.Glob(filepath.Join(s.w.root, "*.img")) // the pattern is right
	logs, _ := filepath.Glob(filepath.Join(s.w.root, "*", "resource"))
	for _, from := range append(images, logs...) {
		to := filepath.Join(dir, strings.ReplaceAll(strings.TrimPrefix(from, s.w.root+"/"), "/", "-"))
		if out, err := exec.Command("cp", "-a", "--sparse=always", from, to).CombinedOutput(); err != nil {
			s.t.Logf("keep %s: %v\n%s", from, err, out)
		}
	}
	s.t.Logf("disks and transaction logs are kept in %s", dir)
}

// calm lets everything that hangs go on.
func (s *soak) calm() {
	for _, x := range s.w.nodes {
		s.w.net.Rejoin(x.name)
		if x.running() {
			x.cmd.Process.Signal(syscall.SIGCONT)
		}
	}
}

// healthy: while an application works nothing may happen to it that this test has not done.
func (s *soak) healthy() {
	s.t.Helper()
	for _, v := range s.vols {
		if err := v.app.err(); err != nil {
			s.t.Fatalf("the application of %s gets an error: %v", v.name, err)
		}
	}
}

// pause lets the applications work for a random time. It is no wait for anything.
func (s *soak) pause(from, to time.Duration) {
	s.t.Helper()
	<-time.After(from + time.Duration(s.rnd.Int64N(int64(to-from))))
	s.healthy()
}

func (s *soak) others(not ...*node) []*node {
	return slices.DeleteFunc(slices.Clone(s.w.nodes), func(x *node) bool { return slices.Contains(not, x) })
}

func (s *soak) shuffled(nodes []*node) []*node {
	s.rnd.Shuffle(len(nodes), func(i, k int) { nodes[i], nodes[k] = nodes[k], nodes[i] })
	return nodes
}

// secondary picks one of the volume's secondaries.
func (s *soak) secondary(v *soakVolume) *node {
	all := slices.DeleteFunc(slices.Clone(v.members), func(x *node) bool { return x == v.primary })
	return all[s.rnd.IntN(len(all))]
}

func (s *soak) volume() *soakVolume { return s.vols[s.rnd.IntN(len(s.vols))] }
