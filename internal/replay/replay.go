// Package replay applies a window of the log to a disk: writeback on a primary, replay on a secondary and crash recovery are this same
// thing. Of every block only the last version in the window is written, sorted by address, neighbours merged.
//
// Records are absolute images, so a window can be applied again from its start after a crash in the middle. A record that fails
// verification is never applied (invariant I7): the whole window is verified before the first byte is written. The package keeps no
// state and decides nothing; what a window is and when it may run is the volume's business.
package replay

import (
	"fmt"
	"sync"

	"mars/internal/block"
	"mars/internal/extent"
	"mars/internal/history"
	"mars/internal/translog"
)

// Window is a verified piece of the log, reduced to its last versions.
type Window struct {
	End   history.Position
	Stamp int64 // Lamport time of its last record; 0 if it is empty
	Size  int64 // size of the volume at the end; 0 if the window does not change it
	// LastData is the end of the last record that changes the volume; 0 if there is none.
	LastData history.LSN
	ext      *extent.Map
}

// Limit bounds a window.
type Limit struct {
	End  history.LSN // not beyond this record boundary
	Log  int64       // bytes of log, at least one record
	Clip int64       // changes at or behind this volume offset are left out; -1 = none
}

// Gather reads and verifies the log from start on. A *translog.DefectError comes with the intact window before it, which may be empty.
func Gather(log *translog.Log, start history.Position, lim Limit) (Window, error) {
	w := Window{End: start, ext: extent.New()}
	stop := start.LSN + history.LSN(lim.Log)
	pos, err := log.Scan(start, lim.End, func(r *translog.Record) bool {
		if r.End() > stop && r.LSN > start.LSN {
			return false
		}
		w.add(r, lim.Clip)
		return true
	})
	w.End = pos
	return w, err
}

func (w *Window) add(r *translog.Record, clip int64) {
	w.Stamp = r.Stamp
	if r.Modifies() {
		w.LastData = r.End()
	}
	if r.Kind == translog.KindResize {
		w.Size = r.Len
	}
	e, ok := Extent(&r.Header, r.Data)
	if !ok {
		return
	}
	if clip >= 0 {
		e.Len = min(e.Len, clip-e.Off)
	}
	w.ext.Insert(e)
}

// Extent returns the range that a record changes; false if it changes none.
func Extent(h *translog.Header, data history.LSN) (extent.Extent, bool) {
	e := extent.Extent{Off: h.Off, Len: h.Len}
	switch h.Kind {
	case translog.KindWrite:
		e.Src.Data = data
	case translog.KindDiscard:
		e.Src.Zero = true
	case translog.KindWriteZeroes:
		e.Src.Zero, e.Src.Keep = true, true
	case translog.KindResize:
		e.Off, e.Len = h.Off, h.Len-h.Off
		e.Src.Zero = true
	default:
		return e, false
	}
	return e, e.Len > 0
}

const (
	maxWrite      = 1 << 20 // the largest single write to the disk in bytes
	writebackStep = 8 << 20 // bytes after which write-back begins
)

// Write applies the window to disk. It does not flush.
func (w *Window) Write(log *translog.Log, disk block.Device) error {
	buf := buffers.Get().(*[maxWrite]byte)
	defer buffers.Put(buf)
	wr := writer{log: log, disk: disk, buf: buf[:]}
	var err error
	w.ext.Each(func(e extent.Extent) bool {
		err = wr.put(e)
		return err == nil
	})
	if err != nil {
		return err
	}
	return wr.flushRun()
}

// buffers of windows that are being written: there are as many as volumes that write at the same time.
var buffers = sync.Pool{New: func() any { return new([maxWrite]byte) }}

// writer merges neighbouring extents into one disk write.
type writer struct {
	log  *translog.Log
	disk block.Device
	buf  []byte
	off  int64 // of buf
	n    int   // bytes of buf in use

	// The disk is told now and then to begin with what it has got, so that the flush at the end has less to wait for.
	begun   int64 // offset up to which it was told
	written int64 // bytes since
}

func (wr *writer) put(e extent.Extent) error {
	if e.Src.Zero {
		return wr.zero(e)
	}
	for e.Len > 0 {
		if wr.n > 0 && (wr.off+int64(wr.n) != e.Off || wr.n == maxWrite) {
			if err := wr.flushRun(); err != nil {
				return err
			}
		}
		n, err := wr.load(e)
		if err != nil {
			return err
		}
		e.Off, e.Len = e.Off+n, e.Len-n
		e.Src.Data += history.LSN(n)
	}
	return nil
}

// load appends as much of e as the buffer takes.
func (wr *writer) load(e extent.Extent) (int64, error) {
	if wr.n == 0 {
		wr.off = e.Off
	}
	n := min(e.Len, int64(maxWrite-wr.n))
	if err := wr.log.ReadData(wr.buf[wr.n:wr.n+int(n)], e.Src.Data); err != nil {
		return 0, err
	}
	wr.n += int(n)
	return n, nil
}

func (wr *writer) flushRun() error {
	if wr.n == 0 {
		return nil
	}
	err := wr.disk.WriteAt(wr.buf[:wr.n], wr.off, 0)
	if err != nil {
		return fmt.Errorf("write disk at %d: %w", wr.off, err)
	}
	wr.written += int64(wr.n)
	if wr.written >= writebackStep {
		end := wr.off + int64(wr.n)
		block.StartWriteback(wr.disk, wr.begun, end-wr.begun)
		wr.begun, wr.written = end, 0
	}
	wr.n = 0
	return nil
}

func (wr *writer) zero(e extent.Extent) error {
	if err := wr.flushRun(); err != nil {
		return err
	}
	if e.Src.Keep {
		if err := wr.disk.WriteZeroes(e.Off, e.Len, block.NoHole); err != nil {
			return fmt.Errorf("write zeroes to disk at %d: %w", e.Off, err)
		}
		return nil
	}
	if err := wr.disk.Discard(e.Off, e.Len, 0); err != nil {
		return fmt.Errorf("discard on disk at %d: %w", e.Off, err)
	}
	return nil
}
