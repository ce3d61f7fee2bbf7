package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"mars/internal/block"
	"mars/internal/device/buffer"
)

const (
	// batchRequests and batchBytes bound a batch of modifications handed to the device in one go.
	batchRequests = 128
	batchBytes    = 1 << 20
	// replyBytes is how much read data may pile up before the reader goroutine sends it.
	replyBytes = 256 << 10
	// drainLimit is how long a refused payload may be, in bytes, to be read and thrown away; beyond, the connection is cut.
	drainLimit = 2 * block.MaxRequest
	// lingerTimeout is how long a client that has ended its side may take to take its last replies.
	lingerTimeout = 30 * time.Second
)

// Reasons why a connection ends.
var (
	errDisconnected = errors.New("client disconnected")
	errStopped      = errors.New("server stopped")
	errFull         = errors.New("export has as many connections as it may have")
	errProtocol     = errors.New("client breaks the protocol")
)

// agreed is what the handshake has negotiated.
type agreed struct {
	tls        bool
	noZeroes   bool
	structured bool
	allocation *Server // the export that base:allocation is selected for; nil: none
}

// conn is one connection. Its reader goroutine parses all requests that have been received, collects the modifications among them into a
// batch, hands it to the device when it would have to wait for more, sends the replies that are ready, and only then waits. So at queue
// depth one everything happens on one goroutine, and at larger depths the costs per batch - system calls, locks, log writes - are shared.
// Reads that would wait for the device go to workers, replies that complete later to the writer goroutine.
type conn struct {
	lobby  lobby
	srv    *Server  // whose export is used; in a hub nil until the transmission phase. Set with srv.mu held
	raw    net.Conn // as accepted
	nc     net.Conn // what the protocol runs over: raw, or TLS over it
	in     *input
	agreed agreed
	user   string // who is connected; "" until the transmission phase. Guarded by srv.mu

	share   share
	replies *replies
	sending stall // in the middle of replies
	waiting stall // in the middle of a payload
	noted   sync.Once

	// Used by the reader goroutine only.
	batch      []*block.Request
	batchBytes int64
	readBytes  int  // read data put into replies since the last flush
	lone       bool // the newest request is the only one in flight
}

// newConn returns a connection to a server with its one export.
func newConn(srv *Server, nc net.Conn) *conn {
	c := newVisitor(srv, nc)
	c.srv = srv
	return c
}

// newVisitor returns a connection that has yet to choose an export.
func newVisitor(l lobby, nc net.Conn) *conn {
	c := &conn{lobby: l, raw: nc, nc: nc, in: newInput(nc)}
	c.replies = newReplies(c.lost, c.note)
	return c
}

// run is the reader goroutine: the connection's whole life. It returns nil when the client ended the connection in order.
func (c *conn) run() error {
	defer c.raw.Close()
	if err := c.negotiate(); err != nil {
		return err
	}
	return c.transmit()
}

