package fullsync

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"syscall"
	"testing"

	"mars/internal/block"
	"mars/internal/block/blocktest"
	"mars/internal/history"
)

type frame struct {
	kind    byte
	payload []byte
}

// wire is a Conn that keeps what is written.
type wire struct {
	out    []frame
	frames int // written in all
}

func (w *wire) ReadFrame([]byte) (byte, []byte, error) { return 0, nil, io.EOF }
func (w *wire) Flush() error                           { return nil }

func (w *wire) WriteFrame(kind byte, parts ...[]byte) error {
	w.frames++
	w.out = append(w.out, frame{kind, bytes.Join(parts, nil)})
	return nil
}

func (w *wire) take() []frame {
	f := w.out
	w.out = nil
	return f
}

// source is a disk at a position.
type source struct {
	*blocktest.Disk
	at history.Position
}

func (s *source) ReadStable(p []byte, off int64) (history.Position, error) {
	return s.at, s.ReadAt(p, off)
}
func (s *source) Reflects() history.Position                { return s.at }
func (s *source) StablePosition() (history.Position, error) { return s.at, nil }

// pair is a session whose frames are carried by hand.
type pair struct {
	there, here wire
	srv         *Server
	sess        *Session
}

func open(t *testing.T, src *source) *pair {
	t.Helper()
	p := &pair{}
	var err error
	if p.sess, err = Begin(&p.here, OpenRequest{Resource: "r"}); err != nil {
		t.Fatal(err)
	}
	if req, err := DecodeOpen(p.here.take()[0].payload); err != nil || req.Resource != "r" {
		t.Fatalf("request %+v: %v", req, err)
	}
	if p.srv, err = NewServer(&p.there, OpenReply{Size: src.Size()}, src); err != nil {
		t.Fatal(err)
	}
	if err := p.run(); err != nil {
		t.Fatal(err)
	}
	return p
}

// run carries frames until the session waits for nothing.
func (p *pair) run() error {
	for p.sess.Waiting() {
		asked := p.here.take()
		for _, f := range asked {
			if err := p.srv.Frame(f.kind, f.payload); err != nil {
				return errors.Join(err, p.answers())
			}
		}
		if err := p.answers(); err != nil {
			return err
		}
		if len(asked) == 0 && len(p.here.out) == 0 && p.sess.Waiting() {
			return errors.New("stuck")
		}
	}
	return nil
}

func (p *pair) answers() error {
	for _, f := range p.there.take() {
		if err := p.sess.Frame(f.kind, f.payload); err != nil {
			return err
		}
	}
	return nil
}

func (p *pair) copy(disk block.Device, r Range) error {
	if err := p.sess.StartCopy(disk, r); err != nil {
		return err
	}
	return p.run()
}

