package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"mars/internal/block"
)

// Block sizes in bytes that the export announces; the maximum is block.MaxRequest.
const (
	minBlock       = block.SectorSize
	preferredBlock = 4096
)

// exportFlags are the transmission flags of an export for this client.
func (c *conn) exportFlags(s *Server) uint16 {
	f := flagHasFlags | flagFlush | flagFUA | flagTrim | flagWriteZeroes | flagFastZero | flagCanMultiConn
	if c.agreed.structured {
		f |= flagDF // a read is always answered with one chunk
	}
	if s.cfg.ReadOnly {
		f |= flagReadOnly
	}
	return f
}

// size is what the client gets to see: whole sectors.
func (s *Server) size() uint64 { return uint64(s.cfg.Dev.Size()) &^ (minBlock - 1) }

// exportName begins the transmission phase the old way, in which an error can only be told by closing the connection.
func (c *conn) exportName(data []byte) error {
	s := c.lobby.find(string(data))
	if s == nil {
		return fmt.Errorf("no export %q: %w", data, errProtocol)
	}
	if err := c.enter(s); err != nil {
		return err
	}
	b := binary.BigEndian.AppendUint64(nil, s.size())
	b = binary.BigEndian.AppendUint16(b, c.exportFlags(s))
	if !c.agreed.noZeroes {
		b = append(b, make([]byte, 124)...)
	}
	_, err := c.nc.Write(b)
	return err
}

// info tells about the export; for optGo it also begins the transmission phase.
func (c *conn) info(opt uint32, data []byte) (bool, error) {
	req, err := parseInfo(data)
	if err != nil {
		return false, c.reply(opt, repErrInvalid, nil)
	}
	s := c.lobby.find(req.name)
	if s == nil {
		return false, c.reply(opt, repErrUnknown, nil)
	}
	if opt == optGo {
		if err := c.enter(s); err != nil {
			return false, c.reply(opt, refusalOf(err), nil)
		}
	}
	_, err = c.nc.Write(c.describe(s, opt, req.kinds))
	return opt == optGo, err
}

func (c *conn) enter(s *Server) error {
	if err := s.enter(c); err != nil {
		return err
	}
	c.lobby.entered(c)
	return nil
}

// refusalOf says how the client is told that it cannot enter.
func refusalOf(err error) uint32 {
	if errors.Is(err, errFull) {
		return repErrPolicy
	}
	return repErrShutdown
}

// describe returns the replies to a successful optInfo or optGo. The block sizes are always told: a client may not go below the minimum.
func (c *conn) describe(s *Server, opt uint32, kinds []uint16) []byte {
	export := binary.BigEndian.AppendUint16(nil, infoExport)
	export = binary.BigEndian.AppendUint64(export, s.size())
	export = binary.BigEndian.AppendUint16(export, c.exportFlags(s))
	b := appendOptReply(nil, opt, repInfo, export)

	if slices.Contains(kinds, infoName) {
		name := binary.BigEndian.AppendUint16(nil, infoName)
		b = appendOptReply(b, opt, repInfo, append(name, s.cfg.Export...))
	}
	sizes := binary.BigEndian.AppendUint16(nil, infoBlockSize)
	sizes = binary.BigEndian.AppendUint32(sizes, minBlock)
	sizes = binary.BigEndian.AppendUint32(sizes, preferredBlock)
	sizes = binary.BigEndian.AppendUint32(sizes, block.MaxRequest)
	b = appendOptReply(b, opt, repInfo, sizes)
	return appendOptReply(b, opt, repAck, nil)
}

func (c *conn) list(data []byte) error {
	if len(data) != 0 {
		return c.reply(optList, repErrInvalid, nil)
	}
	var b []byte
	for _, name := range c.lobby.exports() {
		entry := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
		b = appendOptReply(b, optList, repServer, append(entry, name...))
	}
	_, err := c.nc.Write(appendOptReply(b, optList, repAck, nil))
	return err
}

func (c *conn) structuredReply(data []byte) error {
	if len(data) != 0 {
		return c.reply(optStructuredReply, repErrInvalid, nil)
	}
	c.agreed.structured = true
	return c.reply(optStructuredReply, repAck, nil)
}

// metaContext lists or selects meta contexts. Each selection replaces the one before, also one that fails.
func (c *conn) metaContext(opt uint32, data []byte) error {
	if opt == optSetMetaContext {
		c.agreed.allocation = nil
	}
	req, err := parseMetaContext(data)
	if err != nil || !c.agreed.structured {
		return c.reply(opt, repErrInvalid, nil)
	}
	s := c.lobby.find(req.name)
	if s == nil {
		return c.reply(opt, repErrUnknown, nil)
	}
	var b []byte
	if s.mapper != nil && req.asksForAllocation(opt) {
		if opt == optSetMetaContext {
			c.agreed.allocation = s
		}
		entry := binary.BigEndian.AppendUint32(nil, allocationID)
		b = appendOptReply(b, opt, repMetaContext, append(entry, allocationContext...))
	}
	_, err = c.nc.Write(appendOptReply(b, opt, repAck, nil))
	return err
}

// asksForAllocation: a list may ask for a whole namespace, or with no query for everything; a selection must be exact.
func (req *metaContextRequest) asksForAllocation(opt uint32) bool {
	if slices.Contains(req.queries, allocationContext) {
		return true
	}
	namespace, _, _ := strings.Cut(allocationContext, ":")
	return opt == optListMetaContext && (len(req.queries) == 0 || slices.Contains(req.queries, namespace+":"))
}

// infoRequest is the data of optInfo and optGo.
type infoRequest struct {
	name  string
	kinds []uint16
}

// metaContextRequest is the data of optListMetaContext and optSetMetaContext.
type metaContextRequest struct {
	name    string
	queries []string
}

var errMalformed = errors.New("malformed option data")

func parseInfo(data []byte) (req infoRequest, err error) {
	d := decoder{rest: data}
	req.name = d.string()
	for n := d.uint16(); n > 0 && !d.bad; n-- {
		req.kinds = append(req.kinds, d.uint16())
	}
	return req, d.end()
}

func parseMetaContext(data []byte) (req metaContextRequest, err error) {
	d := decoder{rest: data}
	req.name = d.string()
	for n := d.uint32(); n > 0 && !d.bad; n-- {
		req.queries = append(req.queries, d.string())
	}
	return req, d.end()
}

// decoder takes option data apart; after an error it returns zeroes.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) take(n uint32) []byte {
	if d.bad || uint64(n) > uint64(len(d.rest)) {
		d.bad = true
		return nil
	}
	p := d.rest[:n]
	d.rest = d.rest[n:]
	return p
}

func (d *decoder) uint16() uint16 {
	if p := d.take(2); p != nil {
		return binary.BigEndian.Uint16(p)
	}
	return 0
}

func (d *decoder) uint32() uint32 {
	if p := d.take(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

// string reads a length of 32 bits and that many bytes.
func (d *decoder) string() string { return string(d.take(d.uint32())) }

// end returns an error unless the data has been used up exactly.
func (d *decoder) end() error {
	if d.bad || len(d.rest) != 0 {
		return errMalformed
	}
	return nil
}
