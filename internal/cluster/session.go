package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"mars/internal/lamport"
	"mars/internal/meta"
	"mars/internal/transport"
)

const (
	pingEvery = time.Second
	// compareEvery is how often the digests are compared again. Deltas alone are enough to be equal; this repairs what could not be taken at first.
	compareEvery = time.Minute
	maxQueue     = 1024
	// maxEcho bounds the memory of what need not be sent back; forgetting some only costs traffic.
	maxEcho = 10_000
)

var (
	errSessionEnded = errors.New("session ended")
	errRedundant    = errors.New("there is another session")
	errIntroduced   = errors.New("the node is known now, and gets a session as a member")
)

// session exchanges metadata with one peer over one connection. Both ends do the same:
//
//	begin          send hello and the digest of the own tree
//	digest arrives send all entries in the buckets that differ; from then on the session is ready
//	own change     (ready) send what changed since the last time, except what came from this very peer in the same version
//	request        (ready) send changes first, then the request; so the answer says that all that was here then is there now.
//	               With the last one, that to be let go, everything is sent once more: what was refused for its time would be lost
//	request comes  do it, send changes first, then the answer; so when it arrives all that was there then is here
//	each second    ping
//	each minute    send the digest again; also with the next ping after something was refused for its time, once the clocks agree again
//
// One goroutine reads, one writes; they share only what is under mu.
type session struct {
	p        *peer
	conn     *transport.Conn
	outgoing bool
	wake     chan struct{} // for the writer, capacity 1

	// mu may be taken while holding that of the peer, never the other way round.
	mu struct {
		sync.Mutex
		digest   *meta.Digest // of the peer, to be answered by the writer
		ready    bool         // the peer's first digest was answered
		ended    bool
		compare  bool              // the digest shall be sent once more
		requests []outgoingRequest // to be sent
		answers  []answer          // to be carried out and sent
		waiting  map[uint64]chan error
		nonce    uint64
		echo     map[string]lamport.Stamp // received from the peer, not yet passed by the writer
	}

	sent    uint64 // the writer's: number of the last change that was sent
	refused bool   // the reader's: something was too far in the future for our clock
}

type outgoingRequest struct {
	nonce uint64
	what  requestKind
}

// answer is a request of the peer.
type answer struct {
	nonce   uint64
	what    requestKind
	refused bool // something that the peer has sent before was too far in the future
}

func newSession(p *peer, conn *transport.Conn, outgoing bool) *session {
	s := &session{p: p, conn: conn, outgoing: outgoing, wake: make(chan struct{}, 1)}
	s.mu.waiting = map[uint64]chan error{}
	s.mu.echo = map[string]lamport.Stamp{}
	return s
}

// run returns when the session has ended, and why.
func (s *session) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer context.AfterFunc(ctx, func() { s.conn.Close() })()
	s.conn.SetProgress(transport.Progress{Read: AliveWindow, Write: AliveWindow})
	var wg sync.WaitGroup
	wg.Go(func() { cancel(s.write(ctx)) }) // ends with ctx or the connection
	cancel(s.read())                       // ends with the connection
	wg.Wait()
	s.end()
	return context.Cause(ctx)
}

// end fails everybody who waits for an answer.
func (s *session) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.ended = true
	for nonce, ch := range s.mu.waiting {
		ch <- errSessionEnded
		delete(s.mu.waiting, nonce)
	}
}

func (s *session) isReady() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.ready && !s.mu.ended
}

func (s *session) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// request sends a request and waits for its answer, or the end of ctx (its cause) or of the session (errSessionEnded).
func (s *session) request(ctx context.Context, what requestKind) error {
	ch := make(chan error, 1)
	s.mu.Lock()
	if s.mu.ended || len(s.mu.requests) >= maxQueue {
		s.mu.Unlock()
		return errSessionEnded
	}
	s.mu.nonce++
	nonce := s.mu.nonce
	s.mu.waiting[nonce] = ch
	s.mu.requests = append(s.mu.requests, outgoingRequest{nonce, what})
	s.mu.Unlock()
	s.signal()
	select {
	case err := <-ch:
		return err
	case <-ctx.Done():
		s.mu.Lock()
		delete(s.mu.waiting, nonce)
		s.mu.Unlock()
		return context.Cause(ctx)
	}
}

