package nbd

import "encoding/binary"

// A reply is a head, and for reads and block status a body: the payload of the request.

// body is the part of the reply behind its head; nil when there is none.
func (r *request) body() []byte {
	if r.err != nil || r.payload == nil {
		return nil
	}
	return r.payload.Data
}

// appendHead appends the head of the reply to r. Only replies that carry data need to be structured, and that only if it was negotiated.
func (r *request) appendHead(b []byte) []byte {
	if e := errnoOf(r.err, r.cmd); e != 0 || !r.structured() {
		return r.appendShort(b, e)
	}
	if r.cmd == cmdBlockStatus {
		return appendChunk(b, chunkBlockStatus, r.cookie, len(r.payload.Data))
	}
	b = appendChunk(b, chunkOffsetData, r.cookie, 8+len(r.payload.Data))
	return binary.BigEndian.AppendUint64(b, uint64(r.Off))
}

// appendShort appends a reply that says nothing but e.
func (r *request) appendShort(b []byte, e errno) []byte {
	if r.structured() {
		b = appendChunk(b, chunkError, r.cookie, 6)
		b = binary.BigEndian.AppendUint32(b, uint32(e))
		return binary.BigEndian.AppendUint16(b, 0) // no message
	}
	b = binary.BigEndian.AppendUint32(b, magicSimple)
	b = binary.BigEndian.AppendUint32(b, uint32(e))
	return binary.BigEndian.AppendUint64(b, r.cookie)
}

func (r *request) structured() bool {
	return r.conn.agreed.structured && (r.cmd == cmdRead || r.cmd == cmdBlockStatus)
}

// appendChunk appends the head of a chunk with n bytes of payload that is the whole reply.
func appendChunk(b []byte, kind uint16, cookie uint64, n int) []byte {
	b = binary.BigEndian.AppendUint32(b, magicStructured)
	b = binary.BigEndian.AppendUint16(b, chunkDone)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, cookie)
	return binary.BigEndian.AppendUint32(b, uint32(n))
}
