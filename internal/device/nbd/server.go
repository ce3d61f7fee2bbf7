package nbd

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"mars/internal/block"
)

// Defaults of Config.
const (
	DefaultMaxConns     = 128
	DefaultMaxMemory    = 64 << 20
	DefaultReadWorkers  = 16
	DefaultStallTimeout = time.Minute
)

// roomCheck is how often a connection that waits for memory looks for others that have stalled.
const roomCheck = time.Second

// Config says what a Server exports, and its limits. A limit of 0 means the default.
type Config struct {
	Export   string       // name of the export; clients may also ask for the empty name
	Dev      block.Device // uses the optional interfaces Submitter, NowaitReader and ExtentMapper if it has them
	ReadOnly bool         // refuse modifications
	Log      *slog.Logger // nil: silent

	// How clients of Serve's listeners are spoken to; a Hub has its own.
	TLS         *tls.Config // nil: no TLS
	TLSRequired bool        // refuse everything but STARTTLS before TLS is up; needs TLS

	MaxConns    int   // connections, including those that negotiate; each takes 256 KiB besides its payloads
	MaxMemory   int64 // bytes of payload in flight, see budget for the exact bound
	ReadWorkers int   // requests that wait for the device at the same time
	// StallTimeout is how long a client may keep us waiting in the middle of a transfer while others need the memory that it holds.
	StallTimeout time.Duration
}

func (cfg *Config) setDefaults() {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Log = cfg.Log.With("export", cfg.Export)
	if cfg.MaxConns == 0 {
		cfg.MaxConns = DefaultMaxConns
	}
	if cfg.MaxMemory == 0 {
		cfg.MaxMemory = DefaultMaxMemory
	}
	if cfg.ReadWorkers == 0 {
		cfg.ReadWorkers = DefaultReadWorkers
	}
	if cfg.StallTimeout == 0 {
		cfg.StallTimeout = DefaultStallTimeout
	}
}

// Server serves one Device. Its methods may be called concurrently.
type Server struct {
	cfg       Config
	submitter block.Submitter    // nil when Dev is none
	nowait    block.NowaitReader // nil when Dev is none
	mapper    block.ExtentMapper // nil when Dev is none
	budget    budget
	workers   *workers
	stop      chan struct{} // closed when the server has been withdrawn
	stopOnce  sync.Once
	wg        sync.WaitGroup

	mu struct {
		sync.Mutex
		closed    bool // no new clients
		listeners map[net.Listener]struct{}
		conns     map[*conn]struct{}
		refused   flood
	}
}

// New returns a server that waits for Serve. cfg.Dev stays the caller's, who may close it after Close or Abort.
func New(cfg Config) *Server {
	cfg.setDefaults()
	s := &Server{cfg: cfg, stop: make(chan struct{})}
	s.submitter, _ = cfg.Dev.(block.Submitter)
	s.nowait, _ = cfg.Dev.(block.NowaitReader)
	s.mapper, _ = cfg.Dev.(block.ExtentMapper)
	s.budget.total = cfg.MaxMemory
	s.workers = newWorkers(cfg.ReadWorkers, s.stop)
	s.mu.listeners = make(map[net.Listener]struct{})
	s.mu.conns = make(map[*conn]struct{})
	return s
}

// Serve accepts connections from l, which it takes over, until the server is closed; then it returns nil. It may be called for several
// listeners at the same time.
func (s *Server) Serve(l net.Listener) error {
	if !s.addListener(l) {
		return l.Close()
	}
	d := door{log: s.cfg.Log, stop: s.stop, start: s.start}
	return d.accept(l)
}

func (s *Server) addListener(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.mu.closed {
		s.mu.listeners[l] = struct{}{}
	}
	return !s.mu.closed
}

// start serves one connection on a goroutine of its own, or closes it when there may not be another one.
func (s *Server) start(nc net.Conn) {
	if s.tryStart(nc) {
		return
	}
	nc.Close()
	s.mu.Lock()
	n := s.mu.refused.one()
	s.mu.Unlock()
	if n > 0 {
		s.cfg.Log.Warn("NBD connections refused: there are too many", "max", s.cfg.MaxConns, "refused", n)
	}
}

