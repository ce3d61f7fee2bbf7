package translog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"mars/internal/history"
)

// Start says from where a log is opened.
type Start struct {
	// Path is the history up to a record boundary that is known to be good: the checkpoint.
	Path history.Path
	// Durable is the largest LSN that is known to have been durable here; 0 if unknown.
	Durable history.LSN
}

// Report says what Open found behind the checkpoint.
type Report struct {
	Records int
	Torn    bool // an unfinished tail was cut off
}

// Open opens the log in cfg.Dir, which may be empty, and verifies every record behind the start. seen is called for each of them in order.
//
// What is found behind the last intact record decides:
//
//	nothing, or bytes that were never part of a durable log   a torn tail: cut off, durably; the log goes on there
//	an intact record that says its log was durable beyond     damage: *DefectError together with a usable Log that ends before it
//	the start knows the log was durable beyond                 damage, likewise
//
// Records older than the start are not read.
func Open(cfg Config, start Start, seen func(*Record)) (*Log, Report, error) {
	l := newLog(cfg, start.Path)
	var rep Report
	if err := l.cfg.FS.MkdirAll(l.cfg.Dir); err != nil {
		return nil, rep, fmt.Errorf("log directory: %w", err)
	}
	if err := l.openSegments(); err != nil {
		return nil, rep, errors.Join(err, l.closeAll())
	}
	stop, err := l.recover(&rep, seen)
	if err != nil {
		return nil, rep, errors.Join(err, l.closeAll())
	}
	if stop == nil && l.path.End >= start.Durable {
		return l, rep, l.settle()
	}
	if why := l.evidence(start.Durable); why != nil {
		l.durable = l.path.End
		return l, rep, &DefectError{At: l.path.End, Why: errors.Join(stop, why)}
	}
	rep.Torn = l.somethingBehind()
	// Durably, else a later crash could bring the tail back behind other records.
	if err := l.dropBehind(l.path.End); err != nil {
		return nil, rep, errors.Join(err, l.closeAll())
	}
	return l, rep, l.settle()
}

// somethingBehind reports whether the end is followed by anything but zeroes, by the look of the place of the next header.
func (l *Log) somethingBehind() bool {
	for _, s := range l.segs {
		if s.first > l.path.End {
			return true
		}
	}
	var b [HeaderSize]byte
	if n := len(l.segs); n > 0 {
		l.segs[n-1].file.ReadAt(b[:], l.segs[n-1].offset(l.path.End)) // at the end of the file there is nothing, which is no error here
	}
	return b != [HeaderSize]byte{}
}

func (l *Log) closeAll() error {
	var errs []error
	for _, s := range l.segs {
		errs = append(errs, s.file.Close())
	}
	return errors.Join(errs...)
}

// settle makes what was found durable: it may have been written but never synced before the process died.
func (l *Log) settle() error {
	for _, s := range l.segs {
		s.dirty, s.unlinked = true, true
	}
	if n := len(l.segs); n > 0 {
		size, err := l.segs[n-1].file.Size()
		if err != nil {
			return err
		}
		l.room = size
	}
	if len(l.segs) == 0 {
		l.durable = l.path.End
		return nil
	}
	l.durable = 0
	return l.SyncTo(l.path.End)
}

// openSegments opens every segment file with an intact header, in order of LSN. A file without one was never durable: it is removed.
func (l *Log) openSegments() error {
	names, err := l.cfg.FS.ReadDir(l.cfg.Dir)
	if err != nil {
		return fmt.Errorf("log directory: %w", err)
	}
	for _, name := range names {
		if !strings.HasPrefix(name, "seg-") {
			continue
		}
		if err := l.openSegment(name); err != nil {
			return fmt.Errorf("log segment %s: %w", l.file(name), err)
		}
	}
	slices.SortFunc(l.segs, func(a, b *segment) int { return int(a.first - b.first) })
	return nil
}

