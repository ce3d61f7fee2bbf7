package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"time"
)

// Limits of the server. Callers are root's own processes, so these guard against accidents (a monitoring loop gone wild, a hung client),
// not against an attacker.
const (
	maxHeaderBytes  = 1 << 20
	maxRequestBytes = 1 << 20
	maxConns        = 160              // open connections; more of them wait in the backlog
	maxCommands     = 32               // commands that act, at the same time
	maxWaits        = 64               // wait-* commands: apart, so that they never keep a `primary --force` out
	readTimeout     = 10 * time.Second // for a request to arrive, from its first byte
	idleTimeout     = 10 * time.Second // for a connection without request
	writeTimeout    = 10 * time.Second // for an answer to be taken
	shutdownTimeout = 10 * time.Second // for running commands to see that their context has ended
)

const (
	pathCommand   = "/v1/command"
	pathStatus    = "/v1/status"
	headerTimeout = "Mars-Timeout" // how long the client is going to wait for a command, as a Go duration
)

// failure is the body of an answer that is not a success.
type failure struct {
	Error string `json:"error"`
}

type server struct {
	backend  Backend
	log      *slog.Logger
	ownUID   uint32
	patience time.Duration // for a request to arrive
	commands chan struct{}
	waits    chan struct{}
}

// Serve answers marsadm on the Unix socket at path until ctx ends; then running commands are cancelled, the socket is removed, and Serve
// returns nil when all is quiet. The caller holds the lock on the socket's directory: a socket that is there already is a dead daemon's.
//
// Only root and the daemon's own user are served. The context of a command ends when its client goes away or stops waiting, or with ctx.
// A panic in the backend is logged, answered and survived.
func Serve(ctx context.Context, path string, backend Backend, log *slog.Logger) error {
	l, err := listen(path)
	if err != nil {
		return err
	}
	s := newServer(backend, log)
	return s.serve(ctx, newLimited(l, maxConns), path)
}

func newServer(backend Backend, log *slog.Logger) *server {
	return &server{
		backend:  backend,
		log:      log,
		ownUID:   uint32(os.Geteuid()),
		patience: readTimeout,
		commands: make(chan struct{}, maxCommands),
		waits:    make(chan struct{}, maxWaits),
	}
}

func (s *server) serve(ctx context.Context, l net.Listener, path string) error {
	hs := &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: s.patience,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       withCaller,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	ended := make(chan error, 1)
	go func() { ended <- hs.Serve(l) }() // ends with Shutdown or when the listener breaks; joined below
	select {
	case err := <-ended:
		return errors.Join(fmt.Errorf("control socket %s: %w", path, err), hs.Close())
	case <-ctx.Done():
	}
	graceCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err := hs.Shutdown(graceCtx)
	if err != nil {
		err = errors.Join(fmt.Errorf("control socket %s: commands do not end: %w", path, err), hs.Close())
	}
	<-ended
	return errors.Join(err, os.Remove(path))
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+pathCommand, s.command)
	mux.HandleFunc("GET "+pathStatus, s.status)
	return s.guard(mux)
}

type callerKey struct{}

// identified is what withCaller found out.
type identified struct {
	caller
	err error
}

// withCaller remembers who is at the other end. The refusal happens in guard, where it can be explained to the caller.
func withCaller(ctx context.Context, conn net.Conn) context.Context {
	if sc, ok := conn.(*slotConn); ok {
		conn = sc.UnixConn
	}
	who, err := peerOf(conn)
	return context.WithValue(ctx, callerKey{}, identified{who, err})
}

// guard lets only root and the daemon's own user in, and keeps a panic from killing the daemon.
func (s *server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, known := r.Context().Value(callerKey{}).(identified)
		if !known || who.err != nil || (who.uid != 0 && who.uid != s.ownUID) {
			s.log.Warn("control: caller refused", "uid", who.uid, "pid", who.pid, "err", who.err)
			answer(w, http.StatusForbidden, failure{fmt.Sprintf("permission denied: marsd serves only root and its own user (uid %d), not uid %d", s.ownUID, who.uid)})
			return
		}
		defer s.survive(w, r)
		next.ServeHTTP(w, r)
	})
}