// transmit is the transmission phase.
func (c *conn) transmit() error {
	c.in.grow(requestBuffer)
	c.replies.out = newOutput(c.nc, &c.sending)
	c.replies.busy()

	ctx, cancel := context.WithCancel(context.Background())
	joined := make(chan struct{})
	go func() { // the writer goroutine; ends with cancel
		defer close(joined)
		c.replies.write(ctx.Done())
	}()

	err := c.serve()
	c.finish()
	cancel()
	<-joined
	if errors.Is(err, errDisconnected) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// finish waits until everything in flight has been completed and, if the client still listens, replied to.
func (c *conn) finish() {
	_ = c.raw.SetWriteDeadline(time.Now().Add(lingerTimeout)) // fails only on a closed connection
	c.pause()
	c.replies.await(1)
	c.replies.kill()
	_ = c.nc.Close() // over TLS this also tells the peer that nothing was cut off
}

// stalled says that the client holds memory and has kept us waiting for d in the middle of a transfer.
func (c *conn) stalled(d time.Duration) bool {
	return (c.sending.lasts(d) || c.waiting.lasts(d)) && c.srv.budget.holds(&c.share) > 0
}

// lost is called when replies cannot be sent: the reader goroutine shall notice. Pending requests are carried out all the same.
func (c *conn) lost(error) { c.raw.Close() }

// note tells the operator about the first request that the device could not carry out; the client learns about each.
func (c *conn) note(r *request) {
	if errnoOf(r.err, r.cmd) == errnoIO {
		c.noted.Do(func() {
			c.srv.cfg.Log.Error("NBD request failed, more failures of this client are not logged",
				"command", r.cmd, "off", r.Off, "len", r.Len, "err", r.err)
		})
	}
}

// abort cuts the connection and makes its goroutines end without waiting for what is in flight. May be called at any time.
func (c *conn) abort() {
	c.raw.Close()
	c.replies.kill()
}

// serve handles requests until the connection ends; it never returns nil.
func (c *conn) serve() error {
	for {
		if c.in.buffered() < requestHeaderLen {
			if err := c.waitForRequest(); err != nil {
				return err
			}
		}
		h, ok := parseHeader(c.in.next(requestHeaderLen))
		if !ok {
			return fmt.Errorf("bad request magic: %w", errProtocol)
		}
		if err := c.handle(&h); err != nil {
			return err
		}
	}
}

// pause sends everything on its way, to the device and to the client: the reader goroutine is about to wait.
func (c *conn) pause() {
	c.submit()
	c.readBytes = 0
	c.replies.idle()
}

func (c *conn) waitForRequest() error {
	c.pause()
	err := c.in.fill(requestHeaderLen)
	c.replies.busy()
	return err
}

func (c *conn) handle(h *header) error {
	if h.cmd == cmdDisc {
		return errDisconnected
	}
	if err := c.begin(); err != nil {
		return err
	}
	r := newRequest(c, h)
	if e := c.check(h); e != nil {
		return c.refuse(r, e)
	}
	r.Op = commands[h.cmd].op
	switch h.cmd {
	case cmdRead:
		return c.read(r)
	case cmdBlockStatus:
		return c.blockStatus(r)
	case cmdWrite:
		return c.write(r)
	}
	c.collect(r)
	return nil
}

// begin counts a request in flight, waiting while there are too many.
func (c *conn) begin() error {
	n := c.replies.begin()
	for n == 0 {
		c.pause()
		if !c.replies.await(maxInFlight) {
			return errStopped
		}
		c.replies.busy()
		n = c.replies.begin()
	}
	c.lone = n == 1
	return nil
}

// refuse replies with an error, after reading what comes with the request.
func (c *conn) refuse(r *request, reason error) error {
	if r.cmd == cmdWrite {
		if r.Len > drainLimit {
			err := fmt.Errorf("write of %d bytes: %w", r.Len, errProtocol)
			c.replies.drop(r)
			return err
		}
		if err := c.drain(r.Len); err != nil {
			c.replies.drop(r)
			return err
		}
	}
	r.err = reason
	c.replies.put(r)
	return nil
}

func (c *conn) drain(n int64) error {
	if n <= int64(c.in.buffered()) {
		return c.in.discard(n)
	}
	c.pause()
	err := c.in.discard(n)
	c.replies.busy()
	return err
}

// write takes in the payload and adds the request to the batch.
func (c *conn) write(r *request) error {
	if err := c.reserve(r, int(r.Len)); err != nil {
		c.replies.drop(r)
		return err
	}
	if err := c.receivePayload(r.payload.Data); err != nil {
		c.replies.drop(r)
		return err
	}
	r.Data = r.payload.Data
	c.collect(r)
	return nil
}

func (c *conn) receivePayload(p []byte) error {
	if len(p) <= c.in.buffered() {
		return c.in.readFull(p)
	}
	c.pause()
	c.waiting.begin()
	err := c.in.readFull(p)
	c.waiting.end()
	c.replies.busy()
	return err
}

// read answers at once if that needs no waiting, or if there is nothing else that could be done meanwhile.
func (c *conn) read(r *request) error {
	if err := c.reserve(r, int(r.Len)); err != nil {
		c.replies.drop(r)
		return err
	}
	if c.srv.nowait != nil {
		ok, err := c.srv.nowait.ReadAtNowait(r.payload.Data, r.Off)
		if ok || err != nil {
			c.answer(r, err)
			return nil
		}
	}
	c.dispatch(r)
	return nil
}

func (c *conn) blockStatus(r *request) error {
	if err := c.reserve(r, buffer.MinSize); err != nil {
		c.replies.drop(r)
		return err
	}
	c.dispatch(r)
	return nil
}

// dispatch has a request carried out that may have to wait for the device.
func (c *conn) dispatch(r *request) {
	if c.alone() {
		c.answer(r, r.run())
		return
	}
	c.srv.workers.do(r)
}

// answer queues the reply to a request that the reader goroutine itself has carried out.
func (c *conn) answer(r *request, err error) {
	r.settle(err)
	c.readBytes += len(r.body())
	c.replies.put(r)
	if c.readBytes >= replyBytes {
		c.readBytes = 0
		c.replies.flush()
	}
}

// alone says that the newest request is the only one in flight and that no other has been received: waiting for it holds up nothing.
func (c *conn) alone() bool { return c.lone && c.in.buffered() == 0 }

// reserve gives r a payload buffer of n bytes, waiting until there is room for it.
func (c *conn) reserve(r *request, n int) error {
	cost := buffer.Cost(n)
	if ok, _ := c.srv.budget.take(&c.share, cost); !ok {
		c.pause()
		if err := c.srv.waitForRoom(c, cost); err != nil {
			return err
		}
		c.replies.busy()
	}
	r.payload = buffer.New(n)
	return nil
}

// collect adds a modification to the batch; a device that takes no batches gets it at once, and so does a flush that a batch would only delay.
func (c *conn) collect(r *request) {
	if c.srv.submitter == nil || r.Op == block.OpFlush && c.alone() {
		c.dispatch(r)
		return
	}
	c.batch = append(c.batch, &r.Request)
	if r.Op == block.OpWrite {
		c.batchBytes += r.Len
	}
	if len(c.batch) >= batchRequests || c.batchBytes >= batchBytes {
		c.submit()
		c.replies.flush()
	}
}

// submit hands the batch to the device.
func (c *conn) submit() {
	if len(c.batch) == 0 {
		return
	}
	c.srv.submitter.Submit(c.batch)
	clear(c.batch)
	c.batch, c.batchBytes = c.batch[:0], 0
}
