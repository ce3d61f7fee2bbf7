package fullsync

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"mars/internal/history"
)

// Source is the replica that is copied from.
type Source interface {
	// ReadStable reads and returns the position that a target must have replayed to be consistent with what was read; all of it is
	// durable here.
	ReadStable(p []byte, off int64) (history.Position, error)
	// Reflects is the position up to which reads are certain to contain everything.
	Reflects() history.Position
	StablePosition() (history.Position, error)
	Size() int64
}

// ReadOpen reads the first frame of a session at the source.
func ReadOpen(c Conn) (OpenRequest, error) {
	kind, payload, err := c.ReadFrame(nil)
	if err != nil {
		return OpenRequest{}, err
	}
	if kind != frameOpen {
		return OpenRequest{}, fmt.Errorf("sync session begins with frame %d instead of a request", kind)
	}
	return DecodeOpen(payload)
}

// maxOpen bounds the first frame, in bytes.
const maxOpen = 4096

// DecodeOpen decodes the first frame of a session.
func DecodeOpen(payload []byte) (OpenRequest, error) {
	var r OpenRequest
	if len(payload) > maxOpen {
		return r, fmt.Errorf("sync request of %d bytes", len(payload))
	}
	if err := json.Unmarshal(payload, &r); err != nil {
		return r, fmt.Errorf("sync request: %w", err)
	}
	return r, nil
}

// Server is the answering side of a session as a state machine: its owner hands it every frame that arrives. After an error, which the
// other end has been told, it is over.
type Server struct {
	conn Conn
	src  Source
	data []byte
	out  []byte

	// Where most blocks of the units that differ were wanted, the next ones travel whole: that saves hashing them by blocks, and the question.
	whole           bool
	offered, wanted int // blocks since the last Finish
	skipped         int // units that were sent whole since one was offered by blocks, to see whether that is still right
}

// offerEvery is how many of the units that differ are sent whole for one that is offered by blocks.
const offerEvery = 16

// NewServer accepts a session with the given reply.
func NewServer(c Conn, reply OpenReply, src Source) (*Server, error) {
	return &Server{conn: c, src: src, data: make([]byte, chunkSize)}, writeJSON(c, frameOpenReply, reply)
}

// Frame answers one request.
func (s *Server) Frame(kind byte, payload []byte) error {
	if err := s.answer(kind, payload); err != nil {
		return errors.Join(err, Refuse(s.conn, codeOf(err), err))
	}
	return nil
}

// Serve accepts the session with the given reply and answers requests until the connection ends.
func Serve(ctx context.Context, c Conn, reply OpenReply, src Source) error {
	s, err := NewServer(c, reply, src)
	if err != nil {
		return err
	}
	buf := make([]byte, chunkSize)
	for ctx.Err() == nil {
		kind, payload, err := c.ReadFrame(buf)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.Frame(kind, payload); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

var errBehind = errors.New("this replica is older than what the target has replayed")

func codeOf(err error) string {
	if errors.Is(err, errBehind) {
		return CodeBehind
	}
	return CodeError
}

func (s *Server) answer(kind byte, payload []byte) error {
	switch kind {
	case frameCompare:
		return s.compare(payload)
	case frameWant:
		return s.want(payload)
	case frameFinish:
		s.learn()
		pos, err := s.src.StablePosition()
		if err != nil {
			return err
		}
		return writeJSON(s.conn, frameFinished, pos)
	}
	return fmt.Errorf("unknown sync frame %d", kind)
}

func (s *Server) compare(payload []byte) error {
	c, err := decodeCompare(payload)
	if err != nil {
		return err
	}
	if r := s.src.Reflects(); r.LSN < c.reflected {
		return fmt.Errorf("%w: it is at LSN %d, the target at %d", errBehind, r.LSN, c.reflected)
	}
	data := s.data[:c.n]
	if _, err := s.src.ReadStable(data, c.off); err != nil {
		return err
	}
	n := int(units(c.n))
	s.out = append(s.out[:0], make([]byte, n)...)
	mine := sums(data, func(i int, unit []byte) digest { return sumAgainst(unit, digest(c.digests[i*digestSize:])) })
	each(data, unitSize, func(i int, unit []byte) error {
		at := i * digestSize
		s.out[i] = s.unit(unit, digest(mine[at:]), digest(c.digests[at:]))
		return nil
	})
	return errors.Join(s.conn.WriteFrame(frameUnits, s.out), s.conn.Flush())
}

// sumAgainst is unitSum, but does not hash what differs anyway: data where the target has nothing.
func sumAgainst(unit []byte, theirs digest) digest {
	if theirs == zeroUnitSum && len(unit) == unitSize && !isZero(unit) {
		return digest{}
	}
	return unitSum(unit)
}

// unit appends what the target needs of a unit to s.out and returns its code.
func (s *Server) unit(unit []byte, mine, theirs digest) byte {
	switch {
	case mine == theirs:
		return unitSame
	case isZero(unit):
		return unitZero
	case theirs == zeroUnitSum || len(unit) < unitSize || s.sendWhole():
		s.out = append(s.out, unit...)
		return unitData
	}
	s.offered += unitSize / blockSize
	each(unit, blockSize, func(_ int, b []byte) error {
		d := sum(b)
		s.out = append(s.out, d[:]...)
		return nil
	})
	return unitDigests
}

// sendWhole tells whether a unit that differs is sent without asking for its blocks.
func (s *Server) sendWhole() bool {
	s.skipped++
	if !s.whole || s.skipped > offerEvery {
		s.skipped = 0
		return false
	}
	return true
}

// learn looks at the questions since the last Finish, all of which are answered.
func (s *Server) learn() {
	if s.offered > 0 {
		s.whole = s.wanted*4 >= s.offered*3
	}
	s.offered, s.wanted = 0, 0
}

func (s *Server) want(payload []byte) error {
	w, err := decodeWant(payload)
	if err != nil {
		return err
	}
	data := s.data[:w.n]
	if _, err := s.src.ReadStable(data, w.off); err != nil {
		return err
	}
	s.out = s.out[:0]
	each(data, blockSize, func(i int, b []byte) error {
		if w.bits&(1<<i) != 0 {
			s.wanted++
			s.out = append(s.out, b...)
		}
		return nil
	})
	return errors.Join(s.conn.WriteFrame(frameBlocks, s.out), s.conn.Flush())
}