func (s *Server) tryStart(nc net.Conn) bool {
	c := newConn(s, nc)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed || len(s.mu.conns) >= s.cfg.MaxConns {
		return false
	}
	s.mu.conns[c] = struct{}{}
	s.wg.Go(func() { s.run(c) }) // ends with the connection
	return true
}

func (s *Server) run(c *conn) { s.leave(c, c.run()) }

// leave ends the connection's being one of ours; err is how it ended.
func (s *Server) leave(c *conn, err error) {
	s.mu.Lock()
	user := c.user
	delete(s.mu.conns, c)
	s.mu.Unlock()
	if user == "" {
		s.cfg.Log.Debug("NBD negotiation ended", "err", err)
		return
	}
	s.cfg.Log.Info("NBD client left", "client", user, "err", err)
}

// enter makes the connection a user of the device. It fails with errStopped when the server has been closed, and with errFull when a
// connection from a hub finds no place.
func (s *Server) enter(c *conn) error {
	user := c.peer()
	if err := s.admit(c, user); err != nil {
		return err
	}
	s.cfg.Log.Info("NBD client came", "client", user, "tls", c.agreed.tls)
	return nil
}

func (s *Server) admit(c *conn, user string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed {
		return errStopped
	}
	if c.srv == nil {
		if len(s.mu.conns) >= s.cfg.MaxConns {
			return errFull
		}
		s.mu.conns[c] = struct{}{}
		s.wg.Add(1) // until release
		c.srv = s
	}
	c.user = user
	return nil
}

// release is leave for a connection that a hub runs.
func (s *Server) release(c *conn, err error) {
	defer s.wg.Done()
	s.leave(c, err)
}

// Clients names the clients in the transmission phase, sorted, each once. A client that has gone counts until its requests have ended.
func (s *Server) Clients() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clients()
}

// clients is Clients with the lock held.
func (s *Server) clients() []string {
	var names []string
	for c := range s.mu.conns {
		if c.user != "" {
			names = append(names, c.user)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Close ends the server if it has no clients, else it fails with block.ErrBusy naming them, and nothing changes. New clients are kept out
// from the moment it saw none. It returns when all goroutines have ended, or with ctx's error when that takes too long.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	if users := s.clients(); len(users) > 0 {
		s.mu.Unlock()
		return fmt.Errorf("NBD export %q is used by %s: %w", s.cfg.Export, strings.Join(users, ", "), block.ErrBusy)
	}
	closers, conns := s.withdraw()
	s.mu.Unlock()

	joined := make(chan struct{})
	go func() { // ends when the server's goroutines have; they have been told to
		defer close(joined)
		s.cut(closers, conns)
	}()
	select {
	case <-joined:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close NBD export %q: %w", s.cfg.Export, context.Cause(ctx))
	}
}

// Abort ends the server at once: all connections are cut. It waits for its goroutines, that is for calls of the Device that are under way.
// Requests that the Device has taken but not completed may still call Done afterwards, without effect.
func (s *Server) Abort() {
	s.mu.Lock()
	closers, conns := s.withdraw()
	s.mu.Unlock()
	s.cut(closers, conns)
}

// withdraw keeps new clients out, with the lock held, and returns what is to be cut.
func (s *Server) withdraw() ([]io.Closer, []*conn) {
	s.mu.closed = true
	s.stopOnce.Do(func() { close(s.stop) })
	var closers []io.Closer
	for l := range s.mu.listeners {
		closers = append(closers, l)
	}
	clear(s.mu.listeners)
	return closers, slices.Collect(maps.Keys(s.mu.conns))
}

func (s *Server) connections() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.mu.conns))
}

func (s *Server) cut(closers []io.Closer, conns []*conn) {
	for _, l := range closers {
		l.Close()
	}
	for _, c := range conns {
		c.abort()
	}
	s.wg.Wait()
	s.workers.join()
}
