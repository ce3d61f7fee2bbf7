package translog

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"mars/internal/history"
)

// Entry is one record to be appended.
type Entry struct {
	Kind    Kind
	Off     int64
	Len     int64
	Stamp   int64
	Payload []byte // at most MaxPayload; read during Append only
	Sum     uint32 // Checksum(Payload)

	// Data is set by Append: the LSN of the payload's first byte.
	Data history.LSN
}

// padding fills records up to a multiple of recordUnit.
var padding [recordUnit]byte

// Append writes the entries at the end of the log, in order, with as few system calls as possible. It returns how many of them are in the log
// (readable, and surviving a kill of the process; durable after SyncTo). On an error the others are not, and the log is as if they
// had never been passed.
func (l *Log) Append(entries []Entry) (int, error) {
	for i := range entries {
		if len(entries[i].Payload) > MaxPayload {
			return 0, fmt.Errorf("log record with a payload of %d bytes, more than %d", len(entries[i].Payload), MaxPayload)
		}
	}
	done := 0
	for done < len(entries) {
		n, err := l.appendToSegment(entries[done:])
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// appendToSegment writes the entries that fit into the current segment, at least one: into a new segment if need be.
func (l *Log) appendToSegment(entries []Entry) (int, error) {
	if err := l.onTimeline(); err != nil {
		return 0, err
	}
	fresh, err := l.makeRoom(recordSize(len(entries[0].Payload)))
	if err != nil {
		return 0, err
	}
	w := l.startBatch(len(entries), fresh)
	n := 0
	for i := range entries {
		if i > 0 && !w.fits(recordSize(len(entries[i].Payload))) {
			break
		}
		w.add(&entries[i])
		n++
	}
	if err := w.write(); err != nil {
		return 0, err
	}
	return n, nil
}

// onTimeline returns nil when the log is on a timeline that has not ended: behind an end record, which has given the token away, nothing may follow.
func (l *Log) onTimeline() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.path.Tip().ID == 0 || l.path.Successor != "" {
		return fmt.Errorf("append to log at LSN %d: %w", l.path.End, ErrNoTimeline)
	}
	return nil
}

// batch collects records that go to one segment.
type batch struct {
	l       *Log
	seg     *segment
	path    history.Path // End, EndDigest and LastData move; the timelines are shared and not touched
	durable history.LSN
	from    history.LSN
	flags   uint8
}

func (l *Log) startBatch(n int, fresh bool) *batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	if cap(l.hdrs) < n*HeaderSize {
		l.hdrs = make([]byte, 0, max(64, n)*HeaderSize)
	}
	l.hdrs, l.iov = l.hdrs[:0], l.iov[:0]
	b := &batch{l: l, seg: l.segs[len(l.segs)-1], path: l.path, durable: l.durable, from: l.path.End}
	if fresh {
		b.flags = flagSegmentStart
	}
	return b
}

func (b *batch) fits(size int64) bool {
	return b.seg.offset(b.path.End)+size <= b.l.cfg.SegmentSize
}

func (b *batch) add(e *Entry) {
	h := Header{Kind: e.Kind, Flags: b.flags, LSN: b.path.End, Timeline: b.path.Tip().ID, Stamp: e.Stamp,
		Off: e.Off, Len: e.Len, PayloadLen: len(e.Payload), Durable: b.durable}
	b.flags = 0
	b.put(&h, e.Payload, e.Sum)
	e.Data = h.LSN + HeaderSize
}

func (b *batch) put(h *Header, payload []byte, sum uint32) {
	l := b.l
	binary.LittleEndian.PutUint32(h.PayloadSum[:], sum)
	at := len(l.hdrs)
	l.hdrs = append(l.hdrs, make([]byte, HeaderSize)...)
	hdr := l.hdrs[at : at+HeaderSize : at+HeaderSize]
	h.encode(hdr, b.path.EndDigest)
	l.iov = append(l.iov, hdr)
	if len(payload) > 0 {
		l.iov = append(l.iov, payload)
	}
	if pad := h.Size() - HeaderSize - int64(len(payload)); pad > 0 {
		l.iov = append(l.iov, padding[:pad])
	}
	b.path.End, b.path.EndDigest = h.End(), h.Chain
	if h.Modifies() {
		b.path.LastData = b.path.End
	}
}

// write puts the batch into the file and moves the end of the log.
func (b *batch) write() error { return b.l.put(b.seg, b.l.iov, b.path) }

// put writes records from the end of the log up to that of p, and moves the end there.
func (l *Log) put(s *segment, bufs [][]byte, p history.Path) error {
	from := l.End()
	if from < s.first {
		return fmt.Errorf("write log %s at LSN %d, before its begin", s.name, from) // it would hit the segment's header
	}
	want := int(p.End - from)
	n, err := s.file.WritevAt(l.writeAhead(s, bufs, s.offset(p.End)), s.offset(from))
	if n < want {
		return fmt.Errorf("write log %s at LSN %d: %w", s.name, from, errOr(err, "short write"))
	}
	l.advance(s, p)
	return nil
}

