package fullsync

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"mars/internal/block"
	"mars/internal/history"
)

// Session is the asking side as a state machine: one question is asked at a time - Begin, StartCopy or StartFinish - and its owner hands over
// every frame that arrives until Waiting is false. After an error it is over.
type Session struct {
	conn Conn
	// Received counts bytes of content that had to travel.
	Received int64

	opening, finishing bool
	reply              OpenReply
	until              history.Position

	disk   block.Device
	chunks []chunk // compared, not answered yet
	wants  []want  // wanted, not answered yet
}

// Begin asks for a session.
func Begin(c Conn, req OpenRequest) (*Session, error) {
	return &Session{conn: c, opening: true}, writeJSON(c, frameOpen, req)
}

// Waiting tells whether frames are to come before the next question.
func (s *Session) Waiting() bool {
	return s.opening || s.finishing || len(s.chunks) > 0 || len(s.wants) > 0
}

// Reply is the source's answer to Begin.
func (s *Session) Reply() OpenReply { return s.reply }

// Until is the source's answer to StartFinish: what the copy may contain.
func (s *Session) Until() history.Position { return s.until }

// StartCopy begins to make a range of disk equal to the source's.
func (s *Session) StartCopy(disk block.Device, r Range) error {
	s.disk = disk
	return s.ask(disk, r)
}

// StartFinish asks for the position that the copy may contain; to be called after the last copy.
func (s *Session) StartFinish() error {
	s.finishing = true
	return errors.Join(s.conn.WriteFrame(frameFinish), s.conn.Flush())
}

// Frame takes the next answer. A refusal of the other end is a *Refusal.
func (s *Session) Frame(kind byte, payload []byte) error {
	if kind == frameRefusal {
		ref := new(Refusal)
		if err := json.Unmarshal(payload, ref); err != nil {
			return fmt.Errorf("sync refusal frame: %w", err)
		}
		return ref
	}
	switch want := s.expected(); {
	case want == 0:
		return fmt.Errorf("sync frame %d that nobody has asked for", kind)
	case kind != want:
		return fmt.Errorf("sync frame %d instead of %d", kind, want)
	}
	return s.take(kind, payload)
}

// expected is the kind of the next frame: the source answers in the order of the questions, and every Compare was asked before any Want.
func (s *Session) expected() byte {
	switch {
	case s.opening:
		return frameOpenReply
	case len(s.chunks) > 0:
		return frameUnits
	case len(s.wants) > 0:
		return frameBlocks
	case s.finishing:
		return frameFinished
	}
	return 0
}

func (s *Session) take(kind byte, payload []byte) error {
	switch kind {
	case frameOpenReply:
		s.opening = false
		return s.opened(payload)
	case frameUnits:
		c := s.chunks[0]
		s.chunks = s.chunks[1:]
		w, err := s.units(s.disk, payload, c)
		s.wants = append(s.wants, w...)
		return err
	case frameBlocks:
		w := s.wants[0]
		s.wants = s.wants[1:]
		return s.blocks(w, payload)
	}
	s.finishing = false
	if err := json.Unmarshal(payload, &s.until); err != nil {
		return fmt.Errorf("sync finish frame: %w", err)
	}
	return nil
}

func (s *Session) opened(payload []byte) error {
	if err := json.Unmarshal(payload, &s.reply); err != nil {
		return fmt.Errorf("sync reply: %w", err)
	}
	if r := &s.reply; r.Size < 0 || r.Size%block.SectorSize != 0 || r.Start.End < 0 {
		return fmt.Errorf("sync reply with a size of %d bytes and a start at %d", r.Size, r.Start.End)
	}
	return nil
}

// Range is a part of the volume to be made equal to the source's, and the position that the target has replayed.
type Range struct {
	Off, Len  int64
	Reflected history.LSN
}

// ask sends a Compare for every chunk of the range.
func (s *Session) ask(disk block.Device, r Range) error {
	data := make([]byte, chunkSize)
	for off := r.Off; off < r.Off+r.Len; off += chunkSize {
		p := data[:min(chunkSize, r.Off+r.Len-off)]
		c := compare{off: off, n: int64(len(p)), reflected: r.Reflected}
		c.digests = digestsAt(disk, p, off)
		if err := errors.Join(s.conn.WriteFrame(frameCompare, c.encode()), s.conn.Flush()); err != nil {
			return err
		}
		s.chunks = append(s.chunks, chunk{off, int64(len(p))})
	}
	return nil
}

