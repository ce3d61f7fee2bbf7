package cluster

import (
	"context"
	"fmt"
	"time"

	"mars/internal/meta"
	"mars/internal/transport"
)

// write is the sending half of a session. It ends with ctx, with the connection, or when the peer is not a member any more.
func (s *session) write(ctx context.Context) error {
	changed, cancel := s.p.m.store.Watch()
	defer cancel()
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	compare := time.NewTicker(compareEvery)
	defer compare.Stop()
	if err := s.greet(); err != nil {
		return err
	}
	for {
		var err error
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.wake:
			err = s.compareAgain()
		case <-changed:
		case <-ping.C:
			err = s.ping()
		case <-compare.C:
			err = s.sendDigest()
		}
		if err == nil {
			err = s.round()
		}
		if err != nil {
			return err
		}
	}
}

func (s *session) greet() error {
	if err := s.conn.WriteFrame(kindHello, encodeHello()); err != nil {
		return err
	}
	if err := s.sendDigest(); err != nil {
		return err
	}
	return s.conn.Flush()
}

func (s *session) ping() error {
	if s.redundant() {
		return errRedundant
	}
	return s.conn.WriteFrame(kindPing, encodePing(s.p.m.c.cfg.Now()))
}

// compareAgain sends the digest when the reader has asked for that.
func (s *session) compareAgain() error {
	s.mu.Lock()
	again := s.mu.compare
	s.mu.compare = false
	s.mu.Unlock()
	if !again {
		return nil
	}
	return s.sendDigest()
}

func (s *session) sendDigest() error {
	return s.conn.WriteFrame(kindDigest, encodeDigest(s.p.m.store.Digest()))
}

// round sends everything there is to send: changes first, so that requests and answers come after all that was visible before.
func (s *session) round() error {
	requests, answers, err := s.catchUp()
	if err != nil {
		return err
	}
	for _, r := range requests {
		if err := s.sendRequest(r); err != nil {
			return err
		}
	}
	for _, a := range answers {
		if err := s.answer(a); err != nil {
			return err
		}
	}
	if err := s.conn.Flush(); err != nil {
		return err
	}
	// Only here, so that a node that leaves still gets the answer to that.
	if s.p.m.isRemoved(s.p.id) {
		return fmt.Errorf("%w: node %s", transport.ErrNotMember, s.p.id)
	}
	if s.p.guest && s.p.m.isMember(s.p.id) {
		return errIntroduced
	}
	return nil
}

// catchUp sends the entries that the peer may lack, and returns the requests and answers that may follow now: those that were there before.
func (s *session) catchUp() (requests []outgoingRequest, answers []answer, err error) {
	s.mu.Lock()
	digest, ready := s.mu.digest, s.mu.ready
	s.mu.digest = nil
	if ready || digest != nil {
		requests, s.mu.requests = s.mu.requests, nil
		answers, s.mu.answers = s.mu.answers, nil
	}
	s.mu.Unlock()
	if digest != nil {
		err = s.answerDigest(*digest, ready)
	}
	if err == nil && (ready || digest != nil) {
		err = s.sendChanges()
	}
	return requests, answers, err
}

func (s *session) answerDigest(d meta.Digest, ready bool) error {
	entries, seq := s.p.m.store.Differing(d)
	if err := sendEntries(s.conn, entries); err != nil {
		return err
	}
	if ready {
		return nil
	}
	s.sent = seq
	s.mu.Lock()
	s.mu.ready = true
	s.mu.Unlock()
	s.p.changed.Notify()
	return nil
}

func (s *session) sendChanges() error {
	entries, next := s.p.m.store.Since(s.sent)
	if err := sendEntries(s.conn, s.withoutEcho(entries)); err != nil {
		return err
	}
	s.sent = next
	return nil
}

// withoutEcho leaves out what the peer itself has sent.
func (s *session) withoutEcho(entries []meta.Entry) []meta.Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := entries[:0]
	for _, e := range entries {
		stamp, got := s.mu.echo[e.Key]
		delete(s.mu.echo, e.Key)
		if !got || stamp != e.Stamp {
			out = append(out, e)
		}
	}
	return out
}

// sendRequest sends a request. With that to be let go goes all that is here: the peer takes it or refuses the request, whatever it has refused before.
func (s *session) sendRequest(r outgoingRequest) error {
	if r.what == requestLeave {
		all, _ := s.p.m.store.Since(0)
		if err := sendEntries(s.conn, all); err != nil {
			return err
		}
	}
	return s.conn.WriteFrame(kindRequest, encodeRequest(r.nonce, r.what))
}

// answer carries a request of the peer out and sends the result.
func (s *session) answer(a answer) error {
	var problem error
	switch a.what {
	case requestSync:
		problem = s.p.m.store.Flush()
	case requestLeave:
		problem = s.p.m.letGo(s.p.id, a.refused)
	}
	if problem == nil {
		// What this has changed here shall be there before the answer.
		if err := s.sendChanges(); err != nil {
			return err
		}
	}
	return s.conn.WriteFrame(kindReply, encodeReply(a.nonce, problem))
}

// sendEntries buffers entries in frames of a moderate size.
func sendEntries(conn *transport.Conn, entries []meta.Entry) error {
	for len(entries) > 0 {
		var payload []byte
		payload, entries = encodeEntries(entries)
		if err := conn.WriteFrame(kindEntries, payload); err != nil {
			return err
		}
	}
	return nil
}