// Constants of writeAhead, in bytes.
const (
	smallSync = 128 << 10
	aheadStep = 64 << 10 // not more: the page cache would use large folios, whose blocks each later small write must walk
	pageStep  = 4 << 10
)

var zeroes [aheadStep]byte

// writeAhead adds zeroes up to the next boundary: of a page, since to write a part of one that is not cached the kernel must read it first; and
// of a larger step when the log is synced often in small steps. The first write to a reserved block changes the file system's metadata, and
// a sync must wait for its journal then; the zeroes make that happen once per step instead of once per sync.
func (l *Log) writeAhead(s *segment, bufs [][]byte, end int64) [][]byte {
	if end <= s.written {
		return bufs
	}
	step := int64(aheadStep)
	if l.perSync.Load() > smallSync {
		step = pageStep
	}
	l.mu.Lock()
	room := l.room // what is not reserved may not be there
	l.mu.Unlock()
	s.written = max(end, min((end+step-1)/step*step, room))
	return append(bufs, zeroes[:s.written-end])
}

// advance publishes a new end of the log.
func (l *Log) advance(s *segment, p history.Path) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.dirty = true
	l.path.End, l.path.EndDigest, l.path.LastData = p.End, p.EndDigest, p.LastData
	l.path.Timelines, l.path.Successor = p.Timelines, p.Successor
}

func errOr(err error, text string) error {
	if err != nil {
		return err
	}
	return errors.New(text)
}

// StartTimeline appends the first record of a timeline, in a segment of its own. Fields of t that follow from the log (No, Parent, Switch,
// Digest, Passed) are filled in. It is durable when nil is returned.
func (l *Log) StartTimeline(t history.Timeline) (history.Timeline, error) {
	l.Rotate()
	p := l.Path()
	tip := p.Tip()
	t.No, t.Parent, t.Switch, t.Digest, t.Passed = tip.No+1, tip.ID, p.End, p.EndDigest, p.Successor
	if t.ID == 0 || t.Origin == "" {
		return t, fmt.Errorf("timeline without identity or origin")
	}
	err := l.appendControl(KindTimelineStart, t.Stamp, t, func(p *history.Path) { p.Push(t) })
	return t, err
}

// EndTimeline appends the record that closes the timeline and passes the token to successor. It is durable when nil is returned.
func (l *Log) EndTimeline(successor string, stamp int64) error {
	if successor == "" {
		return errors.New("end of timeline without a successor")
	}
	if err := l.onTimeline(); err != nil {
		return err
	}
	return l.appendControl(KindTimelineEnd, stamp, EndOfTimeline{successor}, func(p *history.Path) { p.Successor = successor })
}

// appendControl appends one record with a JSON payload; change is what it does to the path besides moving its end.
func (l *Log) appendControl(kind Kind, stamp int64, content any, change func(*history.Path)) error {
	payload, err := json.Marshal(content)
	if err != nil {
		return err
	}
	fresh, err := l.makeRoom(recordSize(len(payload)))
	if err != nil {
		return err
	}
	b := l.startBatch(1, fresh)
	b.path = b.path.Clone()
	h := Header{Kind: kind, Flags: b.flags, LSN: b.path.End, Stamp: stamp, PayloadLen: len(payload), Durable: b.durable}
	end, digest := b.path.End, b.path.EndDigest
	change(&b.path)
	b.path.End, b.path.EndDigest = end, digest
	h.Timeline = b.path.Tip().ID
	b.put(&h, payload, Checksum(payload))
	if err := b.write(); err != nil {
		return err
	}
	return l.SyncTo(b.path.End)
}

// Rotate makes the next record the first one of a new segment. Anybody may call it at any time.
func (l *Log) Rotate() { l.sealing.Store(true) }

// makeRoom sees to it that the last segment can take size bytes, opening a new one when it is full or sealed. fresh: the next record is the
// first one of its segment.
func (l *Log) makeRoom(size int64) (fresh bool, err error) {
	l.mu.Lock()
	failed, pos := l.failed, l.path.Position()
	var last *segment
	if len(l.segs) > 0 {
		last = l.segs[len(l.segs)-1]
	}
	l.mu.Unlock()
	switch {
	case failed != nil:
		return false, failed
	case last == nil:
		return true, l.newSegment(pos)
	case last.first == pos.LSN:
		l.sealing.Store(false)
		return true, nil
	case l.sealing.Load() || last.offset(pos.LSN)+size > l.cfg.SegmentSize:
		return true, l.newSegment(pos)
	}
	return false, nil
}

// newSegment creates the segment that begins at pos. Its directory entry becomes durable with the next sync, before any of its records
// count as durable.
func (l *Log) newSegment(pos history.Position) error {
	name := segmentName(pos.LSN, pos.Timeline)
	f, err := l.segmentFile(name)
	if err != nil {
		return err
	}
	if err := initSegment(f, encodeSegmentHeader(l.cfg.Resource, pos), l.cfg.SegmentSize); err != nil {
		return errors.Join(fmt.Errorf("create log segment %s: %w", name, err), f.Close(), l.cfg.FS.Remove(l.file(name)))
	}
	l.sealLast(pos.LSN)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.segs = append(l.segs, &segment{name: name, first: pos.LSN, file: f, dirty: true, unlinked: true})
	l.room = l.cfg.SegmentSize
	l.sealing.Store(false)
	return nil
}

