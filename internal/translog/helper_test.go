package translog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"mars/internal/history"
	"mars/internal/vfs/crashfs"
)

const ownTimeline = 7

func testConfig(fs *crashfs.FS) Config {
	return Config{FS: fs, Dir: "log", Resource: [16]byte{1, 2, 3}, SegmentSize: 8 << 10}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// seedsOf returns the seeds to run: MARS_TEST_SEED alone, or n from 0 on, MARS_TEST_MORE times as many.
func seedsOf(t *testing.T, n uint64) []uint64 {
	t.Helper()
	if s := os.Getenv("MARS_TEST_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		must(t, err)
		return []uint64{seed}
	}
	if more, err := strconv.ParseUint(os.Getenv("MARS_TEST_MORE"), 10, 64); err == nil {
		n *= more
	}
	var list []uint64
	for seed := range n {
		list = append(list, seed)
	}
	return list
}

func rerun(t *testing.T, seed uint64) string {
	return fmt.Sprintf("MARS_TEST_SEED=%d go test -run '^%s$' ./internal/translog", seed, t.Name())
}

// openNew opens an empty log and starts a timeline.
func openNew(t testing.TB, cfg Config) *Log {
	t.Helper()
	l, _, err := Open(cfg, Start{}, func(*Record) {})
	must(t, err)
	_, err = l.StartTimeline(history.Timeline{ID: ownTimeline, Origin: "a", Stamp: 1})
	must(t, err)
	return l
}

func write(off int64, payload []byte) Entry {
	return Entry{Kind: KindWrite, Off: off, Len: int64(len(payload)), Stamp: 2, Payload: payload, Sum: Checksum(payload)}
}

func pattern(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }

// appendOne appends a write of n bytes b and returns its position and end.
func appendOne(t testing.TB, l *Log, n int, b byte) (from history.Position, to history.LSN) {
	t.Helper()
	from = l.EndPosition()
	_, err := l.Append([]Entry{write(0, pattern(n, b))})
	must(t, err)
	return from, l.End()
}

// randomEntries returns a batch.
func randomEntries(rng *rand.Rand) []Entry {
	list := make([]Entry, 1+rng.IntN(5))
	for i := range list {
		switch rng.IntN(6) {
		case 0:
			list[i] = Entry{Kind: KindDiscard, Off: 512 * rng.Int64N(9), Len: 512 * rng.Int64N(99)}
		case 1:
			list[i] = Entry{Kind: KindWriteZeroes, Off: 512 * rng.Int64N(9), Len: 512 * rng.Int64N(99)}
		case 2:
			list[i] = Entry{Kind: KindResize, Off: 512, Len: 1024}
		default:
			list[i] = write(512*rng.Int64N(9), pattern(rng.IntN(3000), byte(rng.IntN(256))))
		}
		list[i].Stamp = rng.Int64()
	}
	return list
}

// seen is what a test remembers of a record.
type seen struct {
	h       Header
	payload string
	pos     history.Position // before it
}

// collect scans the whole log from start.
func collect(l *Log, start history.Position) ([]seen, error) {
	var list []seen
	pos := start
	_, err := l.Scan(start, l.End(), func(r *Record) bool {
		list = append(list, seen{r.Header, string(r.Payload), pos})
		pos = history.Position{Timeline: r.Timeline, LSN: r.End(), Digest: r.Chain}
		return true
	})
	return list, err
}

// segmentFiles returns the contents of all segment files up to the end of their records.
func segmentFiles(t testing.TB, l *Log) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for i, s := range l.segs {
		end := l.path.End
		if i+1 < len(l.segs) {
			end = l.segs[i+1].first
		}
		b := make([]byte, s.offset(end))
		_, err := s.file.ReadAt(b, 0)
		must(t, err)
		files[s.name] = b
	}
	return files
}

func sameSeen(a, b []seen) error {
	if len(a) != len(b) {
		return fmt.Errorf("%d records, want %d", len(a), len(b))
	}
	for i := range a {
		if a[i] != b[i] {
			return fmt.Errorf("record %d: %+v, want %+v", i, a[i].h, b[i].h)
		}
	}
	return nil
}

// sumHeader makes the checksum of a changed header right.
func sumHeader(b []byte) {
	clear(b[52:56])
	binary.LittleEndian.PutUint32(b[52:], crc32.Checksum(b[:HeaderSize], castagnoli))
}
