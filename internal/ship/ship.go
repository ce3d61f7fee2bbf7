// Package ship carries a log from a member that has it to one that needs it: a copy of bytes, resumable at any record boundary, verified on
// receipt, durable at the sender before it leaves (invariant I3).
//
// One connection carries one resource in one direction. The fetcher opens it, says what it wants, and from then on only listens:
//
//	fetcher -> server   Request (JSON)   resource id and the position up to which the fetcher has the log
//	server  -> fetcher  Refusal (JSON)   why not; the connection ends
//	server  -> fetcher  Data             8 bytes LSN, little-endian, then whole records, verbatim
//	server  -> fetcher  Info (JSON)      how far the server's log goes; at least every second when there is no data
package ship

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"mars/internal/history"
	"mars/internal/translog"
)

// Frame kinds on a log connection.
const (
	frameRequest = 1
	frameRefusal = 2
	frameData    = 3
	frameInfo    = 4
)

// chunkSize is how much log travels in one frame, in bytes; a larger single record travels alone.
const chunkSize = 2 << 20

// infoEvery is how often the server says how far it is when it has nothing to send.
const infoEvery = time.Second

// Conn is what a session needs of a connection; *transport.Conn is one.
type Conn interface {
	ReadFrame(buf []byte) (kind byte, payload []byte, err error)
	WriteFrame(kind byte, parts ...[]byte) error
	Flush() error
}

// Request opens a session.
type Request struct {
	Resource string           `json:"resource"` // id
	From     history.Position `json:"from"`
}

// Info says how far the server's log goes.
type Info struct {
	End     history.LSN `json:"end"`
	Durable history.LSN `json:"durable"`
	Stamp   int64       `json:"stamp"` // Lamport time of the server when it said so
}

// Codes of a Refusal.
const (
	CodeGone     = "gone"     // the log at that position is no longer kept here
	CodeDiverged = "diverged" // the position is not on the server's history
	CodeNotHere  = "not-here" // no such resource, or not attached
	CodeError    = "error"
)

// Refusal is the server's no.
type Refusal struct {
	Code string `json:"code"`
	Text string `json:"text"`
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("refused by the other end (%s): %s", r.Code, r.Text)
}

// Refuse answers a request with a no.
func Refuse(c Conn, code string, why error) error {
	return errors.Join(writeJSON(c, frameRefusal, Refusal{Code: code, Text: why.Error()}), c.Flush())
}

// ReadRequest reads the first frame of a session at the server.
func ReadRequest(c Conn) (Request, error) {
	kind, payload, err := c.ReadFrame(nil)
	if err != nil {
		return Request{}, err
	}
	return decodeRequest(kind, payload)
}

const maxRequest = 4096

func decodeRequest(kind byte, payload []byte) (Request, error) {
	var r Request
	if kind != frameRequest || len(payload) > maxRequest {
		return r, fmt.Errorf("log session begins with frame %d of %d bytes instead of a request", kind, len(payload))
	}
	if err := json.Unmarshal(payload, &r); err != nil {
		return r, fmt.Errorf("log request: %w", err)
	}
	if r.From.LSN < 0 {
		return r, fmt.Errorf("log request from LSN %d", r.From.LSN)
	}
	return r, nil
}

func writeJSON(c Conn, kind byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.WriteFrame(kind, b)
}

// Source is the log that a server ships.
type Source interface {
	CheckPosition(history.Position) error
	ReadRaw(buf []byte, lsn history.LSN) ([]byte, error)
	Changed() <-chan struct{}
	Durable() history.LSN
	End() history.LSN
}

// Serve answers one request: it sends the log from req.From on, follows its tail, and returns when ctx ends or the connection breaks. stamp
// gives the Lamport time.
func Serve(ctx context.Context, c Conn, req Request, log Source, stamp func() int64) error {
	if err := log.CheckPosition(req.From); err != nil {
		return errors.Join(err, Refuse(c, codeOf(err), err))
	}
	s := server{conn: c, log: log, stamp: stamp, lsn: req.From.LSN, buf: make([]byte, max(chunkSize, translog.MaxChunk))}
	for {
		changed := log.Changed()
		sent, err := s.step()
		if err != nil {
			return err
		}
		if sent {
			continue
		}
		if err := s.info(); err != nil {
			return err
		}
		if err := wait(ctx, changed); err != nil {
			return err
		}
	}
}

