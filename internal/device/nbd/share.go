package nbd

import "time"

// This file is how the connections of a server share its memory, see budget.

// waitForRoom waits until n bytes have been granted to own. Clients that hold memory but keep us waiting are cut meanwhile.
func (s *Server) waitForRoom(own *share, n int64) error {
	tick := time.NewTicker(min(roomCheck, s.cfg.StallTimeout))
	defer tick.Stop()
	for {
		ok, freed := s.budget.take(own, n)
		if ok {
			return nil
		}
		select {
		case <-freed:
		case <-tick.C:
			s.cutStalled()
		case <-s.stop:
			return errStopped
		}
	}
}

func (s *Server) cutStalled() {
	for _, c := range s.connections() {
		if c.stalled(s.cfg.StallTimeout) {
			s.cfg.Log.Warn("NBD client cut: others need the memory that it holds without moving", "client", peerName(c.raw))
			c.raw.Close()
		}
	}
}
