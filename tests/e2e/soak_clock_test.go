package e2e

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"mars/internal/control"
)

// jumpClock sets the clock of one node wrong. Some hours do not matter to anybody, so they stay until the end of the round. When it is more than what is
// tolerated nobody takes what that node wishes and says, or it takes nothing, so that is corrected in the same step; but data go on to be
// replicated, and nothing else suffers, not even when daemons die meanwhile.
func (s *soak) jumpClock() {
	s.t.Helper()
	x := s.w.nodes[s.rnd.IntN(len(s.w.nodes))]
	by := []time.Duration{time.Minute, time.Hour, farOff / 60}[s.rnd.IntN(3)]
	by += time.Duration(s.rnd.Int64N(int64(9 * by)))
	far := s.rnd.IntN(2) == 0
	if far {
		by = farOff + by
	}
	if s.rnd.IntN(2) == 0 {
		by = -by
	}
	s.say("the clock of %s is wrong by %v", x.name, by.Round(time.Second))
	s.clocks++
	x.setClock(by)
	if !far {
		return
	}
	s.pause(0, 4*time.Second)
	if s.rnd.IntN(2) == 0 {
		victims := s.shuffled(s.others())[:1+s.rnd.IntN(2)]
		s.say("kill %s meanwhile", nodeNames(victims))
		down := s.kill(victims...)
		s.restart(victims)
		s.goOn(down)
		s.pause(0, 2*time.Second)
	}
	s.say("the clock of %s is right", x.name)
	x.setClock(0)
	for _, y := range s.others(x) {
		y.await(fmt.Sprintf("it finds the clock of %s right enough", x.name), func(st control.Status) bool { // its own may be wrong by some hours
			return !slices.ContainsFunc(st.Messages, func(m control.Message) bool {
				return m.Key == "clock" && m.Level == control.LevelErr && strings.Contains(m.Text, x.name)
			})
		})
	}
}

// rightClocks corrects all clocks.
func (s *soak) rightClocks() {
	s.t.Helper()
	for _, x := range s.w.nodes {
		x.setClock(0)
	}
}
