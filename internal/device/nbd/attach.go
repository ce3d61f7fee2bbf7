package nbd

import (
	"context"
	"net"
	"time"
)

// Attach serves nc, whose other end is in the transmission phase already, as the kernel's is: without structured replies, over no TLS. user
// names the other end. Attach takes nc over. The channel gets how the connection ended, nil if in order, when all its requests have been
// completed by the device - or thrown away, after Abort.
func (s *Server) Attach(nc net.Conn, user string) (<-chan error, error) {
	c := newConn(s, nc)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed {
		nc.Close()
		return nil, errStopped
	}
	if len(s.mu.conns) >= s.cfg.MaxConns {
		nc.Close()
		return nil, errFull
	}
	c.user = user
	s.mu.conns[c] = struct{}{}
	ended := make(chan error, 1)
	s.wg.Go(func() { // ends with the connection
		err := c.transmit()
		s.leave(c, err)
		ended <- err
	})
	return ended, nil
}

// Drain ends all connections as if their clients had: what has been received whole is carried out and answered, nothing more is read, nobody
// new is let in. When that takes longer than ctx, they are cut, and what is under way is not answered any more. Abort is still to be called.
func (s *Server) Drain(ctx context.Context) {
	s.mu.Lock()
	s.mu.closed = true
	s.mu.Unlock()
	conns := s.connections()
	for _, c := range conns {
		_ = c.raw.SetReadDeadline(time.Now()) // fails only on a closed connection
	}
	joined := make(chan struct{})
	go func() { // ends when the server's goroutines have; they have been told to
		defer close(joined)
		s.wg.Wait()
	}()
	select {
	case <-joined:
	case <-ctx.Done():
		for _, c := range conns {
			c.abort()
		}
	}
}
