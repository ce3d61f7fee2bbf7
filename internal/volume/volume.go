// Package volume is one replica of one resource: a disk, a log, and the knowledge of which part of the log is on the disk.
//
// On the primary it is the block.Device that the front ends show: writes go to the log and are answered from there, reads find the newest
// version in the log or on the disk, and the disk is written in the background. On a secondary the log grows by what was fetched, and the
// same background work replays it. Both are ApplyStep.
//
// Guarantees (invariants I1, I2, I4, I7): a block of the disk is written only after the log records it stems from are durable here; after
// a crash at any point the disk plus the log give the state after some prefix of the log, which includes everything that was durable;
// the state file says up to where the log must be replayed until the disk alone is consistent again.
//
// The package starts no goroutines. Its owner calls ApplyStep and SyncStep when Work and Waiters say so; a simulator does the same on
// one goroutine. Lock order: applyMu, logMu, mu; none is held across a call of Done.
package volume

import (
	"errors"
	"fmt"
	"path"
	"sync"
	"time"

	"mars/internal/block"
	"mars/internal/extent"
	"mars/internal/history"
	"mars/internal/translog"
	"mars/internal/vfs"
)

// Config of a Volume.
type Config struct {
	FS       vfs.FS
	Dir      string // of this replica: state file and log
	Resource [16]byte
	Disk     block.Device
	// Stamp returns the next Lamport time in ns.
	Stamp func() int64
	// Pause slows a writer down; may be nil. It must return after d at the latest.
	Pause func(d time.Duration)

	// SegmentSize of the log in bytes. 0 = translog.DefaultSegmentSize.
	SegmentSize int64
	// Reserve is asked before the log takes more space, see translog.Config.
	Reserve func(bytes int64) error
	// WritebackLimit is how many bytes of log may be unapplied before writers must wait. 0 = 512 MiB.
	WritebackLimit int64
	// WindowSize is how many bytes of log are applied at a time. 0 = 128 MiB.
	WindowSize int64
	// StallTimeout is how long writers wait for log space before they get block.ErrNoSpace. 0 = 10 s.
	StallTimeout time.Duration
	// WriteThrough: every write is durable before it completes (write-cache = off).
	WriteThrough bool
}

// Errors that callers branch on.
var (
	ErrNotPrimary   = errors.New("this node is not primary")
	ErrInconsistent = errors.New("replica is not consistent")
	ErrNoToken      = errors.New("the right to write is elsewhere")
	ErrBacklog      = errors.New("too much log is unapplied")
)

// Volume is an open replica.
type Volume struct {
	cfg Config
	log *translog.Log

	// applyMu serializes everything that writes to the disk or cuts the log: ApplyStep, Copy, EndCopy, Heal, DropTail.
	applyMu sync.Mutex
	// logMu serializes everything that appends to the log or cuts it, except the writers of a tenure, which the queue serializes: they are
	// there only between Activate and the end of stopWriting, which both hold it.
	logMu sync.Mutex

	mu        sync.Mutex
	st        state // as it is; st.Applied may be ahead of the file
	saved     history.LSN
	size      int64
	closed    bool
	writable  bool               // writers are let in
	tenure    bool               // there may be writers: from Activate until the last one that was let in has ended
	opened    history.TimelineID // the timeline that Activate opened last
	cur       *extent.Map        // what was written since the freeze
	frozen    *extent.Map        // what is being applied
	frozenEnd history.LSN
	indexed   history.Position // cur and frozen hold everything from st.Applied up to here
	applyErr  error            // why ApplyStep fails
	defect    *translog.DefectError
	endStamp  int64      // Lamport time of the last record in the log
	progress  *sync.Cond // signalled when st.Applied moves, an error appears, or the role ends

	queue   queue
	waiters waiters
}

// Kick channels: see Work and Waiters.
type kick chan struct{}

func (k kick) signal() {
	select {
	case k <- struct{}{}:
	default:
	}
}