func (s *server) survive(w http.ResponseWriter, r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	s.log.Error("control: panic in a command", "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
	answer(w, http.StatusInternalServerError, failure{fmt.Sprintf("internal error in marsd (panic: %v): its log has the details, please report them", p)})
}

func (s *server) status(w http.ResponseWriter, r *http.Request) {
	ctx, cancel, err := requestContext(r)
	if err != nil {
		answer(w, http.StatusBadRequest, failure{err.Error()})
		return
	}
	defer cancel()
	st, err := s.backend.Status(ctx)
	if err != nil {
		answer(w, http.StatusUnprocessableEntity, failure{err.Error()})
		return
	}
	answer(w, http.StatusOK, st)
}

func (s *server) command(w http.ResponseWriter, r *http.Request) {
	c, err := s.readCommand(w, r)
	if err != nil {
		answer(w, http.StatusBadRequest, failure{err.Error()})
		return
	}
	ctx, cancel, err := requestContext(r)
	if err != nil {
		answer(w, http.StatusBadRequest, failure{err.Error()})
		return
	}
	defer cancel()
	slots := s.commands
	if strings.HasPrefix(c.Verb, "wait-") {
		slots = s.waits
	}
	select {
	case slots <- struct{}{}:
	default:
		answer(w, http.StatusServiceUnavailable, failure{fmt.Sprintf("%s: marsd is busy with %d other commands: try again later", c.Verb, cap(slots))})
		return
	}
	defer func() { <-slots }()
	s.do(ctx, w, c)
}

func (s *server) do(ctx context.Context, w http.ResponseWriter, c Command) {
	begin := time.Now()
	result, err := s.backend.Do(ctx, c)
	took := time.Since(begin).Round(time.Millisecond)
	if err != nil {
		text := failureText(c, err, took)
		s.log.Info("control: command refused or failed", "verb", c.Verb, "res", c.Resource, "force", c.Force, "took", took, "err", text)
		answer(w, http.StatusUnprocessableEntity, failure{text})
		return
	}
	s.log.Info("control: command done", "verb", c.Verb, "res", c.Resource, "force", c.Force, "took", took)
	answer(w, http.StatusOK, result)
}

// failureText is err's own text, unless that is nothing but a context's: no operator should be left with "context deadline exceeded".
func failureText(c Command, err error, took time.Duration) string {
	what := strings.TrimSpace(c.Verb + " " + c.Resource)
	switch err { // identity, not errors.Is: a wrapped one says what was waited for
	case context.DeadlineExceeded:
		if took > time.Second {
			took = took.Round(time.Second)
		}
		return fmt.Sprintf("%s: not done within %v: look at `marsadm view`, or wait longer with --timeout", what, took)
	case context.Canceled:
		return fmt.Sprintf("%s: cancelled after %v", what, took)
	}
	return err.Error()
}

// readCommand reads the request's body, which must arrive in time. The deadline is taken away afterwards: it would end the context of a
// command that runs longer.
func (s *server) readCommand(w http.ResponseWriter, r *http.Request) (Command, error) {
	rc := http.NewResponseController(w)
	if err := rc.SetReadDeadline(time.Now().Add(s.patience)); err != nil {
		return Command{}, fmt.Errorf("read request: %w", err)
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequestBytes))
	if err != nil {
		return Command{}, fmt.Errorf("read request: %w", err)
	}
	if err := rc.SetReadDeadline(time.Time{}); err != nil {
		return Command{}, fmt.Errorf("read request: %w", err)
	}
	return decodeCommand(data)
}

// requestContext ends with the request and, if the client says how long it will wait, by then: so the backend still can say what it was
// waiting for.
func requestContext(r *http.Request) (context.Context, context.CancelFunc, error) {
	text := r.Header.Get(headerTimeout)
	if text == "" {
		ctx, cancel := context.WithCancel(r.Context())
		return ctx, cancel, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return nil, nil, fmt.Errorf("header %s: %q is not a duration", headerTimeout, shorten(text))
	}
	ctx, cancel := context.WithTimeout(r.Context(), d)
	return ctx, cancel, nil
}

// answer sends v. It has nowhere to report that the client is gone, and nobody who would care.
func answer(w http.ResponseWriter, code int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		code, body = http.StatusInternalServerError, []byte(`{"error":"internal error in marsd: the answer cannot be encoded"}`)
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n'))
}