// digestsAt returns the digests of the units at off; p is a buffer for what they cover. An unreadable sector is one more thing to repair: then no
// unit equals anything.
func digestsAt(disk block.Device, p []byte, off int64) []byte {
	size := digestSize * int(units(int64(len(p))))
	switch {
	case len(p)%unitSize == 0 && block.IsHole(disk, off, int64(len(p))):
		return bytes.Repeat(zeroUnitSum[:], size/digestSize)
	case disk.ReadAt(p, off) != nil:
		return make([]byte, size)
	}
	return sums(p, func(_ int, unit []byte) digest { return unitSum(unit) })
}

type chunk struct{ off, n int64 }

// units applies the answer to a Compare and asks for single blocks where units differ only in parts.
func (s *Session) units(disk block.Device, payload []byte, c chunk) ([]want, error) {
	n := units(c.n)
	if int64(len(payload)) < n {
		return nil, fmt.Errorf("sync answer of %d bytes for %d units", len(payload), n)
	}
	codes, rest := payload[:n], payload[n:]
	var wants []want
	var r run
	for i, code := range codes {
		off := c.off + int64(i)*unitSize
		size := min(unitSize, c.off+c.n-off)
		need := map[byte]int64{unitData: size, unitDigests: size / blockSize * digestSize}[code]
		if int64(len(rest)) < need || code > unitDigests {
			return nil, fmt.Errorf("sync answer for %d bytes at %d is malformed", size, off)
		}
		a := unitAnswer{off: off, n: size, body: rest[:need]}
		rest = rest[need:]
		if code == unitData {
			r.add(a)
			continue
		}
		if err := s.write(disk, &r); err != nil {
			return nil, err
		}
		w, err := s.unit(disk, code, a)
		if err != nil {
			return nil, err
		}
		if w != nil {
			wants = append(wants, *w)
		}
	}
	err := s.write(disk, &r)
	block.StartWriteback(disk, c.off, c.n)
	return wants, err
}

// run is a row of units that have travelled whole, to be written in one go. They are neighbours in the answer, too.
type run struct {
	off  int64
	body []byte
}

func (r *run) add(a unitAnswer) {
	if len(r.body) == 0 {
		*r = run{a.off, a.body[:0]}
	}
	r.body = r.body[:len(r.body)+len(a.body)]
}

func (s *Session) write(disk block.Device, r *run) error {
	if len(r.body) == 0 {
		return nil
	}
	s.Received += int64(len(r.body))
	err := disk.WriteAt(r.body, r.off, 0)
	*r = run{}
	return err
}

type unitAnswer struct {
	off, n int64
	body   []byte
}

func (s *Session) unit(disk block.Device, code byte, a unitAnswer) (*want, error) {
	switch code {
	case unitZero:
		return nil, disk.Discard(a.off, a.n, 0)
	case unitDigests:
		w, err := differing(disk, a)
		if err != nil || w.bits == 0 {
			return nil, err
		}
		// Flushed at once: the source answers while we go on.
		return &w, errors.Join(s.conn.WriteFrame(frameWant, w.encode()), s.conn.Flush())
	}
	return nil, nil
}

// differing compares a unit block by block.
func differing(disk block.Device, a unitAnswer) (want, error) {
	w := want{off: a.off, n: a.n}
	data := make([]byte, a.n)
	readErr := disk.ReadAt(data, a.off)
	each(data, blockSize, func(i int, b []byte) error {
		if readErr != nil || sum(b) != digest(a.body[i*digestSize:]) {
			w.bits |= 1 << i
		}
		return nil
	})
	return w, nil
}

// blocks applies the answer to a Want.
func (s *Session) blocks(w want, payload []byte) error {
	for i := range unitSize / blockSize {
		if w.bits&(1<<i) == 0 {
			continue
		}
		if len(payload) < blockSize {
			return fmt.Errorf("sync answer for the unit at %d is too short", w.off)
		}
		if err := s.disk.WriteAt(payload[:blockSize], w.off+int64(i)*blockSize, 0); err != nil {
			return err
		}
		s.Received += blockSize
		payload = payload[blockSize:]
	}
	return nil
}
