package translog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"mars/internal/history"
	"mars/internal/vfs"
)

// Start says from where a log is opened.
type Start struct {
	// Path is the history up to a record boundary that is known to be good: the checkpoint.
	Path history.Path
	// Durable is the largest LSN that is known to have been durable here; 0 if unknown.
	Durable history.LSN
	// Own is the timeline that was written here: only its records tell how much of this log was durable. What a fetched record says is about
	// the log of the node that wrote it.
	Own history.TimelineID
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
//	nothing, or bytes that nothing says were ever durable      a torn tail: cut off, durably; the log goes on there
//	the start knows the log was durable beyond                 damage: *DefectError together with a usable Log that ends before it
//	a later intact record of the own timeline says so          damage, likewise
//	the medium cannot return what is there                     damage, likewise
//	a record that only a newer version understands             an error, nothing is changed
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
	why, err := l.evidence(stop, start)
	if err == nil && why == nil && stop != nil {
		rep.Torn = l.somethingBehind()
		// Durably, else a later crash could bring the tail back behind other records.
		err = l.dropBehind(l.path.End)
	}
	if err == nil {
		err = l.settle(start.Durable)
	}
	if err != nil {
		return nil, rep, errors.Join(err, l.closeAll())
	}
	if why != nil {
		return l, rep, &DefectError{At: l.path.End, Why: errors.Join(stop, why)}
	}
	return l, rep, nil
}

// unreadable reports whether an error is the medium's, which will not go away by itself, and not that of this process or host.
func unreadable(err error) bool { return errors.Is(err, syscall.EIO) }

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

