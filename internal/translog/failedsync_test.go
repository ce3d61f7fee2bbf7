package translog

import (
	"syscall"
	"testing"

	"mars/internal/history"
	"mars/internal/vfs/crashfs"
)

// A process dies of a failed sync. What could not be written is still in the page cache and counts as clean there; the next process must not
// take it for durable (found by package sim, seed 1606).
func TestFailedSyncIsNotBelievedByTheNextProcess(t *testing.T) {
	t.Parallel()
	fs := crashfs.New()
	cfg := Config{FS: fs, Dir: "log", SegmentSize: 64 << 10}
	none := func(*Record) {}
	l, _, err := Open(cfg, Start{}, none)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.StartTimeline(history.Timeline{ID: 1, Origin: "a"}); err != nil {
		t.Fatal(err)
	}
	known := l.End()
	p := make([]byte, 8<<10)
	if _, err := l.Append([]Entry{{Kind: KindWrite, Len: int64(len(p)), Payload: p, Sum: Checksum(p)}}); err != nil {
		t.Fatal(err)
	}
	fs.Inject(crashfs.Fault{Match: func(o crashfs.Op) bool { return o.Kind == crashfs.OpSyncData }, Err: syscall.EIO, Drop: true})
	if err := l.SyncTo(l.End()); err == nil {
		t.Fatal("the sync has not failed")
	}
	cfg.FS = fs.Kill()
	again, _, err := Open(cfg, Start{Durable: known}, none)
	if err != nil {
		t.Fatal(err)
	}
	promised := again.Durable()
	cfg.FS = cfg.FS.(*crashfs.FS).CrashLosingAll()
	last, _, err := Open(cfg, Start{Durable: known}, none)
	if err != nil {
		t.Fatal(err)
	}
	if last.End() < promised {
		t.Errorf("the log was durable up to %d after the restart, and ends at %d after a power cut", promised, last.End())
	}
}
