package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"mars/internal/control"
)

// misfortune is one step of a round. Each begins and ends with all daemons running and the network whole, but waits for no more than it needs:
// what the step before has left undone goes on meanwhile.
func (s *soak) misfortune() {
	s.t.Helper()
	steps := []struct {
		weight int
		do     func()
	}{
		{5, s.killSome}, {4, s.failOver}, {2, s.freezeOne}, {4, s.badWeather}, {4, s.handOver}, {2, s.invalidateOne}, {3, s.switchOne},
		{2, s.memberChange}, {2, s.recoverAlone}, {3, s.jumpClock},
	}
	n := 0
	for _, st := range steps {
		n += st.weight
	}
	pick := s.rnd.IntN(n)
	for _, st := range steps {
		if pick -= st.weight; pick < 0 {
			st.do()
			return
		}
	}
}

// killSome kills some or all daemons at once and starts them again. The roles come back by themselves, and everything acknowledged is there.
func (s *soak) killSome() {
	s.t.Helper()
	victims := s.shuffled(slices.Clone(s.w.nodes))[:1+s.rnd.IntN(3)]
	bad := s.maybeDamage(victims[0])
	s.say("kill %s, with %s", nodeNames(victims), bad.what)
	s.pause(0, 500*time.Millisecond)
	down := s.kill(victims...)
	s.pause(0, 2*time.Second)
	s.restart(victims)
	bad.healSoon()
	s.goOn(down)
	bad.heal()
}

// kill kills daemons, or stops one in an orderly way, and returns the volumes whose applications have lost their device.
func (s *soak) kill(victims ...*node) []*soakVolume {
	s.t.Helper()
	if len(victims) == 1 && s.rnd.IntN(4) == 0 {
		s.stops++
		victims[0].stop()
	} else {
		for _, x := range victims {
			s.kills++
			x.signal(syscall.SIGKILL)
		}
		for _, x := range victims {
			x.reap()
		}
	}
	var down []*soakVolume
	for _, v := range s.vols {
		if slices.Contains(victims, v.primary) && v.running {
			s.crashed(v)
			down = append(down, v)
		}
	}
	return down
}

// restart starts daemons in any order. Some of them are killed once more while they recover.
func (s *soak) restart(victims []*node) {
	s.t.Helper()
	for _, x := range s.shuffled(slices.Clone(victims)) {
		for s.rnd.IntN(4) == 0 {
			x.launch(s.daemonFlags()...)
			s.pause(0, 500*time.Millisecond)
			s.kills++
			x.kill()
		}
		x.start(s.daemonFlags()...)
	}
}

// goOn lets applications begin again where they were.
func (s *soak) goOn(down []*soakVolume) {
	s.t.Helper()
	for _, v := range down {
		s.begin(v, v.app.mark(), false)
	}
}

// daemonFlags give a daemon less room for its logs, or no write cache. The room is enough for what a file system writes when it is mounted, because the
// soak waits for that while the network may be bad, and a primary keeps its log for members that it cannot reach.
func (s *soak) daemonFlags() []string {
	switch s.rnd.IntN(5) {
	case 0, 1:
		return []string{"--log-limit", fmt.Sprintf("%dMiB", 160+s.rnd.IntN(80))}
	case 2:
		return []string{"--write-cache", "off"}
	}
	return nil
}

func nodeNames(nodes []*node) string {
	var out []string
	for _, x := range nodes {
		out = append(out, x.name)
	}
	return strings.Join(out, " and ")
}

// ready waits until a replica could take over: it follows the primary and is consistent.
func (s *soak) ready(v *soakVolume, x *node) {
	s.t.Helper()
	timeline := v.primary.self(v.name).Timeline
	x.awaitSelf(v.name, "it follows "+v.primary.name, func(m control.Member) bool { return m.Consistent && m.Timeline == timeline })
}

