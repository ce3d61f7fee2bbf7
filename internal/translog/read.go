package translog

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"mars/internal/history"
)

// ReadData fills p with payload bytes from the LSN at, as given by Entry.Data or Scan. It verifies nothing.
func (l *Log) ReadData(p []byte, at history.LSN) error {
	s, _, err := l.acquire(at)
	if err != nil {
		return err
	}
	defer l.release(s)
	if _, err := s.file.ReadAt(p, s.offset(at)); err != nil {
		return fmt.Errorf("read log %s at LSN %d: %w", s.name, at, err)
	}
	return nil
}

// Record is one verified record of a Scan.
type Record struct {
	Header
	Payload []byte      // valid during the callback only
	Data    history.LSN // of the first payload byte
}

// Scan calls f for every record from start up to, not including, end; both must be record boundaries, and start.Digest the chain value
// there. Every record is verified; damage is a *DefectError, and no later record is seen. It stops early, without an error, when f returns
// false, and returns the position it has reached.
func (l *Log) Scan(start history.Position, end history.LSN, f func(*Record) bool) (history.Position, error) {
	pos := start
	for pos.LSN < end {
		more, err := l.scanSegment(&pos, end, f)
		if err != nil || !more {
			return pos, err
		}
	}
	return pos, nil
}

func (l *Log) scanSegment(pos *history.Position, end history.LSN, f func(*Record) bool) (more bool, err error) {
	s, segEnd, err := l.acquire(pos.LSN)
	if err != nil {
		return false, err
	}
	defer l.release(s)
	r := newRecordReader(s, pos.LSN, min(end, segEnd))
	for pos.LSN < min(end, segEnd) {
		b, err := r.next()
		if err != nil {
			return false, defect(pos.LSN, err)
		}
		h, payload, err := parse(b, pos.LSN, pos.Digest)
		if err != nil {
			return false, defect(pos.LSN, err)
		}
		if !f(&Record{h, payload, h.LSN + HeaderSize}) {
			return false, nil
		}
		*pos = history.Position{Timeline: h.Timeline, LSN: h.End(), Digest: h.Chain}
		r.skip(h.Size())
	}
	return true, nil
}

// defect turns a failure to read or verify a record of the live log into a DefectError: bytes that a medium cannot return are as lost as
// damaged ones.
func defect(at history.LSN, err error) error { return &DefectError{At: at, Why: err} }

// recordReader reads a segment in large pieces and hands out one record at a time.
type recordReader struct {
	s    *segment
	lsn  history.LSN // of buf[0]
	end  history.LSN
	buf  []byte
	fill []byte // the whole buffer
}

const readPiece = 2 << 20

func newRecordReader(s *segment, from, end history.LSN) *recordReader {
	return &recordReader{s: s, lsn: from, end: end, fill: make([]byte, min(readPiece, int64(end-from)))}
}

// next returns the bytes from the current position on: at least one whole record unless the log ends or lies before.
func (r *recordReader) next() ([]byte, error) {
	if r.enough() {
		return r.buf, nil
	}
	want := min(int64(len(r.fill)), int64(r.end-r.lsn))
	n, err := r.s.file.ReadAt(r.fill[:want], r.s.offset(r.lsn))
	if err != nil && !(errors.Is(err, io.EOF)) {
		return nil, err
	}
	r.buf = r.fill[:n]
	return r.buf, nil
}

// enough reports whether buf holds a whole record, or what claims to be one.
func (r *recordReader) enough() bool {
	if len(r.buf) < HeaderSize {
		return false
	}
	h, err := decode(r.buf, r.lsn)
	return err == nil && h.Size() <= int64(len(r.buf))
}

func (r *recordReader) skip(n int64) {
	r.buf = r.buf[n:]
	r.lsn += history.LSN(n)
}

// CheckPosition returns nil when pos lies on this log's history, ErrDiverged when it does not, ErrGone when that can no longer be told.
// A position at the very end is fine.
func (l *Log) CheckPosition(pos history.Position) error {
	l.mu.Lock()
	p := l.path
	l.mu.Unlock()
	if !p.Contains(pos) {
		if pos.LSN > p.End {
			return fmt.Errorf("position %v is ahead of this log, which ends at %d on timeline %v: %w", pos, p.End, p.Tip().ID, ErrDiverged)
		}
		return fmt.Errorf("position %v is not on this log's history: %w", pos, ErrDiverged)
	}
	if pos.LSN == p.End {
		return nil
	}
	return l.checkChain(pos)
}

// checkChain verifies that the record at pos follows the chain value of pos.
func (l *Log) checkChain(pos history.Position) error {
	s, _, err := l.acquire(pos.LSN)
	if err != nil {
		return err
	}
	defer l.release(s)
	var b [HeaderSize]byte
	if _, err := s.file.ReadAt(b[:], s.offset(pos.LSN)); err != nil {
		return fmt.Errorf("read log %s at LSN %d: %w", s.name, pos.LSN, err)
	}
	h, err := decode(b[:], pos.LSN)
	if err != nil {
		// The position is on this history, so there was a record. Who has other bytes in the same place has another log, or this one is damaged.
		return fmt.Errorf("position %v is no record boundary here (%w): %w", pos, defect(pos.LSN, err), ErrDiverged)
	}
	if chain(pos.Digest, b[:]) != h.Chain {
		return fmt.Errorf("what was logged before position %v differs: %w", pos, ErrDiverged)
	}
	return nil
}