func newVolume(cfg Config, st state) *Volume {
	if cfg.WritebackLimit == 0 {
		cfg.WritebackLimit = 512 << 20
	}
	if cfg.SegmentSize == 0 {
		cfg.SegmentSize = translog.DefaultSegmentSize
	}
	if cfg.WindowSize == 0 {
		cfg.WindowSize = 128 << 20
	}
	if cfg.StallTimeout == 0 {
		cfg.StallTimeout = 10 * time.Second
	}
	v := &Volume{cfg: cfg, st: st, saved: st.Applied.End, size: st.Size, cur: extent.New(), indexed: st.Applied.Position(), endStamp: st.AppliedStamp}
	v.progress = sync.NewCond(&v.mu)
	v.queue.shut = errShut
	v.queue.work = make(kick, 1)
	v.queue.idle = sync.NewCond(&v.queue.mu)
	v.waiters.kick = make(kick, 1)
	v.waiters.soon = make(kick, 1)
	return v
}

// Create makes the first replica of a resource: the present content of the disk is its first content. The log begins at 0.
func Create(cfg Config, size int64) (*Volume, error) {
	// What is on the disk now is what the history begins with, and the log will not tell it: it must not change with a power cut.
	if err := cfg.Disk.Flush(); err != nil {
		return nil, fmt.Errorf("flush the disk: %w", err)
	}
	return create(cfg, state{Version: stateVersion, Size: size})
}

// CreateJoining makes a replica that is to be filled by a sync from a source whose history is start. The log begins there.
func CreateJoining(cfg Config, start history.Path, size int64) (*Volume, error) {
	return create(cfg, state{Version: stateVersion, Size: size, Applied: start, Dirty: start.Position(), Sync: &SyncState{}})
}

func create(cfg Config, st state) (*Volume, error) {
	if cfg.Disk.Size() < st.Size {
		return nil, fmt.Errorf("disk of %d bytes is smaller than the resource of %d bytes: %w", cfg.Disk.Size(), st.Size, block.ErrNoSpace)
	}
	if err := wipeLog(cfg); err != nil {
		return nil, err
	}
	if err := st.save(cfg); err != nil {
		return nil, err
	}
	return Open(cfg)
}

// wipeLog removes segments of a former membership. The state file goes first: without it the log means nothing.
func wipeLog(cfg Config) error {
	dir := logDir(cfg)
	if err := cfg.FS.MkdirAll(dir); err != nil {
		return fmt.Errorf("log directory: %w", err)
	}
	if err := removeState(cfg); err != nil {
		return err
	}
	names, err := cfg.FS.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("log directory: %w", err)
	}
	for _, n := range names {
		if err := cfg.FS.Remove(path.Join(dir, n)); err != nil {
			return fmt.Errorf("remove old log: %w", err)
		}
	}
	return cfg.FS.SyncDir(dir)
}

// Wipe removes the replica's state and log (leave-resource); the disk keeps its content.
func Wipe(cfg Config) error { return wipeLog(cfg) }

func logDir(cfg Config) string { return path.Join(cfg.Dir, "log") }

// Open opens an existing replica. A defective log is no error here: see Status.
func Open(cfg Config) (*Volume, error) {
	st, err := loadState(cfg)
	if err != nil {
		return nil, err
	}
	// The last process may have been killed between the renaming of the file and the sync of its directory. What is read here must be durable
	// before anything is built on it: the log below the checkpoint may be deleted.
	if err := cfg.FS.SyncDir(cfg.Dir); err != nil {
		return nil, fmt.Errorf("sync replica directory: %w", err)
	}
	v := newVolume(cfg, st)
	v.log, err = openLog(cfg, &st, v.sawRecord)
	if errors.As(err, &v.defect) {
		err = nil
	}
	if err != nil {
		return nil, err
	}
	if cfg.Disk.Size() < st.Size {
		return nil, errors.Join(fmt.Errorf("disk of %d bytes is smaller than the volume of %d bytes: %w", cfg.Disk.Size(), st.Size, block.ErrNoSpace), v.log.Close())
	}
	return v, nil
}

