package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"syscall"
	"time"
)

const (
	maxAnswerBytes = 64 << 20        // of a status: some 10,000 resources
	answerGrace    = 5 * time.Second // beyond the caller's deadline, for the daemon to say what it was waiting for
)

// Client talks to the daemon behind one socket. It holds no connection between calls and may be used concurrently.
type Client struct {
	path string
	http *http.Client
}

// Dial returns a client for the socket at path. It does not connect yet: every call does, so that a client survives a restart of the daemon.
func Dial(path string) *Client {
	transport := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dialSocket(ctx, path) },
		DisableKeepAlives: true,
	}
	return &Client{path: path, http: &http.Client{Transport: transport}}
}

func dialSocket(ctx context.Context, path string) (net.Conn, error) {
	short, done, err := reachable(path)
	if err != nil {
		return nil, err
	}
	defer done()
	var d net.Dialer
	return d.DialContext(ctx, "unix", short)
}

// NotRunningError says that nobody answers on the socket.
type NotRunningError struct {
	Path string
	Err  error
}

// Error says what was tried and what to do.
func (e *NotRunningError) Error() string {
	return fmt.Sprintf("marsd is not running (no answer on %s: %v): start it with `marsd --dir %s`, or pass --dir", e.Path, rootCause(e.Err), filepath.Dir(e.Path))
}

// Unwrap returns why there was no answer.
func (e *NotRunningError) Unwrap() error { return e.Err }

// RefusedError is what the daemon answered, word for word.
type RefusedError struct {
	Code int // HTTP status
	Text string
}

// Error returns the daemon's text.
func (e *RefusedError) Error() string { return e.Text }

// Do lets the daemon carry out c. If ctx has a deadline, the daemon knows it and answers then what it was waiting for; when ctx is
// cancelled, the daemon stops waiting.
func (cl *Client) Do(ctx context.Context, c Command) (Result, error) {
	if err := c.Validate(); err != nil {
		return Result{}, err
	}
	body, err := json.Marshal(c)
	if err != nil {
		return Result{}, fmt.Errorf("encode command: %w", err)
	}
	var result Result
	err = cl.call(ctx, request{http.MethodPost, pathCommand, body}, &result)
	return result, err
}

// Status returns everything the daemon knows.
func (cl *Client) Status(ctx context.Context) (Status, error) {
	var st Status
	err := cl.call(ctx, request{http.MethodGet, pathStatus, nil}, &st)
	return st, err
}

type request struct {
	method, path string
	body         []byte
}

func (cl *Client) call(ctx context.Context, req request, into any) error {
	callCtx, cancel := withGrace(ctx)
	defer cancel()
	hr, err := http.NewRequestWithContext(callCtx, req.method, "http://marsd"+req.path, bytes.NewReader(req.body))
	if err != nil {
		return fmt.Errorf("ask marsd: %w", err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		hr.Header.Set(headerTimeout, max(0, time.Until(deadline)).String())
	}
	resp, err := cl.http.Do(hr)
	if err != nil {
		return cl.explain(ctx, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(http.MaxBytesReader(nil, resp.Body, maxAnswerBytes))
	if err != nil {
		return cl.explain(ctx, err)
	}
	return decodeAnswer(resp.StatusCode, data, into)
}

// withGrace returns a context that is cancelled with ctx, but only answerGrace after ctx's deadline.
func withGrace(ctx context.Context) (context.Context, context.CancelFunc) {
	callCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		if ctx.Err() == context.DeadlineExceeded {
			timer := time.AfterFunc(answerGrace, cancel)
			context.AfterFunc(callCtx, func() { timer.Stop() })
			return
		}
		cancel()
	})
	return callCtx, func() { stop(); cancel() }
}

func decodeAnswer(code int, data []byte, into any) error {
	if code == http.StatusOK {
		if err := json.Unmarshal(data, into); err != nil {
			return fmt.Errorf("answer of marsd is garbled (are marsadm and marsd of the same version?): %w", err)
		}
		return nil
	}
	var f failure
	if err := json.Unmarshal(data, &f); err != nil || f.Error == "" {
		return fmt.Errorf("marsd answered with status %d and no explanation (are marsadm and marsd of the same version?)", code)
	}
	return &RefusedError{Code: code, Text: f.Error}
}

// explain turns a transport error into one that tells the operator where the problem is.
func (cl *Client) explain(ctx context.Context, err error) error {
	var op *net.OpError
	switch {
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("not allowed to talk to marsd on %s: run marsadm as root or as the user of marsd: %w", cl.path, rootCause(err))
	case ctx.Err() != nil:
		return fmt.Errorf("no answer from marsd on %s: %w", cl.path, ctx.Err())
	case errors.As(err, &op) && op.Op == "dial", errors.Is(err, syscall.ENOENT):
		return &NotRunningError{Path: cl.path, Err: err}
	}
	return fmt.Errorf("marsd on %s went away before it answered (%w): look at its log, and at `marsadm view` for what was done", cl.path, rootCause(err))
}

// rootCause strips the wrappings that repeat path and operation.
func rootCause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}