// ReadRaw returns whole durable records from lsn on, verbatim, as many as fit into buf; nothing when lsn is the durable end. buf must have
// room for the largest record (MaxChunk). Headers are checked, payloads are not: the receiver verifies everything.
func (l *Log) ReadRaw(buf []byte, lsn history.LSN) ([]byte, error) {
	durable := l.Durable()
	if lsn >= durable {
		return nil, nil
	}
	s, end, err := l.acquire(lsn)
	if err != nil {
		return nil, err
	}
	defer l.release(s)
	want := min(int64(len(buf)), int64(min(end, durable)-lsn))
	n, err := s.file.ReadAt(buf[:want], s.offset(lsn))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read log %s at LSN %d: %w", s.name, lsn, err)
	}
	whole, err := wholeRecords(buf[:n], lsn)
	if whole == 0 {
		return nil, defect(lsn, errOr(err, "no whole record fits the buffer"))
	}
	return buf[:whole], nil
}

// MaxChunk is the room that ReadRaw needs at least.
const MaxChunk = maxRecord

// wholeRecords returns the length of the prefix of b that consists of whole records.
func wholeRecords(b []byte, lsn history.LSN) (int64, error) {
	var at int64
	for at < int64(len(b)) {
		h, err := decode(b[at:], lsn+history.LSN(at))
		if err != nil {
			return at, err
		}
		if at+h.Size() > int64(len(b)) {
			return at, nil
		}
		at += h.Size()
	}
	return at, nil
}

// AppendRaw verifies records that were read with ReadRaw at another member from exactly the end of this log on, and appends them. Nothing is
// stored unless all of it is intact and follows this log (ErrDiverged or ErrDefective otherwise). It returns the last record's header.
func (l *Log) AppendRaw(b []byte) (Header, error) {
	runs, last, err := verifyRaw(b, l.Path())
	if err != nil {
		return Header{}, err
	}
	for _, r := range runs {
		if r.starts {
			l.Rotate()
		}
		if err := l.storeRaw(r.records, r.path); err != nil {
			return Header{}, err
		}
	}
	return last, nil
}

// rawRun is a sequence of verified records for one segment.
type rawRun struct {
	records []byte
	starts  bool         // the origin began a segment here
	path    history.Path // behind it
}

// verifyRaw checks that b consists of whole records that follow p, and cuts it where segments begin.
func verifyRaw(b []byte, p history.Path) (runs []rawRun, last Header, err error) {
	for at := 0; at < len(b); {
		h, payload, err := parse(b[at:], p.End, p.EndDigest)
		if err == nil {
			err = paddingIntact(b[at+HeaderSize+h.PayloadLen : at+int(h.Size())])
		}
		lsn := p.End
		if err == nil {
			err = follow(&p, &h, payload)
		}
		if errors.Is(err, errStranger) {
			return nil, last, fmt.Errorf("received record for LSN %d: %w (%w)", lsn, ErrDiverged, err)
		}
		if err != nil {
			return nil, last, &DefectError{At: lsn, Why: fmt.Errorf("received: %w", err)}
		}
		starts := h.Flags&flagSegmentStart != 0
		if len(runs) == 0 || starts {
			runs = append(runs, rawRun{records: b[at:at], starts: starts})
		}
		r := &runs[len(runs)-1]
		r.records = r.records[:len(r.records)+int(h.Size())]
		r.path = p // its timelines are never changed in place
		last = h
		at += int(h.Size())
	}
	return runs, last, nil
}

// paddingIntact: no checksum covers the padding, but copies of the log shall be equal to the last byte.
func paddingIntact(p []byte) error {
	if !bytes.Equal(p, padding[:len(p)]) {
		return fmt.Errorf("%w: padding is not zero", errDamaged)
	}
	return nil
}

func (l *Log) storeRaw(b []byte, p history.Path) error {
	if err := l.makeRawRoom(); err != nil {
		return err
	}
	l.mu.Lock()
	s := l.segs[len(l.segs)-1]
	l.mu.Unlock()
	l.iov = append(l.iov[:0], b)
	return l.put(s, l.iov, p)
}

// makeRawRoom opens a segment when there is none or the origin opened one here; the origin's segment size may differ from ours.
func (l *Log) makeRawRoom() error {
	l.mu.Lock()
	failed, pos, n := l.failed, l.path.Position(), len(l.segs)
	fresh := n > 0 && l.segs[n-1].first == pos.LSN
	l.mu.Unlock()
	switch {
	case failed != nil:
		return failed
	case fresh:
		l.sealing.Store(false)
		return nil
	case n == 0 || l.sealing.Load():
		return l.newSegment(pos)
	}
	return nil
}
