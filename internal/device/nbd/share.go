package nbd

import "time"

// This file is how the connections of a server share its memory, see budget.

// waitForRoom waits until n bytes have been granted to c. Other clients that hold memory but keep us waiting are cut meanwhile.
func (s *Server) waitForRoom(c *conn, n int64) error {
	tick := time.NewTicker(min(roomCheck, s.cfg.StallTimeout))
	defer tick.Stop()
	for {
		ok, freed := s.budget.take(&c.share, n)
		if ok {
			return nil
		}
		select {
		case <-freed:
		case <-tick.C:
			s.cutStalled(c)
		case <-s.stop:
			return errStopped
		}
	}
}

// cutStalled spares the client for whom it is done: that it does not take its replies is no reason to cut it if nobody else minds.
func (s *Server) cutStalled(except *conn) {
	for _, c := range s.connections() {
		if c != except && c.stalled(s.cfg.StallTimeout) {
			s.cfg.Log.Warn("NBD client cut: others need the memory that it holds without moving", "client", peerName(c.raw))
			c.raw.Close()
		}
	}
}
