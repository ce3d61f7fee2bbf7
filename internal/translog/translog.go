// Package translog is the transaction log of one resource on one node: an ordered sequence of records in segment files, byte-identical
// from record to record on every member.
//
// Guarantees: a record is found again only if it is intact and follows the records before it (hash chain), so a stale record in reused
// space is never taken for a live one. SyncTo(lsn) returns nil only when every byte below lsn is on stable storage. Opening tells a torn
// tail (cut off) from damage (reported with its position, never skipped). A failed sync is final: the log refuses everything afterwards.
// Nothing is appended but to an open timeline.
//
// It does not know what a volume, a cluster or a role is, owns no goroutine and no clock. One writer at a time (Append, AppendRaw,
// StartTimeline, EndTimeline, TruncateTo); readers, SyncTo and DeleteBelow may run concurrently with it and with each other.
//
// Segment file `seg-FIRSTLSN-TIMELINE` (hexadecimal), all integers little-endian:
//
//	0     8   magic "MARSSEG1"
//	8     4   CRC32C over bytes [12, 56)
//	12    4   zero
//	16    16  resource id
//	32    8   LSN of the first record
//	40    8   timeline at that LSN
//	48    16  chain value at that LSN
//	64        zero up to 4096; records follow, each at file offset 4096 + its LSN - first LSN
//
// What lies behind the last record of a segment means nothing: zeroes, or what the file held when it was another segment. Files `spare-...` are
// such files that wait to be used again; they too mean nothing.
//
// Record: a header, the payload, zeroes up to a multiple of 32 bytes:
//
//	0     4   magic 0x4c52414d
//	4     1   version 1
//	5     1   kind
//	6     1   flags: 1 = first record of a segment
//	7     1   payload digest kind << 4 | compression kind (1 = CRC32C; 0 = none)
//	8     8   LSN
//	16    8   timeline
//	24    8   Lamport time, ns since 1970
//	32    8   volume offset in bytes
//	40    8   volume length in bytes
//	48    4   payload length in bytes
//	52    4   CRC32C over the header with this field zero
//	56    8   LSN up to which the origin's log was durable when this was written
//	64    16  payload digest, zero padded
//	80    16  chain: SHA-256(chain before, header bytes [0,80) with the checksum zero), first 16 bytes
package translog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"path"
	"sync"
	"sync/atomic"

	"mars/internal/history"
	"mars/internal/vfs"
)

const (
	segmentHeaderSize = 4096
	segmentMagic      = "MARSSEG1"
	// DefaultSegmentSize in bytes.
	DefaultSegmentSize = 64 << 20
)

// Errors that callers branch on.
var (
	// ErrDefective: damage inside what was durable. Nothing behind it is usable from this copy.
	ErrDefective = errors.New("log is defective")
	// ErrGone: the position is older than the oldest segment kept.
	ErrGone = errors.New("log position is no longer kept")
	// ErrFailed: a sync failed; what the log file holds is unknown until it is opened again.
	ErrFailed = errors.New("log has failed")
	// ErrDiverged: a record or position does not belong to this log's history.
	ErrDiverged = errors.New("histories diverge")
	// ErrNoTimeline: the log is not on an open timeline; nothing but a new one can be appended.
	ErrNoTimeline = errors.New("no timeline is open")
)

// DefectError reports damage with its position.
type DefectError struct {
	At  history.LSN
	Why error
}

func (e *DefectError) Error() string {
	return fmt.Sprintf("log is defective at LSN %d: %v", e.At, e.Why)
}

// Is makes errors.Is(err, ErrDefective) true.
func (e *DefectError) Is(target error) bool { return target == ErrDefective }
func (e *DefectError) Unwrap() error        { return e.Why }

// Config of a Log.
type Config struct {
	FS          vfs.FS
	Dir         string
	Resource    [16]byte
	SegmentSize int64 // of file space; a segment holds less records by one block. 0 = DefaultSegmentSize
	// Reserve is asked before a segment takes that many bytes of file space; its error (wrapping syscall.ENOSPC) refuses. May be nil.
	Reserve func(bytes int64) error
}

// Log is an open log.
type Log struct {
	cfg Config

	// cutting is held while segments are removed, across the IO: one removal at a time, in order. It is taken before mu.
	cutting sync.Mutex

	// mu guards the fields below. It is never held across IO.
	mu      sync.Mutex
	segs    []*segment
	path    history.Path
	durable history.LSN
	syncing bool
	synced  *sync.Cond // signalled when syncing becomes false
	failed  error
	changed chan struct{} // closed when durable grows or the log fails
	room    int64         // file offset in the last segment up to which space is allocated
	spares  []string      // files that can become segments, the newest last
	keep    int           // how many spares there may be

	hdrs    []byte // scratch of the writer
	iov     [][]byte
	sealing atomic.Bool  // the next record opens a new segment
	perSync atomic.Int64 // recent average of bytes per sync
}

type segment struct {
	name     string
	first    history.LSN
	file     vfs.File
	space    int64  // file space it takes; known when it is no longer the last one
	refs     int    // readers; the file is closed when it is dead and nobody reads
	dead     bool   // removed from the log
	spare    string // the name its file goes by then; empty if it is removed
	dirty    bool   // has bytes that no SyncData covered
	unlinked bool   // its directory entry may not be durable
	written  int64  // file offset up to which something was written since it was opened; the writer's
}

func (s *segment) offset(lsn history.LSN) int64 { return segmentHeaderSize + int64(lsn-s.first) }

func segmentName(first history.LSN, t history.TimelineID) string {
	return fmt.Sprintf("seg-%016x-%016x", uint64(first), uint64(t))
}

