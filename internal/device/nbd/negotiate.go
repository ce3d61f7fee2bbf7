package nbd

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// maxOptionLen bounds the data of one option in bytes: names have at most 4 KiB, and nobody needs more than a few meta context queries.
const maxOptionLen = 64 << 10

const handshakeTimeout = 10 * time.Second

// errAborted: the client ended the negotiation in order.
var errAborted = errors.New("client aborted the negotiation")

// negotiate is the handshake. When it returns nil, the client is registered as a user and the transmission phase begins.
func (c *conn) negotiate() error {
	if err := c.raw.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return fmt.Errorf("set handshake deadline: %w", err)
	}
	if err := c.greet(); err != nil {
		return fmt.Errorf("greet: %w", err)
	}
	for {
		opt, data, err := c.readOption()
		if err != nil {
			return fmt.Errorf("read option: %w", err)
		}
		done, err := c.option(opt, data)
		if err != nil {
			return fmt.Errorf("option %d: %w", opt, err)
		}
		if done {
			return c.raw.SetDeadline(time.Time{})
		}
	}
}

func (c *conn) greet() error {
	b := binary.BigEndian.AppendUint64(nil, magicInit)
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = binary.BigEndian.AppendUint16(b, flagFixedNewstyle|flagNoZeroes)
	if _, err := c.nc.Write(b); err != nil {
		return err
	}
	b, err := c.in.read(4)
	if err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(b)
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return fmt.Errorf("unknown client flags %#x: %w", flags, errProtocol)
	}
	c.agreed.noZeroes = flags&flagNoZeroes != 0
	return nil
}

func (c *conn) readOption() (opt uint32, data []byte, err error) {
	b, err := c.in.read(optionHeaderLen)
	if err != nil {
		return 0, nil, err
	}
	opt, n := binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:])
	if binary.BigEndian.Uint64(b) != magicOption {
		return 0, nil, fmt.Errorf("bad option magic: %w", errProtocol)
	}
	if n > maxOptionLen {
		return 0, nil, fmt.Errorf("option %d of %d bytes: %w", opt, n, errProtocol)
	}
	data = make([]byte, n)
	return opt, data, c.in.readFull(data)
}

// option handles one option; it returns true when the transmission phase begins.
func (c *conn) option(opt uint32, data []byte) (bool, error) {
	if opt == optAbort {
		_ = c.reply(opt, repAck, nil) // the client need not wait for it
		return false, errAborted
	}
	if _, required := c.lobby.security(); required && !c.agreed.tls && opt != optStartTLS {
		return false, c.refuseWithoutTLS(opt)
	}
	switch opt {
	case optExportName:
		return true, c.exportName(data)
	case optGo, optInfo:
		return c.info(opt, data)
	case optList:
		return false, c.list(data)
	case optStartTLS:
		return false, c.startTLS(data)
	case optStructuredReply:
		return false, c.structuredReply(data)
	case optListMetaContext, optSetMetaContext:
		return false, c.metaContext(opt, data)
	}
	return false, c.reply(opt, repErrUnsup, nil)
}

// refuseWithoutTLS: the old option has no error reply, the connection must be closed.
func (c *conn) refuseWithoutTLS(opt uint32) error {
	if opt == optExportName {
		return fmt.Errorf("export asked for without TLS: %w", errProtocol)
	}
	return c.reply(opt, repErrTLSReqd, nil)
}

// reply sends one reply to an option.
func (c *conn) reply(opt, kind uint32, data []byte) error {
	_, err := c.nc.Write(appendOptReply(nil, opt, kind, data))
	return err
}

func appendOptReply(b []byte, opt, kind uint32, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, magicOptReply)
	b = binary.BigEndian.AppendUint32(b, opt)
	b = binary.BigEndian.AppendUint32(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// startTLS goes on over TLS, from the start: nothing that was said in the clear counts afterwards, neither options that were agreed upon nor
// anything that somebody in between may have appended to the option.
func (c *conn) startTLS(data []byte) error {
	cfg, _ := c.lobby.security()
	switch {
	case cfg == nil:
		return c.reply(optStartTLS, repErrUnsup, nil)
	case c.agreed.tls || len(data) != 0:
		return c.reply(optStartTLS, repErrInvalid, nil)
	case c.in.buffered() != 0:
		return fmt.Errorf("data behind STARTTLS: %w", errProtocol)
	}
	if err := c.reply(optStartTLS, repAck, nil); err != nil {
		return err
	}
	nc := tls.Server(c.raw, cfg)
	if err := nc.Handshake(); err != nil { // bounded by the deadline of the connection
		return fmt.Errorf("TLS handshake: %w", err)
	}
	c.nc, c.in = nc, newInput(nc)
	c.agreed = agreed{tls: true, noZeroes: c.agreed.noZeroes}
	return nil
}
