package ship

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"mars/internal/history"
	"mars/internal/translog"
)

// Sink takes what is fetched.
type Sink interface {
	// Ingest verifies and stores records that continue the log.
	Ingest(records []byte) error
}

// Receiver is the fetching end of one session as a state machine: its owner hands it every frame that arrives. After an error it is over.
type Receiver struct {
	next  history.LSN
	sink  Sink
	heard func(Info)
}

// NewReceiver asks for the log from req.From on. What arrives goes to sink; heard is called with every Info and, with a zero Info, after
// every chunk.
func NewReceiver(c Conn, req Request, sink Sink, heard func(Info)) (*Receiver, error) {
	r := &Receiver{next: req.From.LSN, sink: sink, heard: heard}
	return r, errors.Join(writeJSON(c, frameRequest, req), c.Flush())
}

// Frame handles one frame. A refusal of the other end is a *Refusal.
func (r *Receiver) Frame(kind byte, payload []byte) error {
	switch kind {
	case frameData:
		return r.data(payload)
	case frameInfo:
		var i Info
		if err := json.Unmarshal(payload, &i); err != nil {
			return fmt.Errorf("log info frame: %w", err)
		}
		r.heard(i)
		return nil
	case frameRefusal:
		ref := new(Refusal)
		if err := json.Unmarshal(payload, ref); err != nil {
			return fmt.Errorf("log refusal frame: %w", err)
		}
		return ref
	}
	return fmt.Errorf("unknown log frame %d", kind)
}

func (r *Receiver) data(payload []byte) error {
	if len(payload) < 8 {
		return errors.New("log data frame without an LSN")
	}
	if lsn := history.LSN(binary.LittleEndian.Uint64(payload)); lsn != r.next {
		return fmt.Errorf("log data for LSN %d, expected %d", lsn, r.next)
	}
	if err := r.sink.Ingest(payload[8:]); err != nil {
		return err
	}
	r.next += history.LSN(len(payload) - 8)
	r.heard(Info{})
	return nil
}

// Fetch asks for the log from req.From on and hands everything to sink until ctx ends, the connection breaks, or sink refuses. A refusal of the
// other end is a *Refusal. heard is called with every Info and, with a zero Info, after every chunk.
func Fetch(ctx context.Context, c Conn, req Request, sink Sink, heard func(Info)) error {
	r, err := NewReceiver(c, req, sink, heard)
	if err != nil {
		return err
	}
	buf := make([]byte, max(chunkSize, translog.MaxChunk)+64)
	for ctx.Err() == nil {
		kind, payload, err := c.ReadFrame(buf)
		if err != nil {
			return err
		}
		if err := r.Frame(kind, payload); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}