func codeOf(err error) string {
	switch {
	case errors.Is(err, translog.ErrGone):
		return CodeGone
	case errors.Is(err, translog.ErrDiverged):
		return CodeDiverged
	}
	return CodeError
}

func wait(ctx context.Context, changed <-chan struct{}) error {
	t := time.NewTimer(infoEvery)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-changed:
	case <-t.C:
	}
	return nil
}

type server struct {
	conn  Conn
	log   Source
	stamp func() int64
	lsn   history.LSN
	buf   []byte
}

// step sends the next chunk; false if there is none.
func (s *server) step() (bool, error) {
	if s.log.Durable() < s.lsn {
		return false, fmt.Errorf("the log was cut back below LSN %d: %w", s.lsn, translog.ErrDiverged)
	}
	chunk, err := s.log.ReadRaw(s.buf, s.lsn)
	if err != nil {
		return false, errors.Join(err, Refuse(s.conn, codeOf(err), err))
	}
	if len(chunk) == 0 {
		return false, nil
	}
	var lsn [8]byte
	binary.LittleEndian.PutUint64(lsn[:], uint64(s.lsn))
	if err := s.conn.WriteFrame(frameData, lsn[:], chunk); err != nil {
		return false, err
	}
	s.lsn += history.LSN(len(chunk))
	return true, s.conn.Flush()
}

func (s *server) info() error {
	i := Info{End: s.log.End(), Durable: s.log.Durable(), Stamp: s.stamp()}
	return errors.Join(writeJSON(s.conn, frameInfo, i), s.conn.Flush())
}

// Sink takes what is fetched.
type Sink interface {
	// Ingest verifies and stores records that continue the log.
	Ingest(records []byte) error
}

// Fetch asks for the log from req.From on and hands everything to sink until ctx ends, the connection breaks, or sink refuses. A refusal of the
// other end is a *Refusal. heard is called with every Info and, with a zero Info, after every chunk.
func Fetch(ctx context.Context, c Conn, req Request, sink Sink, heard func(Info)) error {
	if err := errors.Join(writeJSON(c, frameRequest, req), c.Flush()); err != nil {
		return err
	}
	next := req.From.LSN
	buf := make([]byte, max(chunkSize, translog.MaxChunk)+64)
	for ctx.Err() == nil {
		kind, payload, err := c.ReadFrame(buf)
		if err != nil {
			return err
		}
		n, err := receive(kind, payload, received{next: next, sink: sink, heard: heard})
		if err != nil {
			return err
		}
		next += n
	}
	return context.Cause(ctx)
}

type received struct {
	next  history.LSN
	sink  Sink
	heard func(Info)
}

// receive handles one frame and returns by how much the log has grown.
func receive(kind byte, payload []byte, r received) (history.LSN, error) {
	switch kind {
	case frameData:
		if len(payload) < 8 {
			return 0, errors.New("log data frame without an LSN")
		}
		if lsn := history.LSN(binary.LittleEndian.Uint64(payload)); lsn != r.next {
			return 0, fmt.Errorf("log data for LSN %d, expected %d", lsn, r.next)
		}
		if err := r.sink.Ingest(payload[8:]); err != nil {
			return 0, err
		}
		r.heard(Info{})
		return history.LSN(len(payload) - 8), nil
	case frameInfo:
		var i Info
		if err := json.Unmarshal(payload, &i); err != nil {
			return 0, fmt.Errorf("log info frame: %w", err)
		}
		r.heard(i)
		return 0, nil
	case frameRefusal:
		ref := new(Refusal)
		if err := json.Unmarshal(payload, ref); err != nil {
			return 0, fmt.Errorf("log refusal frame: %w", err)
		}
		return 0, ref
	}
	return 0, fmt.Errorf("unknown log frame %d", kind)
}