// scatter writes random blocks, and zeroes, over a disk.
func scatter(t *testing.T, rng *rand.Rand, d *blocktest.Disk, times int) {
	t.Helper()
	for range times {
		n := (1 + rng.Int64N(40)) * block.SectorSize
		off := rng.Int64N((d.Size()-n)/block.SectorSize+1) * block.SectorSize
		p := make([]byte, n)
		if rng.IntN(3) > 0 {
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
		}
		if err := d.WriteAt(p, off, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// Where nearly everything differs the source stops asking which blocks, and begins again where that is not so any more.
func TestWholeUnitsWhereAllDiffers(t *testing.T) {
	t.Parallel()
	const part = 4 << 20
	rng := rand.NewChaCha8([32]byte{})
	src := &source{Disk: blocktest.NewDisk(4 * part), at: history.Position{Timeline: 1, LSN: 9}}
	content := make([]byte, 4*part)
	rng.Read(content)
	if err := src.WriteAt(content, 0, 0); err != nil {
		t.Fatal(err)
	}
	dst := src.Clone()
	rng.Read(content[:2*part])
	for off := 2 * part; off < len(content); off += 2 * unitSize {
		content[off]++ // one block of every other unit
	}
	if err := dst.WriteAt(content, 0, 0); err != nil {
		t.Fatal(err)
	}
	p := open(t, src)
	var questions []int
	for i := range 4 {
		p.there.frames = 0
		err := p.copy(dst, Range{Off: int64(i) * part, Len: part, Reflected: 9})
		questions = append(questions, p.there.frames-part/chunkSize)
		if err = errors.Join(err, p.sess.StartFinish()); err != nil {
			t.Fatal(err)
		}
		if err := p.run(); err != nil {
			t.Fatal(err)
		}
	}
	const units = part / unitSize
	if questions[0] != units || questions[1] > units/offerEvery+1 || questions[2] > questions[3] || questions[3] != units/2 {
		t.Errorf("answers about blocks: %v of %d units", questions, units)
	}
	got := make([]byte, len(content))
	if err := errors.Join(dst.ReadAt(got, 0), src.ReadAt(content, 0)); err != nil || !bytes.Equal(got, content) {
		t.Errorf("not equal (%v)", err)
	}
}

// Whatever both sides have, a copy makes them equal, and what is equal does not travel.
func TestCopyMakesEqual(t *testing.T) {
	t.Parallel()
	for seed := uint64(0); seed < 60; seed++ {
		rng := rand.New(rand.NewPCG(seed, 1))
		size := (1 + rng.Int64N(5000)) * block.SectorSize
		size = max(size, 64*block.SectorSize)
		src := &source{Disk: blocktest.NewDisk(size), at: history.Position{Timeline: 1, LSN: 9}}
		scatter(t, rng, src.Disk, 30)
		dst := blocktest.NewDisk(size)
		if rng.IntN(2) == 0 {
			dst = src.Clone()
		}
		scatter(t, rng, dst, rng.IntN(10))
		p := open(t, src)
		if err := p.copy(dst, Range{Len: size, Reflected: 9}); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		got, want := make([]byte, size), make([]byte, size)
		if err := errors.Join(dst.ReadAt(got, 0), src.ReadAt(want, 0)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("seed %d: the copy of %d bytes differs", seed, size)
		}
		before := p.sess.Received
		if err := p.copy(dst, Range{Len: size, Reflected: 9}); err != nil || p.sess.Received != before {
			t.Fatalf("seed %d: %d bytes travel between equal disks: %v", seed, p.sess.Received-before, err)
		}
		if err := p.sess.StartFinish(); err != nil {
			t.Fatal(err)
		}
		if err := p.run(); err != nil || p.sess.Until() != src.at {
			t.Fatalf("until %v: %v", p.sess.Until(), err)
		}
	}
}

// An unreadable unit of the target is replaced, also where the source has zeroes, and where the rest of the chunk is equal.
func TestCopyReplacesWhatIsUnreadable(t *testing.T) {
	t.Parallel()
	src := &source{Disk: blocktest.NewDisk(4 * unitSize)}
	scatter(t, rand.New(rand.NewPCG(1, 2)), src.Disk, 3)
	dst := blocktest.NewDisk(4 * unitSize)
	scatter(t, rand.New(rand.NewPCG(3, 4)), dst, 80)
	dst.Inject(blocktest.Fault{Match: blocktest.Within(blocktest.OpRead, unitSize, 512), Err: syscall.EIO, Sticky: true})
	if err := open(t, src).copy(dst, Range{Len: 4 * unitSize}); err != nil {
		t.Fatal(err)
	}
	dst.ClearFaults()
	got, want := make([]byte, 4*unitSize), make([]byte, 4*unitSize)
	if err := errors.Join(dst.ReadAt(got, 0), src.ReadAt(want, 0)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the copy differs")
	}
}

// A source that is older than what the target has replayed must not be copied from.
func TestSourceBehindIsRefused(t *testing.T) {
	t.Parallel()
	src := &source{Disk: blocktest.NewDisk(unitSize), at: history.Position{LSN: 5}}
	err := open(t, src).copy(blocktest.NewDisk(unitSize), Range{Len: unitSize, Reflected: 6})
	var ref *Refusal
	if !errors.As(err, &ref) || ref.Code != CodeBehind {
		t.Errorf("refused with %v", err)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	if _, err := DecodeOpen(make([]byte, maxOpen+1)); err == nil {
		t.Error("a huge request is decoded")
	}
	huge := compare{n: chunkSize + 512, digests: make([]byte, digestSize*units(chunkSize+512))}
	if _, err := decodeCompare(huge.encode()); err == nil {
		t.Error("a compare beyond the limit is decoded")
	}
	w := want{n: unitSize + 512}
	if _, err := decodeWant(w.encode()); err == nil {
		t.Error("a want beyond a unit is decoded")
	}
	s, err := Begin(&wire{}, OpenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, reply := range []string{`{"size":-512}`, `{"size":100}`, `{"start":{"end":-1}}`, `[`} {
		s.opening = true
		if err := s.Frame(frameOpenReply, []byte(reply)); err == nil {
			t.Errorf("reply %s is taken", reply)
		}
	}
	if err := s.Frame(frameUnits, nil); err == nil {
		t.Error("an answer to no question is taken")
	}
}

// FuzzServer: whatever a target asks, the source neither panics nor answers without bounds.
func FuzzServer(f *testing.F) {
	c := compare{n: 4096, digests: make([]byte, digestSize)}
	w := want{n: unitSize, bits: 5}
	f.Add(byte(frameCompare), c.encode())
	f.Add(byte(frameWant), w.encode())
	f.Add(byte(frameFinish), []byte{})
	f.Fuzz(func(t *testing.T, kind byte, payload []byte) {
		var out wire
		srv, err := NewServer(&out, OpenReply{}, &source{Disk: blocktest.NewDisk(2 * unitSize)})
		if err != nil {
			t.Fatal(err)
		}
		srv.Frame(kind, payload) // an error is an answer
		for _, x := range out.out {
			if len(x.payload) > chunkSize+4096 {
				t.Errorf("an answer of %d bytes", len(x.payload))
			}
		}
	})
}

// fence is a disk of which only a part may be written.
type fence struct {
	block.Device
	t        *testing.T
	from, to int64
}

func (f *fence) WriteAt(p []byte, off int64, fl block.Flags) error {
	f.check(off, int64(len(p)))
	return f.Device.WriteAt(p, off, fl)
}

func (f *fence) Discard(off, n int64, fl block.Flags) error {
	f.check(off, n)
	return f.Device.Discard(off, n, fl)
}

func (f *fence) check(off, n int64) {
	if off < f.from || off+n > f.to {
		f.t.Errorf("%d bytes at %d are written, outside of [%d, %d)", n, off, f.from, f.to)
	}
}

// FuzzSession: whatever a source answers, the target does not panic, and writes nothing outside of the range it has asked for.
func FuzzSession(f *testing.F) {
	f.Add(byte(frameUnits), []byte{unitZero, unitSame}, []byte{})
	f.Add(byte(frameUnits), append([]byte{unitDigests, unitSame}, make([]byte, 16*digestSize)...), bytes.Repeat([]byte("x"), unitSize))
	f.Add(byte(frameRefusal), []byte(`{"code":"behind"}`), []byte{})
	f.Fuzz(func(t *testing.T, kind byte, first, second []byte) {
		s, err := Begin(&wire{}, OpenRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Frame(frameOpenReply, []byte(fmt.Sprintf(`{"size":%d}`, 4*unitSize))); err != nil {
			t.Fatal(err)
		}
		disk := blocktest.NewDisk(4 * unitSize)
		if err := disk.WriteAt(bytes.Repeat([]byte("y"), unitSize), unitSize, 0); err != nil {
			t.Fatal(err)
		}
		guarded := &fence{disk, t, unitSize, 3 * unitSize}
		if err := s.StartCopy(guarded, Range{Off: unitSize, Len: 2 * unitSize}); err != nil {
			t.Fatal(err)
		}
		if s.Frame(kind, first) == nil && s.Waiting() {
			s.Frame(frameBlocks, second)
		}
	})
}
