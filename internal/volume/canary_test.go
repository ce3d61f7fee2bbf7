package volume

import (
	"strings"
	"testing"

	"mars/internal/block"
	"mars/internal/vfs"
)

// liar makes one kind of operation claim success without doing anything: canaries for the checkers of the crash tests.
type liar struct{ syncData, sync, syncDir, flush bool }

func (l liar) fs(fs vfs.FS) vfs.FS {
	if l == (liar{}) {
		return fs
	}
	return lyingFS{fs, l}
}

func (l liar) disk(d block.Device) block.Device {
	if !l.flush {
		return d
	}
	return lyingDisk{d}
}

type lyingDisk struct{ block.Device }

func (lyingDisk) Flush() error { return nil }

type lyingFS struct {
	vfs.FS
	lie liar
}

func (l lyingFS) Create(name string) (vfs.File, error) { return l.file(l.FS.Create(name)) }
func (l lyingFS) Open(name string) (vfs.File, error)   { return l.file(l.FS.Open(name)) }

func (l lyingFS) file(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return lyingFile{f, l.lie}, nil
}

func (l lyingFS) SyncDir(dir string) error {
	if l.lie.syncDir && strings.HasSuffix(dir, "log") {
		return nil
	}
	return l.FS.SyncDir(dir)
}

type lyingFile struct {
	vfs.File
	lie liar
}

func (l lyingFile) SyncData() error {
	if l.lie.syncData {
		return nil
	}
	return l.File.SyncData()
}

func (l lyingFile) Sync() error {
	if l.lie.sync {
		return nil
	}
	return l.File.Sync()
}

// TestCanaries: a medium that lies about a durability point must be found out by the crash test, else the test would not notice either when the
// code left that point out.
func TestCanaries(t *testing.T) {
	for name, lie := range map[string]liar{
		"log sync": {syncData: true}, "state sync": {sync: true}, "log directory sync": {syncDir: true}, "disk flush": {flush: true},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(20) {
				for k := 20; k < 400; k += 7 {
					a := newApp(seed)
					a.lie = lie
					a.wire()
					a.stopAt(k)
					a.life(60)
					if a.crashAndRecover(seed, k) != nil {
						return
					}
				}
			}
			t.Error("nobody noticed")
		})
	}
}
