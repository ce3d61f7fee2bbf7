package nbd

import (
	"bufio"
	"io"
	"net"
	"sync/atomic"
	"time"
)

const (
	// writePiece bounds what one system call is asked to send, in bytes, so that progress of a large reply can be seen.
	writePiece = 1 << 20
	// sendBuffer is how much may wait in a Unix socket for the client, in bytes: the default would make large reads wait in the middle.
	sendBuffer = 512 << 10
	// joinBuffer is for connections that cannot gather: small buffers are copied together.
	joinBuffer = 64 << 10
)

// output is a connection's write side: it sends batches of replies with as few system calls as possible. It is used by one goroutine at a
// time, see replies.
type output struct {
	dst   io.Writer
	join  *bufio.Writer // nil when dst can gather (writev)
	heads []byte        // memory for the heads of one batch
	iov   net.Buffers   // what is to be sent of one batch
	piece net.Buffers   // the part of iov that is being sent; a field, because it would be allocated otherwise
	stall *stall
}

func newOutput(nc net.Conn, s *stall) *output {
	o := &output{dst: nc, stall: s}
	switch nc := nc.(type) {
	case *net.UnixConn:
		_ = nc.SetWriteBuffer(sendBuffer) // the default works too
	case *net.TCPConn: // the kernel finds out itself
	default:
		o.join = bufio.NewWriterSize(nc, joinBuffer)
	}
	return o
}

// send sends the replies to all of batch.
func (o *output) send(batch []*request) error {
	o.gather(batch)
	if o.join != nil {
		return o.sendJoined()
	}
	for rest := o.iov; len(rest) > 0; {
		n := pieceOf(rest)
		o.piece = rest[:n]
		if err := o.sendPiece(); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

// gather lays the batch out in iov: heads that follow each other make one buffer, bodies are not copied.
func (o *output) gather(batch []*request) {
	clear(o.iov) // do not keep payloads alive
	o.heads, o.iov = o.heads[:0], o.iov[:0]
	begin := 0
	for _, r := range batch {
		o.heads = r.appendHead(o.heads)
		body := r.body()
		if body == nil {
			continue
		}
		o.iov = append(o.iov, o.heads[begin:])
		begin = len(o.heads)
		for ; len(body) > writePiece; body = body[writePiece:] {
			o.iov = append(o.iov, body[:writePiece])
		}
		o.iov = append(o.iov, body)
	}
	if begin < len(o.heads) {
		o.iov = append(o.iov, o.heads[begin:])
	}
}

// pieceOf returns how many of the first buffers make about writePiece bytes.
func pieceOf(iov net.Buffers) int {
	n, sum := 0, 0
	for n < len(iov) && sum < writePiece {
		sum += len(iov[n])
		n++
	}
	return n
}

func (o *output) sendPiece() error {
	o.stall.begin()
	defer o.stall.end()
	if len(o.piece) == 1 {
		_, err := o.dst.Write(o.piece[0])
		return err
	}
	_, err := o.piece.WriteTo(o.dst)
	return err
}

func (o *output) sendJoined() error {
	for _, b := range o.iov {
		o.stall.begin()
		_, err := o.join.Write(b)
		o.stall.end()
		if err != nil {
			return err
		}
	}
	o.stall.begin()
	defer o.stall.end()
	return o.join.Flush()
}

// stall knows since when something has been waiting for the peer. Its methods may be called concurrently.
type stall struct{ since atomic.Int64 } // nanoseconds on clock; 0: not waiting

func (s *stall) begin() { s.since.Store(int64(clock())) }
func (s *stall) end()   { s.since.Store(0) }

// lasts says whether the wait that is going on has lasted for d.
func (s *stall) lasts(d time.Duration) bool {
	since := s.since.Load()
	return since != 0 && clock()-time.Duration(since) >= d
}

var epoch = time.Now().Add(-time.Second) // so that the clock never shows 0

// clock is a monotonic time that is cheap to read.
func clock() time.Duration { return time.Since(epoch) }