// read takes in what the peer sends until the connection ends.
func (s *session) read() error {
	var buf []byte
	if err := s.readHello(); err != nil {
		return err
	}
	for {
		kind, payload, err := s.conn.ReadFrame(buf)
		if err != nil {
			return err
		}
		buf = payload[:0]
		s.p.contact()
		if err := s.take(kind, payload); err != nil {
			return fmt.Errorf("from node %s: %w", s.p.id, err)
		}
	}
}

func (s *session) readHello() error {
	kind, payload, err := s.conn.ReadFrame(nil)
	if err != nil {
		return err
	}
	if kind != kindHello {
		return fmt.Errorf("%w: frame %d instead of a greeting", errProtocol, kind)
	}
	_, err = decodeHello(payload)
	return err
}

func (s *session) take(kind byte, payload []byte) error {
	switch kind {
	case kindPing:
		return s.takePing(payload)
	case kindDigest:
		return s.takeDigest(payload)
	case kindEntries:
		return s.takeEntries(payload)
	case kindRequest:
		return s.takeRequest(payload)
	case kindReply:
		return s.takeReply(payload)
	}
	return fmt.Errorf("%w: unknown frame %d", errProtocol, kind)
}

func (s *session) takeDigest(payload []byte) error {
	d, err := decodeDigest(payload)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.mu.digest = &d
	s.mu.Unlock()
	s.signal()
	return nil
}

func (s *session) takeEntries(payload []byte) error {
	entries, err := decodeEntries(payload)
	if err != nil {
		return err
	}
	if s.p.m.isRemoved(s.p.id) {
		return nil // nothing is taken any more; the writer ends the session when it has answered
	}
	s.remember(entries)
	_, refused := s.p.m.store.Merge(entries)
	for _, err := range refused {
		s.refused = s.refused || errors.Is(err, lamport.ErrFuture)
		s.p.m.refusedEntry(s.p.id, err)
	}
	return nil
}

func (s *session) takePing(payload []byte) error {
	shown, err := decodePing(payload)
	if err != nil {
		return err
	}
	s.p.clockShows(shown)
	s.p.m.amend()
	if s.refused && shown.Sub(s.p.m.c.cfg.Now()) < lamport.MaxAhead {
		s.refused = false
		s.mu.Lock()
		s.mu.compare = true
		s.mu.Unlock()
		s.signal()
	}
	return nil
}

// remember notes what the peer has, before it becomes visible to the writer.
func (s *session) remember(entries []meta.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mu.echo) > maxEcho {
		clear(s.mu.echo)
	}
	for _, e := range entries {
		s.mu.echo[e.Key] = e.Stamp
	}
}

func (s *session) takeRequest(payload []byte) error {
	nonce, what, err := decodeRequest(payload)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mu.answers) >= maxQueue {
		return fmt.Errorf("%w: too many requests at once", errProtocol)
	}
	s.mu.answers = append(s.mu.answers, answer{nonce, what, s.refused})
	s.signal()
	return nil
}

func (s *session) takeReply(payload []byte) error {
	nonce, problem, err := decodeReply(payload)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if ch := s.mu.waiting[nonce]; ch != nil {
		delete(s.mu.waiting, nonce)
		ch <- problem
	}
	return nil
}

// redundant tells whether this session can be given up because the peer has opened one, too, and that works.
func (s *session) redundant() bool {
	if !s.outgoing || s.p.m.id.Node() < s.p.id {
		return false
	}
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	for other := range s.p.mu.sessions {
		if !other.outgoing && other.isReady() {
			return true
		}
	}
	return false
}
