package nbd

import (
	"fmt"
	"io"
)

const (
	handshakeBuffer = 4 << 10
	requestBuffer   = 256 << 10
	// directRead is the size of a payload in bytes from which on it is read without a detour through the buffer: below, a copy is cheaper
	// than the extra system call for the request behind it.
	directRead = 32 << 10
	// headerRead is how much is read for the header behind a large payload: another large one is likely to follow.
	headerRead = 1 << 10
)

// input is a connection's read side: a buffer that tells what can be had without waiting. It is used by one goroutine.
type input struct {
	src  io.Reader
	buf  []byte
	r, w int // buf[r:w] has been received and not been used
	want int // how much to read at once
}

func newInput(src io.Reader) *input {
	return &input{src: src, buf: make([]byte, handshakeBuffer), want: handshakeBuffer}
}

// grow replaces the buffer by a larger one.
func (in *input) grow(size int) {
	buf := make([]byte, size)
	in.w = copy(buf, in.buf[in.r:in.w])
	in.buf, in.r, in.want = buf, 0, size
}

// buffered is the number of bytes that can be had without waiting.
func (in *input) buffered() int { return in.w - in.r }

// fill waits until n bytes are buffered; n must not exceed the buffer.
func (in *input) fill(n int) error {
	for in.buffered() < n {
		if err := in.more(); err != nil {
			return err
		}
	}
	return nil
}

// more waits for at least one more byte. What is buffered moves to the front, so that one system call can take in as much as possible;
// callers let at most a header be left over.
func (in *input) more() error {
	in.w = copy(in.buf, in.buf[in.r:in.w])
	in.r = 0
	n, err := in.src.Read(in.buf[in.w:min(len(in.buf), in.w+in.want)])
	in.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	if err == io.EOF && in.w > 0 {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// next uses up n buffered bytes. The slice is valid until the next call of any method.
func (in *input) next(n int) []byte {
	p := in.buf[in.r : in.r+n]
	in.r += n
	return p
}

// read waits for and uses up n bytes like next; n must not exceed the buffer.
func (in *input) read(n int) ([]byte, error) {
	if err := in.fill(n); err != nil {
		return nil, err
	}
	return in.next(n), nil
}

// readFull fills p, first from the buffer.
func (in *input) readFull(p []byte) error {
	if len(p) >= directRead {
		return in.readDirect(p)
	}
	in.want = len(in.buf)
	for {
		n := copy(p, in.buf[in.r:in.w])
		in.r += n
		if p = p[n:]; len(p) == 0 {
			return nil
		}
		if err := in.more(); err != nil {
			return fmt.Errorf("the last %d bytes of a payload: %w", len(p), truncated(err))
		}
	}
}

func (in *input) readDirect(p []byte) error {
	in.want = headerRead
	n := copy(p, in.buf[in.r:in.w])
	in.r += n
	if _, err := io.ReadFull(in.src, p[n:]); err != nil {
		return fmt.Errorf("a payload of %d bytes: %w", len(p), truncated(err))
	}
	return nil
}

// discard uses up n bytes.
func (in *input) discard(n int64) error {
	for {
		k := min(n, int64(in.buffered()))
		in.r += int(k)
		if n -= k; n == 0 {
			return nil
		}
		if err := in.more(); err != nil {
			return fmt.Errorf("the last %d bytes of a refused payload: %w", n, truncated(err))
		}
	}
}

// truncated: the end of the connection inside of something is not a proper end.
func truncated(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