func (l *Log) openSegment(name string) error {
	f, err := l.cfg.FS.Open(l.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	b := make([]byte, segmentHeaderSize)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return errors.Join(err, f.Close())
	}
	p, err := decodeSegmentHeader(b[:n], l.cfg.Resource)
	if errors.Is(err, errNoRecord) || errors.Is(err, errDamaged) {
		return errors.Join(f.Close(), l.cfg.FS.Remove(l.file(name)))
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.segs = append(l.segs, &segment{name: name, first: p.LSN, file: f})
	return nil
}

// recover follows the records from the start as far as they are intact. stop says what ended it before the end of the last segment.
func (l *Log) recover(rep *Report, seen func(*Record)) (stop, err error) {
	for i := l.firstLive(); i < len(l.segs); i++ {
		s := l.segs[i]
		if s.first > l.path.End {
			return fmt.Errorf("%w: the log continues only at LSN %d", errNoRecord, s.first), nil
		}
		stop, err := l.recoverSegment(s, rep, seen)
		if err != nil {
			return nil, err
		}
		if last := i+1 == len(l.segs); last || l.segs[i+1].first != l.path.End {
			return stop, nil
		}
	}
	return nil, nil
}

// firstLive returns the index of the segment that holds the start.
func (l *Log) firstLive() int {
	for i := len(l.segs) - 1; i >= 0; i-- {
		if l.segs[i].first <= l.path.End {
			return i
		}
	}
	return 0
}

func (l *Log) recoverSegment(s *segment, rep *Report, seen func(*Record)) (stop, err error) {
	size, err := s.file.Size()
	if err != nil {
		return nil, err
	}
	end := s.first + history.LSN(max(0, size-segmentHeaderSize))
	if end <= l.path.End {
		return nil, nil
	}
	r := newRecordReader(s, l.path.End, end)
	for {
		b, err := r.next()
		if err != nil {
			return nil, fmt.Errorf("read log %s at LSN %d: %w", s.name, l.path.End, err)
		}
		h, payload, err := parse(b, l.path.End, l.path.EndDigest)
		if err == nil {
			err = follow(&l.path, &h, payload)
		}
		if errors.Is(err, errNoRecord) || errors.Is(err, errDamaged) {
			return err, nil
		}
		if err != nil {
			return nil, fmt.Errorf("log %s at LSN %d: %w", s.name, l.path.End, err)
		}
		rep.Records++
		seen(&Record{h, payload, h.LSN + HeaderSize})
		r.skip(h.Size())
	}
}

// evidence returns why the bytes behind the end must once have been durable; nil if nothing says so.
func (l *Log) evidence(known history.LSN) error {
	if known > l.path.End {
		return fmt.Errorf("the log was durable up to LSN %d", known)
	}
	for _, s := range l.segs {
		h, err := l.laterRecord(s)
		if err != nil {
			return err
		}
		if h != nil {
			return fmt.Errorf("an intact record at LSN %d says that the log was durable up to %d", h.LSN, h.Durable)
		}
	}
	return nil
}

// laterRecord looks in s for an intact header behind the end that claims durability beyond the end.
func (l *Log) laterRecord(s *segment) (*Header, error) {
	size, err := s.file.Size()
	if err != nil {
		return nil, err
	}
	from := max(segmentHeaderSize, s.offset(l.path.End)+recordUnit)
	buf := make([]byte, readPiece)
	for from < size {
		n, err := s.file.ReadAt(buf[:min(readPiece, size-from)], from)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if h := l.findClaim(buf[:n], s.first+history.LSN(from-segmentHeaderSize)); h != nil {
			return h, nil
		}
		if n < HeaderSize {
			break
		}
		from += int64(n) - int64(n)%recordUnit
		if from < size {
			from -= HeaderSize - HeaderSize%recordUnit // a header may lie across two pieces
		}
	}
	return nil, nil
}

func (l *Log) findClaim(b []byte, lsn history.LSN) *Header {
	for at := 0; at+HeaderSize <= len(b); at += recordUnit {
		if b[at] != recordMagic&0xff {
			continue
		}
		h, err := decode(b[at:], lsn+history.LSN(at))
		if err == nil && h.Durable > l.path.End && h.LSN > l.path.End {
			return &h
		}
	}
	return nil
}

// dropBehind removes all bytes from lsn on.
func (l *Log) dropBehind(lsn history.LSN) error {
	for len(l.segs) > 0 {
		s := l.segs[len(l.segs)-1]
		if s.first < lsn {
			break
		}
		if err := errors.Join(s.file.Close(), l.cfg.FS.Remove(l.file(s.name))); err != nil {
			return fmt.Errorf("remove log segment %s: %w", s.name, err)
		}
		l.segs = l.segs[:len(l.segs)-1]
	}
	if err := l.cfg.FS.SyncDir(l.cfg.Dir); err != nil {
		return fmt.Errorf("sync log directory: %w", err)
	}
	if len(l.segs) == 0 {
		return nil
	}
	return l.truncateSegment(l.segs[len(l.segs)-1], lsn)
}

func (l *Log) truncateSegment(s *segment, lsn history.LSN) error {
	size, err := s.file.Size()
	if err != nil {
		return err
	}
	at := s.offset(lsn)
	if at >= size {
		return nil
	}
	if err := s.file.Truncate(at); err != nil {
		return fmt.Errorf("cut log segment %s: %w", s.name, err)
	}
	if err := s.file.Sync(); err != nil {
		return fmt.Errorf("sync log segment %s: %w", s.name, err)
	}
	return nil
}

// TruncateTo drops everything behind pos, durably: a tail that another history has replaced. The caller has reported what is lost.
func (l *Log) TruncateTo(pos history.Position) error {
	l.mu.Lock()
	for l.syncing {
		l.synced.Wait()
	}
	p, err := l.path.TruncateTo(pos)
	failed := l.failed
	busy := slices.ContainsFunc(l.segs, func(s *segment) bool { return s.refs > 0 && s.first >= pos.LSN })
	l.mu.Unlock()
	switch {
	case failed != nil:
		return failed
	case err != nil:
		return err
	case busy:
		return fmt.Errorf("log is being read behind LSN %d", pos.LSN)
	}
	if err := l.dropBehind(pos.LSN); err != nil {
		l.mu.Lock()
		l.failed = fmt.Errorf("%w: %w", ErrFailed, err)
		l.mu.Unlock()
		return err
	}
	l.mu.Lock()
	l.path = p
	l.durable = min(l.durable, p.End)
	l.room = 0
	l.sealing.Store(false)
	l.mu.Unlock()
	return nil
}
