package transport

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

func TestFrameRoundTrip(t *testing.T) {
	var out bytes.Buffer
	w := bufio.NewWriter(&out)
	must(t, writeFrame(w, 1, nil, 10))
	must(t, writeFrame(w, 2, [][]byte{[]byte("ab"), nil, []byte("c")}, 10))
	must(t, w.Flush())
	if want := []byte{0, 0, 0, 0, 1, 3, 0, 0, 0, 2, 'a', 'b', 'c'}; !bytes.Equal(out.Bytes(), want) {
		t.Fatalf("on the wire: % x", out.Bytes())
	}
	for _, want := range []struct {
		kind    byte
		payload string
	}{{1, ""}, {2, "abc"}} {
		kind, payload, err := readFrame(&out, nil, 10)
		if err != nil || kind != want.kind || string(payload) != want.payload {
			t.Fatalf("%d %q %v", kind, payload, err)
		}
	}
	if _, _, err := readFrame(&out, nil, 10); err != io.EOF {
		t.Fatalf("at the end: %v", err)
	}
}

func TestFrameLimits(t *testing.T) {
	if err := writeFrame(bufio.NewWriter(io.Discard), 1, [][]byte{make([]byte, 6), make([]byte, 5)}, 10); !errors.Is(err, ErrFrameTooBig) {
		t.Errorf("write: %v", err)
	}
	huge := bytes.NewReader([]byte{255, 255, 255, 255, 1})
	if _, _, err := readFrame(huge, nil, 10); !errors.Is(err, ErrFrameTooBig) {
		t.Errorf("read: %v", err)
	}
	for _, cut := range [][]byte{{1, 0}, {1, 0, 0, 0, 9}, {2, 0, 0, 0, 9, 'x'}} {
		if _, _, err := readFrame(bytes.NewReader(cut), nil, 10); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("% x: %v", cut, err)
		}
	}
}

func TestReadFrameReusesTheBuffer(t *testing.T) {
	frame := append([]byte{100, 0, 0, 0, 1}, make([]byte, 100)...)
	buf := make([]byte, 0, 128)
	r := bytes.NewReader(frame)
	allocs := testing.AllocsPerRun(100, func() {
		r.Reset(frame)
		_, payload, err := readFrame(r, buf, 1000)
		if err != nil || len(payload) != 100 || &payload[0] != &buf[:1][0] {
			t.Fatal("not in the buffer")
		}
	})
	if allocs > 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 1, 3, 0, 0, 0, 2, 'a', 'b', 'c'})
	f.Add([]byte{255, 255, 255, 255, 1})
	f.Add([]byte{5, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var out bytes.Buffer
		w := bufio.NewWriter(&out)
		r := bytes.NewReader(b)
		for {
			kind, payload, err := readFrame(r, nil, 1000)
			if err != nil {
				break
			}
			if len(payload) > 1000 {
				t.Fatalf("%d bytes", len(payload))
			}
			must(t, writeFrame(w, kind, [][]byte{payload}, 1000))
		}
		must(t, w.Flush())
		if !bytes.HasPrefix(b, out.Bytes()) {
			t.Fatal("frames are not what was on the wire")
		}
	})
}

// Progress is what counts: a read that gets a byte now and then goes on for longer than the time-out.
func TestSlowPeerIsNotStalled(t *testing.T) {
	here, there := net.Pipe()
	c := newProgressConn(here)
	defer c.Close()
	c.set(Progress{Read: 200 * time.Millisecond, Write: 200 * time.Millisecond})
	const total = 30
	done := make(chan error, 1)
	go func() { // ends when everything was sent, or the pipe is closed
		defer there.Close()
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		buf := make([]byte, 1)
		for range total {
			<-tick.C
			if _, err := there.Write(buf); err != nil {
				done <- err
				return
			}
			if _, err := there.Read(buf); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	go func() { // ends like the other one
		_, _ = c.Write(make([]byte, total))
	}()
	if _, err := io.ReadFull(c, make([]byte, total)); err != nil {
		t.Fatal(err)
	}
	must(t, <-done)
}

func TestStandstillIsStalled(t *testing.T) {
	a, b := two(t, func(c *Config) { c.Handler = hang })
	c := a.mustDial(b, Log)
	c.SetProgress(Progress{Read: 30 * time.Millisecond, Write: 30 * time.Millisecond})
	_, _, err := c.ReadFrame(nil)
	wantErr(t, err, ErrStalled)
	w := a.mustDial(b, Log)
	w.SetProgress(Progress{Write: 30 * time.Millisecond})
	for err = nil; err == nil; {
		err = w.WriteFrame(1, make([]byte, 1<<20))
	}
	wantErr(t, err, ErrStalled)
}