// failOver kills the primary of a volume, perhaps after it has lost contact for a while, or leaves it alive without contact, and makes another node
// go on by force. What had not arrived there is lost, nothing else; and the others follow the winner, or give up what only they have.
func (s *soak) failOver() {
	s.t.Helper()
	loser := s.volume().primary
	var down []*soakVolume
	winners := map[*soakVolume]*node{}
	for _, v := range s.vols {
		if v.primary == loser {
			down = append(down, v)
			winners[v] = s.secondary(v)
			s.ready(v, winners[v])
			if s.rnd.IntN(3) == 0 { // then much is in its log only when it takes over
				s.say("%s does not replay %s", winners[v].name, v.name)
				winners[v].do("pause-replay", v.name)
				s.pause(0, 2*time.Second)
			}
		}
	}
	tail, alive := s.rnd.IntN(2) == 0, s.rnd.IntN(3) == 0
	s.say("fail over from %s, with a lost tail: %t, alive: %t", loser.name, tail || alive, alive)
	if tail || alive {
		s.w.net.Isolate(loser.name)
		s.pause(0, time.Second)
	}
	if alive {
		for _, v := range down {
			s.end(v) // its applications are fenced; what they have written since is lost all the same
		}
	} else {
		s.kill(loser)
		s.w.net.Rejoin(loser.name)
	}
	for _, v := range down {
		must := v.watch.at(winners[v])
		winners[v].awaitSight(loser, false)
		s.say("%s by force on %s, which must have %d of %d: %s", v.name, winners[v].name, must, v.app.mark(),
			strings.ReplaceAll(winners[v].do("primary", v.name, "--force"), "\n", "; "))
		s.failovers++
		v.primary = winners[v]
		s.begin(v, must, true)
		v.primary.do("resume-replay", v.name)
	}
	s.pause(0, time.Second)
	if alive {
		s.w.net.Rejoin(loser.name)
	} else {
		s.restart([]*node{loser})
	}
	for _, v := range down {
		for _, x := range v.members {
			if x != v.primary {
				s.resolve(v, x)
			}
		}
	}
}

// resolve waits until a replica follows the winner; if both have data behind the fork it gives up its own side, as soon as it has stepped down.
func (s *soak) resolve(v *soakVolume, x *node) {
	s.t.Helper()
	timeline := v.primary.self(v.name).Timeline
	m := x.awaitSelf(v.name, "it follows or shows a split brain", func(m control.Member) bool {
		return m.Timeline == timeline || m.ReplState == control.ReplSplitBrain && m.Role == control.RoleSecondary
	})
	if m.ReplState == control.ReplSplitBrain {
		s.lossy++
		s.syncs++
		s.say("%s has a split brain: invalidate: %s", x.name, x.do("invalidate", v.name))
	}
}

// freezeOne stops a process for some seconds. Nobody loses anything; if it is the primary its application waits.
func (s *soak) freezeOne() {
	s.t.Helper()
	x := s.w.nodes[s.rnd.IntN(len(s.w.nodes))]
	s.say("freeze %s", x.name)
	s.freezes++
	x.freeze()
	s.pause(500*time.Millisecond, 8*time.Second)
	x.thaw()
}

// badWeather damages several links for some time.
func (s *soak) badWeather() {
	s.t.Helper()
	var all []*badNet
	var what []string
	for range 1 + s.rnd.IntN(3) {
		pair := s.shuffled(slices.Clone(s.w.nodes))
		bad := s.damage(pair[0], pair[1])
		all, what = append(all, bad), append(what, bad.what)
	}
	s.say("network: %s", strings.Join(what, ", "))
	s.pause(500*time.Millisecond, 6*time.Second)
	for _, bad := range all {
		bad.heal()
	}
}

// handOver moves a volume in a planned way. If the network fails or somebody dies during that the command may fail, but then the next one must
// succeed. Nothing at all is lost.
func (s *soak) handOver() {
	s.t.Helper()
	v := s.volume()
	from, to := v.primary, s.secondary(v)
	s.ready(v, to)
	s.seeEachOther()
	s.end(v)
	bad := s.maybeDamage(to)
	s.say("hand %s over from %s to %s, with %s", v.name, from.name, to.name, bad.what)
	answered := make(chan answer, 1)
	go func() { answered <- to.admIn(10*shortly, "primary", v.name) }() // ends with its time-out at the latest; joined below
	var victims []*node
	if s.rnd.IntN(3) == 0 {
		victims = s.shuffled([]*node{from, to})[:1+s.rnd.IntN(2)]
		s.pause(0, 300*time.Millisecond)
		s.say("kill %s during the handover", nodeNames(victims))
		down := s.kill(victims...)
		s.restart(victims)
		bad.healSoon()
		s.goOn(down)
	}
	said := <-answered
	bad.heal()
	if said.code != 0 || victims != nil {
		if bad.what == "a healthy network" && victims == nil {
			s.t.Fatalf("handover: %s", said.err)
		}
		s.say("exit status of the handover: %d %s", said.code, said.err)
		s.seeEachOther()
		to.do("primary", v.name)
	}
	s.handovers++
	v.primary = to
	s.begin(v, v.app.mark(), false)
}