// settle makes what was found durable: it may have been written but never synced before the process died. Below known it was durable before.
func (l *Log) settle(known history.LSN) error {
	if err := l.rewrite(known); err != nil {
		return err
	}
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

// rewrite writes what is in the log from lsn on once more. An earlier process may have died of a failed sync: what could not be written then
// is still in the page cache, counts as clean, and would be passed over by the next sync, which reports success.
func (l *Log) rewrite(lsn history.LSN) error {
	buf := make([]byte, min(readPiece, int64(segmentHeaderSize+max(0, l.path.End-lsn))))
	for i, s := range l.segs {
		end := l.path.End
		if i+1 < len(l.segs) {
			end = min(end, l.segs[i+1].first)
		}
		if end <= lsn {
			continue
		}
		from := s.offset(max(lsn, s.first))
		if s.first >= lsn {
			from = 0 // its header may be as new
		}
		if err := s.rewrite(from, s.offset(end), buf); err != nil {
			return fmt.Errorf("write log segment %s once more: %w", s.name, err)
		}
	}
	return nil
}

// rewrite writes the bytes [from, to) of the file, and its size, once more.
func (s *segment) rewrite(from, to int64, buf []byte) error {
	for from < to {
		n, err := s.file.ReadAt(buf[:min(int64(len(buf)), to-from)], from)
		if n == 0 {
			return errOr(err, "it has become shorter")
		}
		if _, err := s.file.WriteAt(buf[:n], from); err != nil {
			return err
		}
		from += int64(n)
	}
	size, err := s.file.Size()
	if err != nil {
		return err
	}
	return errors.Join(s.file.Truncate(size+1), s.file.Truncate(size))
}

// openSegments opens every segment file, in order of LSN.
func (l *Log) openSegments() error {
	names, err := l.cfg.FS.ReadDir(l.cfg.Dir)
	if err != nil {
		return fmt.Errorf("log directory: %w", err)
	}
	if err := l.dropSpares(names); err != nil {
		return err
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
	s, err := l.readSegment(f, name)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if s == nil {
		return errors.Join(f.Close(), l.cfg.FS.Remove(l.file(name)))
	}
	l.segs = append(l.segs, s)
	return nil
}

// readSegment returns the segment that a file is; nil if its creation was never completed: there is neither a header nor a record. A damaged
// header alone costs nothing, since the name says the same and the chain of the records proves it.
func (l *Log) readSegment(f vfs.File, name string) (*segment, error) {
	b := make([]byte, segmentHeaderSize)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) && !unreadable(err) {
		return nil, err
	}
	size, sizeErr := f.Size()
	if sizeErr != nil {
		return nil, sizeErr
	}
	first, ok := parseSegmentName(name)
	p, err := decodeSegmentHeader(b[:n], l.cfg.Resource)
	if err == nil && ok && p.LSN != first {
		err = fmt.Errorf("%w: segment header of an earlier use", errDamaged)
	}
	if err == nil {
		return &segment{name: name, first: p.LSN, file: f, space: size}, nil
	}
	if !errors.Is(err, errNoRecord) && !errors.Is(err, errDamaged) || !ok {
		return nil, err
	}
	s := &segment{name: name, first: first, file: f, space: size}
	h, err := findHeader(s, first, func(*Header) bool { return true })
	if h == nil && err == nil {
		return nil, nil
	}
	if err != nil && !unreadable(err) {
		return nil, err
	}
	return s, nil
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
		if i+1 == len(l.segs) {
			return stop, nil
		}
		if next := l.segs[i+1]; next.first != l.path.End {
			return errors.Join(stop, fmt.Errorf("%w: the log continues only at LSN %d", errNoRecord, next.first)), nil
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
			err = fmt.Errorf("read log %s at LSN %d: %w", s.name, l.path.End, err)
			if unreadable(err) {
				return err, nil
			}
			return nil, err
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
func (l *Log) evidence(stop error, start Start) (why, err error) {
	switch {
	case start.Durable > l.path.End:
		return fmt.Errorf("the log was durable up to LSN %d", start.Durable), nil
	case unreadable(stop):
		return stop, nil
	case start.Own == 0 || stop == nil:
		return nil, nil
	}
	for _, s := range l.segs {
		h, err := findHeader(s, l.path.End+recordUnit, func(h *Header) bool { return h.Timeline == start.Own && h.Durable > l.path.End })
		if unreadable(err) {
			return err, nil
		}
		if err != nil {
			return nil, err
		}
		if h != nil {
			return fmt.Errorf("an intact record at LSN %d says that the log was durable up to %d", h.LSN, h.Durable), nil
		}
	}
	return nil, nil
}

// findHeader looks in s for an intact header at or behind from that match accepts.
func findHeader(s *segment, from history.LSN, match func(*Header) bool) (*Header, error) {
	size, err := s.file.Size()
	if err != nil {
		return nil, err
	}
	at := max(segmentHeaderSize, s.offset(from))
	buf := make([]byte, max(0, min(readPiece, size-at)))
	for at+HeaderSize <= size {
		n, err := s.file.ReadAt(buf[:min(int64(len(buf)), size-at)], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if h := matchHeader(buf[:n], s.first+history.LSN(at-segmentHeaderSize), match); h != nil {
			return h, nil
		}
		if n < HeaderSize {
			break
		}
		at += int64(n-HeaderSize)/recordUnit*recordUnit + recordUnit // the first place where no whole header was left
	}
	return nil, nil
}

func matchHeader(b []byte, lsn history.LSN, match func(*Header) bool) *Header {
	for at := 0; at+HeaderSize <= len(b); at += recordUnit {
		if b[at] != recordMagic&0xff {
			continue
		}
		if h, err := decode(b[at:], lsn+history.LSN(at)); err == nil && match(&h) {
			return &h
		}
	}
	return nil
}

// dropBehind removes all bytes from lsn on, durably. The log is not in use yet.
func (l *Log) dropBehind(lsn history.LSN) error {
	i := len(l.segs)
	for i > 0 && l.segs[i-1].first >= lsn {
		i--
	}
	cut := l.segs[i:]
	l.segs = l.segs[:i]
	err := l.removeBehind(cut, lsn)
	for _, s := range cut {
		err = errors.Join(err, s.file.Close())
	}
	return err
}

// removeBehind removes the segments cut, which were the last ones, and what the one before has behind lsn. The newest goes first, so that a
// crash leaves a log without a hole.
func (l *Log) removeBehind(cut []*segment, lsn history.LSN) error {
	for _, s := range slices.Backward(cut) {
		if err := l.removeFile(s); err != nil {
			return err
		}
	}
	l.mu.Lock()
	var last *segment
	if n := len(l.segs); n > 0 {
		last = l.segs[n-1]
	}
	l.mu.Unlock()
	if last == nil {
		return nil
	}
	return l.truncateSegment(last, lsn)
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

// TruncateTo drops everything behind pos, durably: a tail that another history has replaced. The caller has reported what is lost. Readers of
// what is dropped get an error.
func (l *Log) TruncateTo(pos history.Position) error {
	l.cutting.Lock()
	defer l.cutting.Unlock()
	cut, err := l.cutBehind(pos)
	if err != nil {
		return err
	}
	err = l.removeBehind(cut, pos.LSN)
	for _, s := range cut {
		l.release(s)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.failed = fmt.Errorf("%w: %w", ErrFailed, err)
	}
	l.announce()
	return err
}

// cutBehind takes the segments that begin at or behind pos out of the log and moves its end to pos; the caller must release them. It waits
// for a sync under way, which would else count bytes as durable that come there later.
func (l *Log) cutBehind(pos history.Position) ([]*segment, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.syncing {
		l.synced.Wait()
	}
	if l.failed != nil {
		return nil, l.failed
	}
	p, err := l.path.TruncateTo(pos)
	if err != nil {
		return nil, err
	}
	i := len(l.segs)
	for i > 0 && l.segs[i-1].first >= pos.LSN {
		i--
		l.segs[i].refs++
		l.segs[i].dead = true
	}
	cut := l.segs[i:]
	l.segs = append([]*segment(nil), l.segs[:i]...)
	l.path = p
	l.durable = min(l.durable, p.End)
	l.room = 0
	l.sealing.Store(false)
	return cut, nil
}
