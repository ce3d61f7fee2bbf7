package translog

import (
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"mars/internal/history"
	"mars/internal/vfs/crashfs"
)

var update = flag.Bool("update", false, "rewrite the golden files; a change of the format on disk must be explained")

// TestGolden: the bytes on disk are what they have always been. Other versions and other nodes read them.
func TestGolden(t *testing.T) {
	l := openNew(t, testConfig(crashfs.New()))
	_, err := l.Append([]Entry{
		{Kind: KindWrite, Off: 4096, Len: 5, Stamp: 10, Payload: []byte("hello"), Sum: Checksum([]byte("hello"))},
		{Kind: KindDiscard, Off: 8192, Len: 512, Stamp: 11},
		{Kind: KindWriteZeroes, Off: 512, Len: 1 << 40, Stamp: 12},
		{Kind: KindResize, Off: 1 << 40, Len: 1 << 41, Stamp: 13},
	})
	must(t, err)
	must(t, l.EndTimeline("b", 14))
	_, err = l.StartTimeline(history.Timeline{ID: 0xabcdef, Origin: "b", Stamp: 15, Forced: true})
	must(t, err)
	var out strings.Builder
	for _, s := range l.segs {
		b := segmentFiles(t, l)[s.name]
		fmt.Fprintf(&out, "%s\nheader\n%s", s.name, hex.Dump(b[:64]))
		for at := segmentHeaderSize; at < len(b); {
			h, err := decode(b[at:], s.first+history.LSN(at-segmentHeaderSize))
			must(t, err)
			fmt.Fprintf(&out, "kind %d at LSN %d\n%s", h.Kind, h.LSN, hex.Dump(b[at:at+int(h.Size())]))
			at += int(h.Size())
		}
	}
	golden(t, "testdata/log.golden", out.String())
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		must(t, os.WriteFile(file, []byte(got), 0o644))
	}
	want, err := os.ReadFile(file)
	must(t, err)
	if got != string(want) {
		t.Errorf("%s differs:\n%s", file, got)
	}
}

// TestOperationOrder: the order of the operations is what makes crashes harmless.
func TestOperationOrder(t *testing.T) {
	fs := crashfs.New()
	l := openNew(t, testConfig(fs))
	appendOne(t, l, 500, 1)
	must(t, l.SyncTo(l.End()))
	at := l.EndPosition()
	var out strings.Builder
	trace := func(title string, f func()) {
		fs.StartTrace()
		f()
		fmt.Fprintf(&out, "%s\n", title)
		for _, op := range fs.Trace() {
			fmt.Fprintf(&out, "  %s\n", op)
		}
	}
	trace("append into the open segment", func() { appendOne(t, l, 500, 2) })
	trace("sync", func() { must(t, l.SyncTo(l.End())) })
	trace("sync with nothing to do", func() { must(t, l.SyncTo(l.End())) })
	l.Rotate()
	trace("append into a new segment", func() { appendOne(t, l, 500, 3) })
	trace("sync with a new segment", func() { must(t, l.SyncTo(l.End())) })
	l.Rotate()
	appendOne(t, l, 500, 4)
	trace("cut off two segments and a part", func() { must(t, l.TruncateTo(at)) })
	l.Rotate()
	appendOne(t, l, 500, 5)
	l.Rotate()
	appendOne(t, l, 500, 6)
	must(t, l.SyncTo(l.End()))
	trace("delete two segments", func() {
		_, err := l.DeleteBelow(l.End())
		must(t, err)
	})
	golden(t, "testdata/order.golden", out.String())
}