// sealLast ends the use of the last segment, which ends at end. It gives back what was reserved and not needed, unless that is little: a spare
// should have all of its space. If it fails, space is wasted until the segment is deleted, nothing else.
func (l *Log) sealLast(end history.LSN) {
	l.mu.Lock()
	n := len(l.segs)
	if n == 0 {
		l.mu.Unlock()
		return
	}
	s := l.segs[n-1]
	used := s.offset(end)
	s.space = max(used, l.room)
	wasted := s.space - used
	l.mu.Unlock()
	if wasted > l.cfg.SegmentSize/8 && s.file.Truncate(used) == nil {
		l.mu.Lock()
		s.space = used
		l.mu.Unlock()
	}
}

// initSegment reserves the space first, so that a full file system shows here and not in the middle of a record.
func initSegment(f interface {
	Allocate(off, n int64) error
	WriteAt(p []byte, off int64) (int, error)
}, header []byte, size int64) error {
	if err := f.Allocate(0, size); err != nil {
		return err
	}
	_, err := f.WriteAt(header, 0)
	return err
}

// SyncTo returns nil when everything below lsn is on stable storage. Concurrent callers share syncs. A failed sync is never retried: the
// log has failed then (the kernel may have dropped the pages).
func (l *Log) SyncTo(lsn history.LSN) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		switch {
		case l.failed != nil:
			return l.failed
		case l.durable >= lsn:
			return nil
		case lsn > l.path.End:
			return fmt.Errorf("sync of the log up to LSN %d, but it ends at %d", lsn, l.path.End)
		case l.syncing:
			l.synced.Wait()
		default:
			l.syncRound()
		}
	}
}

// syncRound syncs everything written so far. l.mu is held on entry and exit, not across the IO.
func (l *Log) syncRound() {
	l.syncing = true
	target := l.path.End
	var todo []*segment
	dir := false
	for _, s := range l.segs {
		if s.dirty {
			s.dirty = false
			s.refs++
			todo = append(todo, s)
			dir = dir || s.unlinked
		}
	}
	l.mu.Unlock()
	err := l.syncFiles(todo, dir)
	for _, s := range todo {
		l.release(s)
	}
	l.mu.Lock()
	l.syncing = false
	if err != nil {
		l.failed = fmt.Errorf("%w: %w", ErrFailed, err)
	} else {
		for _, s := range todo {
			s.unlinked = false
		}
		l.perSync.Store((3*l.perSync.Load() + int64(max(0, target-l.durable))) / 4)
		l.durable = max(l.durable, min(target, l.path.End))
	}
	l.synced.Broadcast()
	l.announce()
}

func (l *Log) syncFiles(todo []*segment, dir bool) error {
	for _, s := range todo {
		if err := s.file.SyncData(); err != nil {
			return fmt.Errorf("sync log segment %s: %w", s.name, err)
		}
	}
	if !dir {
		return nil
	}
	if err := l.cfg.FS.SyncDir(l.cfg.Dir); err != nil {
		return fmt.Errorf("sync log directory: %w", err)
	}
	return nil
}

// DeleteBelow removes the segments that end at or below lsn; the last one always stays, and some files become spares (KeepSpares). It returns
// the bytes of file space freed. Each removal is durable before the next, else a power cut could leave a hole in the log.
func (l *Log) DeleteBelow(lsn history.LSN) (int64, error) {
	l.cutting.Lock()
	defer l.cutting.Unlock()
	freed, err := l.trimSpares()
	for err == nil {
		s := l.firstBelow(lsn)
		if s == nil {
			break
		}
		var gone bool
		if gone, err = l.retire(s); err != nil {
			break
		}
		l.forgetFirst()
		if gone {
			freed += s.space
		}
		l.release(s)
	}
	return freed, err
}

// firstBelow returns the first segment if it ends at or below lsn, kept open until release. One that is not durable yet stays: recovery
// after a power cut needs every segment behind the checkpoint to follow the one before.
func (l *Log) firstBelow(lsn history.LSN) *segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.segs) < 2 || l.segs[1].first > lsn || l.segs[0].dirty {
		return nil
	}
	s := l.segs[0]
	s.refs++
	return s
}

func (l *Log) forgetFirst() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.segs) == 0 {
		return // closed meanwhile
	}
	l.segs[0].dead = true
	l.segs = append([]*segment(nil), l.segs[1:]...)
}

// removeFile removes a segment's file, durably.
func (l *Log) removeFile(s *segment) error {
	err := l.cfg.FS.Remove(l.file(s.name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // an earlier attempt may have failed half way
		return fmt.Errorf("remove log segment: %w", err)
	}
	if err := l.cfg.FS.SyncDir(l.cfg.Dir); err != nil {
		return fmt.Errorf("sync log directory: %w", err)
	}
	return nil
}