// seeEachOther waits until all nodes are in contact.
func (s *soak) seeEachOther() {
	s.t.Helper()
	for _, x := range s.w.nodes {
		for _, y := range s.others(x) {
			x.awaitSight(y, true)
		}
	}
}

// invalidateOne fills a replica anew, while the network fails or the daemon dies.
func (s *soak) invalidateOne() {
	s.t.Helper()
	v := s.volume()
	x := s.secondary(v)
	s.seeEachOther()
	s.ready(v, v.primary)
	v.watch.stop()
	v.watch.forget(x)
	s.syncs++
	said := x.do("invalidate", v.name)
	v.watch.start(v, v.primary)
	bad := s.maybeDamage(x)
	s.say("invalidate %s on %s, with %s: %s", v.name, x.name, bad.what, said)
	s.pause(0, 2*time.Second)
	if s.rnd.IntN(2) == 0 && !s.isPrimary(x) {
		s.say("kill %s during the sync", x.name)
		s.kill(x)
		s.restart([]*node{x})
	}
	s.pause(0, time.Second)
	bad.heal()
}

func (s *soak) isPrimary(x *node) bool {
	return slices.ContainsFunc(s.vols, func(v *soakVolume) bool { return v.primary == x })
}

// switchOne does what operators do on other days.
func (s *soak) switchOne() {
	s.t.Helper()
	v := s.volume()
	x := s.secondary(v)
	pairs := [][2]string{{"pause-replay", "resume-replay"}, {"pause-fetch", "resume-fetch"}, {"detach", "attach"}, {"down", "up"}, {"log-rotate", ""}}
	pick := pairs[s.rnd.IntN(len(pairs))]
	if pick[1] == "" {
		s.say("rotate the log of %s", v.name)
		v.primary.do("log-rotate", v.name)
		return
	}
	s.say("%s of %s on %s", pick[0], v.name, x.name)
	x.do(pick[0], v.name)
	s.pause(200*time.Millisecond, 3*time.Second)
	if s.rnd.IntN(3) == 0 && !s.isPrimary(x) {
		s.say("kill %s meanwhile", x.name)
		s.kill(x)
		s.restart([]*node{x})
	}
	x.do(pick[1], v.name)
}

// memberChange lets a third replica leave, or adds it.
func (s *soak) memberChange() {
	s.t.Helper()
	v := s.volume()
	s.seeEachOther()
	if len(v.members) < 3 {
		s.join(v, s.others(v.members...)[0])
		return
	}
	x := s.secondary(v)
	for _, m := range v.members { // who leaves must not be needed as a source
		s.ready(v, m)
	}
	s.say("%s leaves %s", x.name, v.name)
	v.watch.stop()
	x.do("leave-resource", v.name)
	v.members = slices.DeleteFunc(slices.Clone(v.members), func(m *node) bool { return m == x })
	v.watch.forget(x)
	v.watch.start(v, v.primary)
}

// join adds a replica, on a fresh disk or on one that has been a replica before. The sync goes on by itself.
func (s *soak) join(v *soakVolume, x *node) {
	s.t.Helper()
	disk := x.diskOf(v.name)
	x.knows(v.name)
	if _, err := os.Stat(disk); s.rnd.IntN(2) == 0 || err != nil {
		makeDisk(s.t, disk, v.size)
	}
	s.joins++
	s.syncs++
	s.say("%s joins %s", x.name, v.name)
	x.do("join-resource", v.name, disk)
	v.members = append(slices.Clone(v.members), x)
	if v.watch != nil {
		v.watch.stop()
		v.watch.start(v, v.primary)
	}
}

// recoverAlone kills a secondary that stays without contact when it starts again: what it has then must be a state that the volume really had.
func (s *soak) recoverAlone() {
	s.t.Helper()
	v := s.volume()
	x := s.secondary(v)
	if s.isPrimary(x) {
		return
	}
	s.ready(v, x)
	s.say("kill %s, which recovers without the others", x.name)
	s.kill(x)
	s.w.net.Isolate(x.name)
	s.pause(0, time.Second)
	must := v.watch.at(x)
	s.end(v)
	x.start()
	x.awaitSelf(v.name, "it is consistent from what it has", func(m control.Member) bool { return m.Consistent && m.AppliedLSN == m.EndLSN })
	v.app.prefix(x.diskOf(v.name), must)
	s.w.net.Rejoin(x.name)
	s.begin(v, v.app.mark(), false)
}
