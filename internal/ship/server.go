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
	lsn   history.LSN
	buf   []byte
}

// ServerConfig is what a Server works with.
type ServerConfig struct {
	Conn Conn
	Log  Source
	// Stamp gives the Lamport time.
	Stamp func() int64
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
	return &Server{conn: c.Conn, log: c.Log, stamp: c.Stamp, lsn: req.From.LSN, buf: c.Buf}, nil
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

// Serve answers one request: it sends the log from req.From on, follows its tail, and returns when ctx ends or the connection breaks. stamp
// gives the Lamport time.
func Serve(ctx context.Context, c Conn, req Request, log Source, stamp func() int64) error {
	s, err := NewServer(ServerConfig{Conn: c, Log: log, Stamp: stamp}, req)
	if err != nil {
		return err
	}
	for {
		changed := log.Changed()
		sent, err := s.Step()
		if err != nil {
			return err
		}
		if sent {
			continue
		}
		if err := s.Info(); err != nil {
			return err
		}
		if err := wait(ctx, changed); err != nil {
			return err
		}
	}
}

func wait(ctx context.Context, changed <-chan struct{}) error {
	t := time.NewTimer(InfoEvery)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-changed:
	case <-t.C:
	}
	return nil
}