func openLog(cfg Config, st *state, seen func(*translog.Record)) (*translog.Log, error) {
	lc := translog.Config{FS: cfg.FS, Dir: logDir(cfg), Resource: cfg.Resource, SegmentSize: cfg.SegmentSize, Reserve: cfg.Reserve}
	l, _, err := translog.Open(lc, translog.Start{Path: st.Applied, Durable: st.Durable, Own: st.Tenure}, seen)
	return l, err
}

// History returns where the log of a replica ends that nobody has open, and how far it was durable once, which is more if the log is defective.
func History(cfg Config) (history.Path, history.LSN, error) {
	st, err := loadState(cfg)
	if err != nil {
		return history.Path{}, 0, err
	}
	l, err := openLog(cfg, &st, func(*translog.Record) {})
	if l == nil {
		return history.Path{}, 0, err
	}
	return l.Path(), max(l.Durable(), st.Durable), l.Close()
}

func (v *Volume) sawRecord(r *translog.Record) {
	v.endStamp = r.Stamp
	if r.Kind == translog.KindResize {
		v.size = r.Len
	}
}

// Close ends the replica's use: writers and waiters fail with block.ErrClosed. What was applied is checkpointed if that is possible.
func (v *Volume) Close() error {
	v.mu.Lock()
	if v.closed {
		v.mu.Unlock()
		return nil
	}
	v.closed = true
	v.mu.Unlock()
	v.stopWriting(errClosed)
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	v.logMu.Lock()
	defer v.logMu.Unlock()
	err := v.checkpoint()
	if err == nil && v.knowsMoreDurable() {
		err = v.saveState() // else later damage there would look like a tail that was never durable
	}
	err = errors.Join(err, v.log.Close())
	v.waiters.fail(errClosed)
	return err
}

// knowsMoreDurable reports whether more of the log is durable than the state file says.
func (v *Volume) knowsMoreDurable() bool {
	durable, failed := v.log.Durable(), v.log.Err()
	v.mu.Lock()
	defer v.mu.Unlock()
	return failed == nil && durable > v.st.Durable
}

var errClosed = fmt.Errorf("volume: %w", block.ErrClosed)

// checkOpen returns nil while the volume is not closed. Whoever asks holds applyMu or logMu, so that Close waits for him.
func (v *Volume) checkOpen() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return errClosed
	}
	return nil
}

// Log returns the log, for reading and shipping.
func (v *Volume) Log() *translog.Log { return v.log }

// Status is a snapshot of the replica.
type Status struct {
	Path         history.Path // up to the end of the log
	Durable      history.LSN
	Applied      history.Position
	AppliedStamp int64
	EndStamp     int64
	Size         int64
	Writable     bool
	Consistent   bool
	Sync         *SyncState // nil: no sync needed
	Defect       *translog.DefectError
	ApplyErr     error
	LogErr       error
	KnownDurable history.LSN // what must have been durable here, also if the log is defective now
	LogUsed      int64
	LogFirst     history.LSN
	LogFull      bool
}

// Status returns what is.
func (v *Volume) Status() Status {
	v.mu.Lock()
	st := v.st.clone()
	s := Status{Applied: st.Applied.Position(), AppliedStamp: st.AppliedStamp, EndStamp: v.endStamp,
		Size: v.size, Writable: v.writable, Defect: v.defect, ApplyErr: v.applyErr, Sync: st.Sync}
	v.mu.Unlock()
	// After the state, since that may only speak of what the log has.
	s.Path, s.Durable, s.LogErr, s.LogUsed, s.LogFirst = v.log.Path(), v.log.Durable(), v.log.Err(), v.log.SpaceUsed(), v.log.First()
	s.LogFull = v.queue.isFull()
	s.KnownDurable = max(s.Durable, st.Durable)
	s.Consistent = st.Sync == nil && st.recoverable(&s.Path) && (s.Defect == nil || s.Defect.At >= st.Dirty.LSN)
	return s
}

// Unapplied returns how many bytes of log are not on the disk yet.
func (v *Volume) Unapplied() int64 {
	end := v.log.End()
	v.mu.Lock()
	defer v.mu.Unlock()
	return int64(end - v.st.Applied.End)
}

// Checkpointed returns the LSN below which the log is not needed for this replica's own recovery.
func (v *Volume) Checkpointed() history.LSN {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.saved
}
