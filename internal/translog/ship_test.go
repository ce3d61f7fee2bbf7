package translog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"mars/internal/history"
	"mars/internal/vfs/crashfs"
)

// grow appends random batches with rotations and changes of the timeline.
func grow(l *Log, rng *rand.Rand, n int) error {
	for range n {
		var err error
		switch rng.IntN(12) {
		case 0:
			l.Rotate()
		case 1:
			err = l.EndTimeline("b", rng.Int64())
			fallthrough
		case 2:
			if err == nil {
				_, err = l.StartTimeline(history.Timeline{ID: history.TimelineID(1 + rng.Uint64()>>1), Origin: "a", Stamp: rng.Int64()})
			}
		case 3:
			err = l.SyncTo(l.End())
		default:
			_, err = l.Append(randomEntries(rng))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// TestReopenAnywhere: from every record boundary the same records and the same history are found.
func TestReopenAnywhere(t *testing.T) {
	for _, seed := range seedsOf(t, 5) {
		if err := reopenAnywhere(t, seed); err != nil {
			t.Fatalf("%v\n%s", err, rerun(t, seed))
		}
	}
}

func reopenAnywhere(t *testing.T, seed uint64) error {
	fs := crashfs.New()
	l := openNew(t, testConfig(fs))
	if err := grow(l, rand.New(rand.NewPCG(seed, 1)), 40); err != nil {
		return err
	}
	all, err := collect(l, history.Position{})
	if err != nil {
		return err
	}
	path := l.Path()
	fs = fs.Kill()
	for i, from := range all {
		start, err := path.TruncateTo(from.pos)
		if err != nil {
			return err
		}
		n := 0
		l, rep, err := Open(testConfig(fs.Clone()), Start{Path: start, Own: path.Tip().ID}, func(*Record) { n++ })
		if err != nil || n != len(all)-i || rep.Records != n || rep.Torn {
			return fmt.Errorf("opened at %v: %d records, want %d: %+v %w", from.pos, n, len(all)-i, rep, err)
		}
		again, err := collect(l, from.pos)
		if err := errors.Join(err, sameSeen(again, all[i:]), l.CheckPosition(from.pos)); err != nil {
			return err
		}
		if p := l.Path(); p.Position() != path.Position() || p.LastData != path.LastData || p.Holder() != path.Holder() {
			return fmt.Errorf("opened at %v: path ends %+v, want %+v", from.pos, p, path)
		}
	}
	return nil
}

// ship copies from the durable part of src as long as there is something, in pieces of at most max bytes.
func ship(dst, src *Log, max int) error {
	buf := make([]byte, MaxChunk)
	for {
		b, err := src.ReadRaw(buf[:max], dst.End())
		if err != nil || len(b) == 0 {
			return err
		}
		if _, err := dst.AppendRaw(b); err != nil {
			return err
		}
	}
}

// TestShippedIsEqual: a copy is equal to the last byte and has the same segments, wherever it was interrupted and whatever the segment size
// of the receiver.
func TestShippedIsEqual(t *testing.T) {
	for _, seed := range seedsOf(t, 15) {
		rng := rand.New(rand.NewPCG(seed, 2))
		src := openNew(t, testConfig(crashfs.New()))
		cfg := testConfig(crashfs.New())
		cfg.SegmentSize = 4096 + rng.Int64N(20<<10)
		dst, _, err := Open(cfg, Start{}, func(*Record) {})
		must(t, err)
		for range 6 {
			err := errors.Join(grow(src, rng, 8), ship(dst, src, 4096+rng.IntN(20<<10)))
			if err == nil && rng.IntN(2) == 0 {
				must(t, dst.Close())
				dst, _, err = Open(cfg, Start{}, func(*Record) {})
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, rerun(t, seed))
			}
		}
		if err := errors.Join(src.SyncTo(src.End()), ship(dst, src, 20<<10), sameLogs(t, dst, src)); err != nil {
			t.Fatalf("%v\n%s", err, rerun(t, seed))
		}
	}
}

func sameLogs(t *testing.T, a, b *Log) error {
	x, y := segmentFiles(t, a), segmentFiles(t, b)
	if len(x) != len(y) {
		return fmt.Errorf("%d segments, want %d", len(x), len(y))
	}
	for name := range y {
		if string(x[name]) != string(y[name]) {
			return fmt.Errorf("segment %s differs", name)
		}
	}
	return nil
}

// TestShipOnlyDurable: what is not durable does not leave the node.
func TestShipOnlyDurable(t *testing.T) {
	l := openNew(t, testConfig(crashfs.New()))
	durable := l.End()
	appendOne(t, l, 100, 1)
	if b, err := l.ReadRaw(make([]byte, MaxChunk), durable); err != nil || len(b) != 0 {
		t.Fatalf("%d bytes, error %v", len(b), err)
	}
	must(t, l.SyncTo(l.End()))
	if b, err := l.ReadRaw(make([]byte, MaxChunk), durable); err != nil || len(b) != int(l.End()-durable) {
		t.Fatalf("%d bytes, error %v", len(b), err)
	}
}

// TestAppendRawAllOrNothing: of a chunk with one bad byte anywhere nothing is stored, also not the part before a segment boundary.
func TestAppendRawAllOrNothing(t *testing.T) {
	src := openNew(t, testConfig(crashfs.New()))
	appendOne(t, src, 65, 1)
	src.Rotate()
	appendOne(t, src, 65, 2)
	must(t, src.SyncTo(src.End()))
	all := segmentFiles(t, src)
	var chunk []byte
	for _, s := range src.segs {
		chunk = append(chunk, all[s.name][segmentHeaderSize:]...)
	}
	for i := range chunk {
		dst, _, err := Open(testConfig(crashfs.New()), Start{}, func(*Record) {})
		must(t, err)
		chunk[i] ^= 0x20
		if _, err := dst.AppendRaw(chunk); err == nil || dst.End() != 0 {
			t.Errorf("byte %d of %d changed: error %v, log at %d", i, len(chunk), err, dst.End())
		}
		chunk[i] ^= 0x20
	}
	dst, _, err := Open(testConfig(crashfs.New()), Start{}, func(*Record) {})
	must(t, err)
	for n := range chunk {
		if _, err := dst.AppendRaw(chunk[:n]); n > 0 && err == nil && int(dst.End()) != n {
			t.Fatalf("%d of %d bytes stored %d", n, len(chunk), dst.End())
		}
		if dst.End() != 0 {
			break
		}
	}
}

// TestCheckPosition: the verdicts on what a peer may claim to have.
func TestCheckPosition(t *testing.T) {
	cfg := testConfig(crashfs.New())
	l := openNew(t, cfg)
	old, _ := appendOne(t, l, 100, 1)
	l.Rotate()
	first, _ := appendOne(t, l, 100, 2)
	inside, _ := appendOne(t, l, 100, 3)
	must(t, l.EndTimeline("b", 9))
	closed := l.EndPosition()
	_, err := l.StartTimeline(history.Timeline{ID: 8, Origin: "b", Stamp: 10})
	must(t, err)
	appendOne(t, l, 100, 4)
	must(t, l.SyncTo(l.End()))
	root := history.Position{}
	wrong := func(p history.Position, change func(*history.Position)) history.Position { change(&p); return p }
	digest := func(p *history.Position) { p.Digest[3]++ }
	for _, c := range []struct {
		name string
		pos  history.Position
		want error
	}{
		{"root", root, nil},
		{"end", l.EndPosition(), nil},
		{"inside", inside, nil},
		{"first of a segment", first, nil},
		{"end of the older timeline", closed, nil},
		{"end with another digest", wrong(l.EndPosition(), digest), ErrDiverged},
		{"inside with another digest", wrong(inside, digest), ErrDiverged},
		{"end of the older timeline with another digest", wrong(closed, digest), ErrDiverged},
		{"unknown timeline", wrong(inside, func(p *history.Position) { p.Timeline = 5 }), ErrDiverged},
		{"no record boundary", wrong(inside, func(p *history.Position) { p.LSN += 32 }), ErrDiverged},
		{"beyond the end", wrong(l.EndPosition(), func(p *history.Position) { p.LSN += 320 }), ErrDiverged},
		{"beyond the end of the older timeline", wrong(closed, func(p *history.Position) { p.LSN += 32 }), ErrDiverged},
	} {
		if err := l.CheckPosition(c.pos); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	_, err = l.DeleteBelow(first.LSN)
	must(t, err)
	for pos, want := range map[history.Position]error{old: ErrGone, root: ErrGone, first: nil} {
		if err := l.CheckPosition(pos); !errors.Is(err, want) {
			t.Errorf("after deletion, %v: %v, want %v", pos, err, want)
		}
	}
}

// TestDivergedIsNotDamage: an intact record of another history is told apart from a damaged one.
func TestDivergedIsNotDamage(t *testing.T) {
	a, b := openNew(t, testConfig(crashfs.New())), openNew(t, testConfig(crashfs.New()))
	appendOne(t, a, 100, 1)
	appendOne(t, b, 100, 2)
	from := b.End()
	appendOne(t, b, 100, 3)
	must(t, b.SyncTo(b.End()))
	raw, err := b.ReadRaw(make([]byte, MaxChunk), from)
	must(t, err)
	if _, err := a.AppendRaw(raw); !errors.Is(err, ErrDiverged) || errors.Is(err, ErrDefective) {
		t.Error(err)
	}
	raw[HeaderSize]++
	if _, err := b.AppendRaw(raw); !errors.Is(err, ErrDefective) {
		t.Error(err)
	}
}

// TestNothingBehindTheEndRecord: the token is gone with it.
func TestNothingBehindTheEndRecord(t *testing.T) {
	l, _, err := Open(testConfig(crashfs.New()), Start{}, func(*Record) {})
	must(t, err)
	try := func(when string) {
		t.Helper()
		end := l.End()
		if _, err := l.Append([]Entry{write(0, pattern(9, 1))}); !errors.Is(err, ErrNoTimeline) || l.End() != end {
			t.Errorf("append %s: %v", when, err)
		}
		if err := l.EndTimeline("c", 1); !errors.Is(err, ErrNoTimeline) || l.End() != end {
			t.Errorf("another end %s: %v", when, err)
		}
	}
	try("before the first timeline")
	_, err = l.StartTimeline(history.Timeline{ID: 1, Origin: "a"})
	must(t, errors.Join(err, l.EndTimeline("b", 1)))
	try("behind the end record")
	if p := l.Path(); p.Holder() != "b" {
		t.Errorf("the token is at %q", p.Holder())
	}
}
