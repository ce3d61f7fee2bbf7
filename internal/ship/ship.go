// Package ship carries a log from a member that has it to one that needs it: a copy of bytes, resumable at any record boundary, verified on
// receipt, durable at the sender before it leaves (invariant I3).
//
// One connection carries one resource in one direction. The fetcher opens it, says what it wants, and from then on only listens:
//
//	fetcher -> server   Request (JSON)   resource id and the position up to which the fetcher has the log
//	server  -> fetcher  Refusal (JSON)   why not; the connection ends
//	server  -> fetcher  Data             8 bytes LSN, little-endian, then whole records, verbatim
//	server  -> fetcher  Info (JSON)      how far the server's log goes; at least every second when there is no data
//
// Both ends are state machines without goroutines and clocks, Server and Receiver; Serve and Fetch are the loops around them that wait.
package ship

import (
	"encoding/json"
	"errors"
	"fmt"

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
	CodeDamaged  = "damaged"  // the log at that position is damaged here
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

// Lacks reports whether the error of a fetch means that the other end does not have, or not intact, what was to be fetched.
func Lacks(err error) bool {
	var ref *Refusal
	if errors.As(err, &ref) {
		return ref.Code == CodeGone || ref.Code == CodeDamaged
	}
	return errors.Is(err, translog.ErrDefective)
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
	if kind != frameRequest {
		return Request{}, fmt.Errorf("log session begins with frame %d instead of a request", kind)
	}
	return DecodeRequest(payload)
}

const maxRequest = 4096

// DecodeRequest decodes the first frame of a session.
func DecodeRequest(payload []byte) (Request, error) {
	var r Request
	if len(payload) > maxRequest {
		return r, fmt.Errorf("log request of %d bytes", len(payload))
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
