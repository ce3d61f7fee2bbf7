package translog

import (
	"errors"
	"fmt"
	"strings"

	"mars/internal/vfs"
)

// A spare is the file of a deleted segment that waits to become a new one. Its blocks are allocated and initialised, and mostly still in the
// page cache: to overwrite them costs neither metadata of the file system in each sync nor fresh memory. What it holds of its former life is
// never taken for log: no record fits another LSN than its own, and a header that does not fit the file's name counts as damaged.

const sparePrefix = "spare-"

// KeepSpares sets how many deleted segments are kept as spares, 0 at first. Those that are too many go with the next DeleteBelow.
func (l *Log) KeepSpares(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keep = n
}

// Segments returns how many segments are in use.
func (l *Log) Segments() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.segs)
}

// retire takes the file of a segment out of the log, durably: to be removed, or to be a spare when nobody reads it any more.
func (l *Log) retire(s *segment) (freed bool, err error) {
	l.mu.Lock()
	spare := len(l.spares) < l.keep && s.space <= l.cfg.SegmentSize
	l.mu.Unlock()
	if !spare {
		return true, l.removeFile(s)
	}
	name := sparePrefix + strings.TrimPrefix(s.name, "seg-")
	if err := l.cfg.FS.Rename(l.file(s.name), l.file(name)); err != nil {
		return true, l.removeFile(s) // an earlier attempt may have failed half way
	}
	if err := l.cfg.FS.SyncDir(l.cfg.Dir); err != nil {
		return false, fmt.Errorf("sync log directory: %w", err)
	}
	l.mu.Lock()
	s.spare = name
	l.mu.Unlock()
	return false, nil
}

// trimSpares removes spares that are too many.
func (l *Log) trimSpares() (freed int64, err error) {
	for {
		l.mu.Lock()
		n := len(l.spares)
		if n <= l.keep {
			l.mu.Unlock()
			return freed, nil
		}
		name := l.spares[0]
		l.spares = l.spares[1:]
		l.mu.Unlock()
		if err := l.cfg.FS.Remove(l.file(name)); err != nil {
			return freed, fmt.Errorf("remove spare log segment: %w", err)
		}
		freed += l.cfg.SegmentSize
	}
}

// segmentFile returns the file of a new segment: a spare, or a fresh one if the space for it is granted.
func (l *Log) segmentFile(name string) (vfs.File, error) {
	if f := l.reuse(name); f != nil {
		return f, nil
	}
	if l.cfg.Reserve != nil {
		if err := l.cfg.Reserve(l.cfg.SegmentSize); err != nil {
			return nil, fmt.Errorf("open log segment: %w", err)
		}
	}
	f, err := l.cfg.FS.Create(l.file(name))
	if err != nil {
		return nil, fmt.Errorf("create log segment: %w", err)
	}
	return f, nil
}

// reuse makes the newest spare, which is the likeliest to be cached, the file called name. It returns nil if there is none that can be used;
// one that cannot stays behind until the log is opened again.
func (l *Log) reuse(name string) vfs.File {
	l.mu.Lock()
	n := len(l.spares)
	if n == 0 {
		l.mu.Unlock()
		return nil
	}
	spare := l.spares[n-1]
	l.spares = l.spares[:n-1]
	l.mu.Unlock()
	f, err := l.cfg.FS.Open(l.file(spare))
	if err != nil {
		return nil
	}
	if err := l.cfg.FS.Rename(l.file(spare), l.file(name)); err != nil {
		_ = f.Close() // nothing was written
		return nil
	}
	return f
}

// dropSpares removes what an earlier process has left.
func (l *Log) dropSpares(names []string) error {
	var errs []error
	for _, name := range names {
		if strings.HasPrefix(name, sparePrefix) {
			errs = append(errs, l.cfg.FS.Remove(l.file(name)))
		}
	}
	return errors.Join(errs...)
}
