package ship

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"testing"

	"mars/internal/history"
	"mars/internal/translog"
)

// pipe is a Conn whose frames a test looks at, or hands in.
type pipe struct {
	out []frame
	in  []frame
}

type frame struct {
	kind    byte
	payload []byte
}

func (p *pipe) WriteFrame(kind byte, parts ...[]byte) error {
	p.out = append(p.out, frame{kind, bytes.Join(parts, nil)})
	return nil
}
func (p *pipe) Flush() error { return nil }

func (p *pipe) ReadFrame([]byte) (byte, []byte, error) {
	if len(p.in) == 0 {
		return 0, nil, io.EOF
	}
	f := p.in[0]
	p.in = p.in[1:]
	return f.kind, f.payload, nil
}

// source is a log of ten-byte records.
type source struct {
	data    []byte
	durable history.LSN
	err     error
	changed chan struct{}
}

func (s *source) CheckPosition(history.Position) error { return s.err }
func (s *source) Changed() <-chan struct{}             { return s.changed }
func (s *source) Durable() history.LSN                 { return s.durable }
func (s *source) End() history.LSN                     { return history.LSN(len(s.data)) }

func (s *source) ReadRaw(buf []byte, lsn history.LSN) ([]byte, error) {
	if s.err != nil {
		return nil, s.err
	}
	n := copy(buf, s.data[lsn:max(lsn, s.durable)])
	return buf[:n/10*10], nil
}

// sink remembers what it was given.
type sink struct {
	data []byte
	err  error
}

func (s *sink) Ingest(b []byte) error {
	if s.err != nil {
		return s.err
	}
	s.data = append(s.data, b...)
	return nil
}

func newServer(t *testing.T, c Conn, log Source) *Server {
	t.Helper()
	s, err := NewServer(ServerConfig{Conn: c, Log: log, Stamp: func() int64 { return 7 }, Buf: make([]byte, 25)}, Request{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Only what is durable leaves, in order and in whole records, and a receiver puts it together again.
func TestServerSendsWhatIsDurable(t *testing.T) {
	t.Parallel()
	log := &source{data: bytes.Repeat([]byte("0123456789"), 6), durable: 40}
	c := &pipe{}
	s := newServer(t, c, log)
	for sent := true; sent; {
		var err error
		if sent, err = s.Step(); err != nil {
			t.Fatal(err)
		}
	}
	if s.Next() != 40 {
		t.Errorf("sent up to %d, durable is 40", s.Next())
	}
	to := &sink{}
	heard := 0
	r, err := NewReceiver(&pipe{}, Request{}, to, func(Info) { heard++ })
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range c.out {
		if err := r.Frame(f.kind, f.payload); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(to.data, log.data[:40]) || heard != len(c.out) {
		t.Errorf("received %d bytes, heard %d times of %d frames", len(to.data), heard, len(c.out))
	}
}

func TestServerNoticesACut(t *testing.T) {
	t.Parallel()
	log := &source{data: make([]byte, 40), durable: 40}
	s := newServer(t, &pipe{}, log)
	if _, err := s.Step(); err != nil {
		t.Fatal(err)
	}
	log.durable = 10
	if _, err := s.Step(); !errors.Is(err, translog.ErrDiverged) {
		t.Errorf("a log that was cut back gives %v", err)
	}
}

// A server tells why not, and a fetcher can tell whether to ask somebody else.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err   error
		code  string
		lacks bool
	}{
		{translog.ErrGone, CodeGone, true},
		{translog.ErrDiverged, CodeDiverged, false},
		{&translog.DefectError{}, CodeDamaged, true},
		{fmt.Errorf("%w: %w", &translog.DefectError{}, translog.ErrDiverged), CodeDamaged, true},
		{errors.New("something else"), CodeError, false},
	} {
		conn := &pipe{}
		if _, err := NewServer(ServerConfig{Conn: conn, Log: &source{err: c.err}}, Request{}); !errors.Is(err, c.err) {
			t.Errorf("%v: refused with %v", c.err, err)
		}
		err := Fetch(context.Background(), &pipe{in: conn.out}, Request{}, &sink{}, func(Info) {})
		var ref *Refusal
		if !errors.As(err, &ref) || ref.Code != c.code || Lacks(err) != c.lacks {
			t.Errorf("%v arrives as %v, lacks=%v", c.err, err, Lacks(err))
		}
	}
	if !Lacks(fmt.Errorf("fetch: %w", &translog.DefectError{})) || Lacks(io.EOF) {
		t.Error("damage found by the receiver must count as lacking, the end of a connection must not")
	}
}

func data(lsn uint64, payload string) []byte {
	return append(binary.LittleEndian.AppendUint64(nil, lsn), payload...)
}

func TestReceiverRefusesNonsense(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]frame{
		"short data":     {frameData, []byte{1, 2}},
		"gap":            {frameData, data(5, "x")},
		"unknown":        {99, nil},
		"bad info":       {frameInfo, []byte("{")},
		"bad refusal":    {frameRefusal, []byte("[]")},
		"request":        {frameRequest, []byte("{}")},
		"sink says no":   {frameData, data(0, "bad")},
		"negative start": {frameData, data(1<<63, "x")},
	} {
		r, err := NewReceiver(&pipe{}, Request{}, &sink{err: errors.New("no")}, func(Info) {})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Frame(f.kind, f.payload); err == nil {
			t.Errorf("%s is taken", name)
		}
		if r.next != 0 {
			t.Errorf("%s moves the position", name)
		}
	}
}

func TestRequestLimits(t *testing.T) {
	t.Parallel()
	if _, err := DecodeRequest(make([]byte, maxRequest+1)); err == nil {
		t.Error("a huge request is decoded")
	}
	if _, err := DecodeRequest([]byte(`{"from":{"lsn":-1}}`)); err == nil {
		t.Error("a negative LSN is taken")
	}
	if _, err := ReadRequest(&pipe{in: []frame{{frameInfo, []byte("{}")}}}); err == nil {
		t.Error("a session that begins with an info is taken")
	}
}

// FuzzFrames: whatever a peer sends, nothing panics, and what is handed on continues the log.
func FuzzFrames(f *testing.F) {
	f.Add(byte(frameData), data(0, "record"))
	f.Add(byte(frameInfo), []byte(`{"end":3,"durable":2,"stamp":1}`))
	f.Add(byte(frameRefusal), []byte(`{"code":"gone","text":"x"}`))
	f.Add(byte(frameRequest), []byte(`{"resource":"r","from":{"timeline":1,"lsn":2,"digest":""}}`))
	f.Fuzz(func(t *testing.T, kind byte, payload []byte) {
		to := &sink{}
		r, err := NewReceiver(&pipe{}, Request{}, to, func(Info) {})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Frame(kind, payload); err != nil && len(to.data) > 0 {
			t.Errorf("%d bytes were stored of a frame that was refused: %v", len(to.data), err)
		}
		if int(r.next) != len(to.data) {
			t.Errorf("the position is %d after %d bytes", r.next, len(to.data))
		}
		if req, err := DecodeRequest(payload); err == nil {
			b, err := json.Marshal(req)
			if again, err2 := DecodeRequest(b); err != nil || err2 != nil || again != req {
				t.Errorf("request %+v comes back as %+v: %v, %v", req, again, err, err2)
			}
		}
	})
}
