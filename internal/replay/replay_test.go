package replay

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"syscall"
	"testing"

	"mars/internal/block/blocktest"
	"mars/internal/history"
	"mars/internal/translog"
	"mars/internal/vfs/crashfs"
)

const diskSize = 6 << 20

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newLog(t testing.TB, fs *crashfs.FS) *translog.Log {
	t.Helper()
	l, _, err := translog.Open(translog.Config{FS: fs, Dir: "log", SegmentSize: 4 << 20}, translog.Start{}, func(*translog.Record) {})
	must(t, err)
	_, err = l.StartTimeline(history.Timeline{ID: 1, Origin: "a"})
	must(t, err)
	return l
}

// randomEntry returns a record and does the same to image. Large writes are frequent enough to be merged beyond the largest disk write.
func randomEntry(rng *rand.Rand, image []byte) translog.Entry {
	n := 512 * (1 + rng.Int64N(16))
	if rng.IntN(3) == 0 {
		n = 512 * (1 + rng.Int64N(translog.MaxPayload/512))
	}
	off := 512 * rng.Int64N((diskSize-n)/512+1)
	if rng.IntN(2) == 0 {
		off = off / (1 << 20) * (1 << 20) // neighbours
	}
	e := translog.Entry{Off: off, Len: n, Stamp: rng.Int64()}
	switch rng.IntN(6) {
	case 0:
		e.Kind = translog.KindDiscard
		clear(image[off : off+n])
	case 1:
		e.Kind = translog.KindWriteZeroes
		clear(image[off : off+n])
	default:
		e.Kind, e.Payload = translog.KindWrite, bytes.Repeat([]byte{byte(1 + rng.IntN(255))}, int(n))
		e.Sum = translog.Checksum(e.Payload)
		copy(image[off:], e.Payload)
	}
	return e
}

// TestWindows: whatever the windows, the disk gets what applying one record after the other would give, once per block, and nothing else.
func TestWindows(t *testing.T) {
	n := uint64(12)
	if s := os.Getenv("MARS_TEST_SEED"); s != "" {
		n, _ = strconv.ParseUint(s, 10, 64)
		n++
	}
	for seed := range n {
		if err := windows(t, seed); err != nil {
			t.Fatalf("%v\nMARS_TEST_SEED=%d go test -run '^%s$' ./internal/replay", err, seed, t.Name())
		}
	}
}

func windows(t *testing.T, seed uint64) error {
	rng := rand.New(rand.NewPCG(seed, 1))
	l, want, disk := newLog(t, crashfs.New()), make([]byte, diskSize), blocktest.NewDisk(diskSize)
	pos := history.Position{}
	for range 6 {
		var last translog.Entry
		for range rng.IntN(12) {
			last = randomEntry(rng, want)
			if _, err := l.Append([]translog.Entry{last}); err != nil {
				return err
			}
		}
		limit := 1 + rng.Int64N(8<<20)
		for pos.LSN < l.End() {
			w, err := Gather(l, pos, Limit{End: l.End(), Log: limit, Clip: -1})
			if err != nil {
				return err
			}
			if w.End.LSN <= pos.LSN || int64(w.End.LSN-pos.LSN) > max(limit, translog.MaxChunk) {
				return fmt.Errorf("window from %d to %d, limit %d", pos.LSN, w.End.LSN, limit)
			}
			if err := writeOnce(&w, l, disk); err != nil {
				return err
			}
			pos = w.End
		}
		got := make([]byte, diskSize)
		if err := disk.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			return fmt.Errorf("the disk differs (%v)", err)
		}
	}
	return nil
}

// writeOnce checks on the way that no block is written twice, and that writes ascend.
func writeOnce(w *Window, l *translog.Log, disk *blocktest.Disk) error {
	var at int64
	var bad error
	disk.OnOp(func(o blocktest.Op) {
		if o.Off < at || o.N > maxWrite && o.Kind == blocktest.OpWrite {
			bad = fmt.Errorf("%v after %d", o, at)
		}
		at = o.Off + o.N
	})
	defer disk.OnOp(nil)
	return errors.Join(w.Write(l, disk), bad)
}

// TestClip: what lies behind the clip is not touched.
func TestClip(t *testing.T) {
	l, disk := newLog(t, crashfs.New()), blocktest.NewDisk(diskSize)
	rng := rand.New(rand.NewPCG(1, 1))
	want := make([]byte, diskSize)
	for range 20 {
		_, err := l.Append([]translog.Entry{randomEntry(rng, want)})
		must(t, err)
	}
	const clip = 1<<20 + 512
	clear(want[clip:])
	w, err := Gather(l, history.Position{}, Limit{End: l.End(), Log: 1 << 30, Clip: clip})
	must(t, errors.Join(err, w.Write(l, disk)))
	got := make([]byte, diskSize)
	must(t, disk.ReadAt(got, 0))
	if !bytes.Equal(got, want) {
		t.Error("the disk differs")
	}
}

// TestDamageEndsTheWindow: the records before it can be applied, nothing behind.
func TestDamageEndsTheWindow(t *testing.T) {
	for name, harm := range map[string]func(fs *crashfs.FS, file string, off int64) error{
		"rot":      func(fs *crashfs.FS, file string, off int64) error { return fs.Corrupt(file, off, 1) },
		"bad spot": func(fs *crashfs.FS, file string, off int64) error { return fs.FailReads(file, off, 1, syscall.EIO) },
	} {
		t.Run(name, func(t *testing.T) {
			fs := crashfs.New()
			l := newLog(t, fs)
			rng := rand.New(rand.NewPCG(1, 1))
			image := make([]byte, diskSize)
			var at history.LSN
			for i := range 4 {
				if i == 2 {
					l.Rotate()
					at = l.End()
				}
				_, err := l.Append([]translog.Entry{randomEntry(rng, image)})
				must(t, err)
			}
			names, err := fs.ReadDir("log")
			must(t, err)
			must(t, harm(fs, "log/"+names[1], 4096+50))
			w, err := Gather(l, history.Position{}, Limit{End: l.End(), Log: 1 << 30, Clip: -1})
			d := new(translog.DefectError)
			if !errors.As(err, &d) || d.At != at || w.End.LSN != at {
				t.Errorf("window to %d, error %v; want both at %d", w.End.LSN, err, at)
			}
		})
	}
}