// parseSegmentName returns the first LSN that the name of a segment file says.
func parseSegmentName(name string) (history.LSN, bool) {
	var first, timeline uint64
	if n, err := fmt.Sscanf(name, "seg-%16x-%16x", &first, &timeline); n != 2 || err != nil {
		return 0, false
	}
	lsn := history.LSN(first)
	return lsn, lsn >= 0 && name == segmentName(lsn, history.TimelineID(timeline))
}

func encodeSegmentHeader(resource [16]byte, p history.Position) []byte {
	b := make([]byte, segmentHeaderSize)
	copy(b, segmentMagic)
	copy(b[16:], resource[:])
	binary.LittleEndian.PutUint64(b[32:], uint64(p.LSN))
	binary.LittleEndian.PutUint64(b[40:], uint64(p.Timeline))
	copy(b[48:], p.Digest[:])
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b[12:64], castagnoli))
	return b
}

func decodeSegmentHeader(b []byte, resource [16]byte) (history.Position, error) {
	if len(b) < 64 || string(b[:8]) != segmentMagic {
		return history.Position{}, fmt.Errorf("%w: not a log segment", errNoRecord)
	}
	if binary.LittleEndian.Uint32(b[8:]) != crc32.Checksum(b[12:64], castagnoli) {
		return history.Position{}, fmt.Errorf("%w: segment header checksum", errDamaged)
	}
	if string(b[16:32]) != string(resource[:]) {
		return history.Position{}, fmt.Errorf("segment belongs to resource %x, not to %x", b[16:32], resource)
	}
	p := history.Position{
		LSN:      history.LSN(binary.LittleEndian.Uint64(b[32:])),
		Timeline: history.TimelineID(binary.LittleEndian.Uint64(b[40:])),
	}
	copy(p.Digest[:], b[48:64])
	return p, nil
}

func newLog(cfg Config, start history.Path) *Log {
	if cfg.SegmentSize == 0 {
		cfg.SegmentSize = DefaultSegmentSize
	}
	l := &Log{cfg: cfg, path: start.Clone(), durable: start.End, changed: make(chan struct{})}
	l.synced = sync.NewCond(&l.mu)
	return l
}

// Path returns the history up to the end of the log.
func (l *Log) Path() history.Path {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.path.Clone()
}

// End returns the LSN behind the last record written.
func (l *Log) End() history.LSN {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.path.End
}

// EndPosition returns the end with its timeline and digest.
func (l *Log) EndPosition() history.Position {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.path.Position()
}

// Successor returns the node that the end record of the last timeline names; empty while that timeline is open.
func (l *Log) Successor() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.path.Successor
}

// Durable returns the LSN below which everything is on stable storage.
func (l *Log) Durable() history.LSN {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.durable
}

// Changed returns a channel that is closed when Durable grows next or the log fails.
func (l *Log) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// First returns the oldest LSN still kept; it equals End for a log without records.
func (l *Log) First() history.LSN {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.segs) == 0 {
		return l.path.End
	}
	return l.segs[0].first
}

// Err returns why the log has failed, or nil.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// SpaceUsed returns the bytes of file space that segments and spares take.
func (l *Log) SpaceUsed() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := int64(len(l.spares)) * l.cfg.SegmentSize
	for i, s := range l.segs {
		if i+1 < len(l.segs) {
			n += s.space
		} else {
			n += max(l.room, s.offset(l.path.End))
		}
	}
	return n
}

// SpaceForSegment returns the file space that opening another segment takes.
func (l *Log) SpaceForSegment() int64 { return l.cfg.SegmentSize }

// Close closes the files. It does not sync.
func (l *Log) Close() error {
	l.mu.Lock()
	segs := l.segs
	l.segs = nil
	if l.failed == nil {
		l.failed = fmt.Errorf("%w: closed", ErrFailed)
	}
	l.announce()
	var idle []*segment
	for _, s := range segs {
		s.dead = true
		if s.refs == 0 {
			idle = append(idle, s)
		}
	}
	l.mu.Unlock()
	var errs []error
	for _, s := range idle {
		errs = append(errs, s.file.Close())
	}
	return errors.Join(errs...)
}

// announce wakes whoever waits on Changed. l.mu is held.
func (l *Log) announce() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// acquire returns the segment that holds lsn, kept open until release.
func (l *Log) acquire(lsn history.LSN) (s *segment, end history.LSN, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed != nil {
		return nil, 0, l.failed
	}
	for i := len(l.segs) - 1; i >= 0; i-- {
		if s := l.segs[i]; lsn >= s.first {
			end := l.path.End
			if i+1 < len(l.segs) {
				end = l.segs[i+1].first
			}
			if lsn >= end {
				break
			}
			s.refs++
			return s, end, nil
		}
	}
	if len(l.segs) > 0 && lsn >= l.path.End {
		return nil, 0, fmt.Errorf("LSN %d is beyond the end of the log at %d", lsn, l.path.End)
	}
	return nil, 0, fmt.Errorf("LSN %d: %w", lsn, ErrGone)
}

func (l *Log) release(s *segment) {
	l.mu.Lock()
	s.refs--
	last := s.dead && s.refs == 0
	l.mu.Unlock()
	if !last {
		return
	}
	s.file.Close() // nothing was written through a dead segment: no error matters
	if s.spare != "" {
		l.mu.Lock()
		l.spares = append(l.spares, s.spare)
		l.mu.Unlock()
	}
}

func (l *Log) file(name string) string { return path.Join(l.cfg.Dir, name) }
