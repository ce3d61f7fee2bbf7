package translog

import (
	"testing"

	"mars/internal/history"
	"mars/internal/vfs/crashfs"
)

// sample is a chunk of real records.
func sample(t testing.TB) []byte {
	l := openNew(t, testConfig(crashfs.New()))
	appendOne(t, l, 70, 1)
	must(t, l.EndTimeline("b", 3))
	b := segmentFiles(t, l)[l.segs[0].name]
	return b[segmentHeaderSize:]
}

func FuzzHeader(f *testing.F) {
	f.Add(sample(f), int64(0))
	f.Fuzz(func(t *testing.T, b []byte, lsn int64) {
		if len(b) >= HeaderSize {
			sumHeader(b) // else the checksum hides everything behind it
		}
		h, err := decode(b, history.LSN(lsn))
		if err != nil {
			return
		}
		out := make([]byte, HeaderSize)
		h.encode(out, history.Digest{})
		h.Chain = history.Digest(b[80:96])
		g, err := decode(append(out[:80:80], b[80:96]...), history.LSN(lsn))
		if err == nil && g != h {
			t.Errorf("decoded %+v, encoded and decoded %+v", h, g)
		}
		if h.Size() < HeaderSize || h.Size() > recordSize(MaxPayload) {
			t.Errorf("size %d", h.Size())
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add(sample(f), int64(0))
	f.Fuzz(func(t *testing.T, b []byte, lsn int64) {
		h, payload, err := parse(b, history.LSN(lsn), history.Digest{})
		if err != nil {
			return
		}
		p := history.Path{End: history.LSN(lsn)}
		if len(payload) != h.PayloadLen || follow(&p, &h, payload) == nil && p.End != h.End() {
			t.Errorf("%+v", h)
		}
	})
}

func FuzzSegmentHeader(f *testing.F) {
	id := [16]byte{1}
	f.Add(encodeSegmentHeader(id, history.Position{Timeline: 3, LSN: 4}), "seg-0000000000000004-0000000000000003")
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		if p, err := decodeSegmentHeader(b, id); err == nil {
			q, err := decodeSegmentHeader(encodeSegmentHeader(id, p), id)
			if err != nil || p != q {
				t.Errorf("%v, again %v %v", p, q, err)
			}
		}
		if lsn, ok := parseSegmentName(name); ok && lsn < 0 {
			t.Errorf("%q: %d", name, lsn)
		}
	})
}

// FuzzAppendRaw: bytes from the network are stored only if they are records that could be read again.
func FuzzAppendRaw(f *testing.F) {
	f.Add(sample(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		cfg := testConfig(crashfs.New())
		l, _, err := Open(cfg, Start{}, func(*Record) {})
		must(t, err)
		if _, err := l.AppendRaw(b); err != nil {
			if l.End() != 0 {
				t.Errorf("refused (%v) but stored up to %d", err, l.End())
			}
			return
		}
		end := l.End()
		must(t, l.Close())
		l, _, err = Open(cfg, Start{}, func(*Record) {})
		if err != nil || l.End() != end || int(end) != len(b) {
			t.Errorf("stored %d of %d bytes, opened %d: %v", end, len(b), l.End(), err)
		}
	})
}
