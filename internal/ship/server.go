package ship

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"mars/internal/history"
	"mars/internal/translog"
)

// Source is the log that a server ships.
type Source interface {
	CheckPosition(history.Position) error
	ReadRaw(buf []byte, lsn history.LSN) ([]byte, error)
	Changed() <-chan struct{}
	Durable() history.LSN
	End() history.LSN
}

// Server is the sending end of one session as a state machine: its owner calls Step until there is nothing to send, then Info, and begins again
// when the log has changed or InfoEvery has passed. After an error it is over.
type Server struct {
	conn  Conn
	log   Source
	stamp func() int64
	turn  func() time.Duration
	lsn   history.LSN
	buf   []byte
}

// ServerConfig is what a Server works with.
type ServerConfig struct {
	Conn Conn
	Log  Source
	// Stamp gives the Lamport time.
	Stamp func() int64
	// Turn says how long to wait, in addition, after a small chunk, so that sessions can share a machine; nil = not at all.
	Turn func() time.Duration
	// Buf holds one frame's log; it must have room for the largest record of the log. nil = what any log needs.
	Buf []byte
}

// InfoEvery is how often the server says how far it is when it has nothing to send.
const InfoEvery = time.Second

// NewServer accepts the request, or refuses it and returns why.
func NewServer(c ServerConfig, req Request) (*Server, error) {
	if err := c.Log.CheckPosition(req.From); err != nil {
		return nil, errors.Join(err, Refuse(c.Conn, codeOf(err), err))
	}
	if c.Buf == nil {
		c.Buf = make([]byte, max(chunkSize, translog.MaxChunk))
	}
	return &Server{conn: c.Conn, log: c.Log, stamp: c.Stamp, turn: c.Turn, lsn: req.From.LSN, buf: c.Buf}, nil
}

func codeOf(err error) string {
	switch {
	case errors.Is(err, translog.ErrGone):
		return CodeGone
	case errors.Is(err, translog.ErrDefective): // also when it may have diverged: the fetcher asks somebody else
		return CodeDamaged
	case errors.Is(err, translog.ErrDiverged):
		return CodeDiverged
	}
	return CodeError
}

// Next is the LSN of the next byte to send.
func (s *Server) Next() history.LSN { return s.lsn }

// Step sends the next chunk; false if there is none.
func (s *Server) Step() (bool, error) {
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

// Info says how far the log goes.
func (s *Server) Info() error {
	i := Info{End: s.log.End(), Durable: s.log.Durable(), Stamp: s.stamp()}
	return errors.Join(writeJSON(s.conn, frameInfo, i), s.conn.Flush())
}

// Pace of a session. Small chunks come at a distance, which costs a millisecond of delay and saves both ends, and the application beside them,
// most of their system calls; large ones follow each other at once.
const (
	smallChunk = 64 << 10
	smallGap   = 2 * time.Millisecond
	infoGap    = 50 * time.Millisecond // between two Infos while data flows
)

// Serve answers one request: it sends the log from req.From on, follows its tail, and returns when ctx ends or the connection breaks. While it
// has nothing to send and waits for more to become durable it holds want, so that nothing is synced for a line that is full.
func Serve(ctx context.Context, c ServerConfig, req Request, want func() (stop func())) error {
	s, err := NewServer(c, req)
	if err != nil {
		return err
	}
	var told time.Time // when the last Info was sent
	news := true       // since then something was sent
	for {
		changed, from := s.log.Changed(), s.lsn
		sent, err := s.Step()
		if err != nil {
			return err
		}
		if sent {
			news = true
			if s.lsn-from < smallChunk {
				err = wait(ctx, nil, s.pause())
			}
			if err != nil {
				return err
			}
			continue
		}
		rest := time.Until(told.Add(infoGap))
		if rest <= 0 || !news {
			if err := s.Info(); err != nil {
				return err
			}
			told, news, rest = time.Now(), false, InfoEvery
		}
		stop := want()
		err = wait(ctx, changed, rest)
		stop()
		if err != nil {
			return err
		}
	}
}

// pause is how long a session waits after a small chunk.
func (s *Server) pause() time.Duration {
	if s.turn == nil {
		return smallGap
	}
	return max(smallGap, s.turn())
}

// wait returns when changed is closed or d has passed.
func wait(ctx context.Context, changed <-chan struct{}, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-changed:
	case <-t.C:
	}
	return nil
}
