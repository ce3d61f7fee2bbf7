package cluster

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"mars/internal/meta"
)

// Frames of class Meta, integers little-endian:
//
//	hello    JSON {"proto": 1}
//	digest   meta.Buckets sums of 16 bytes
//	entries  4 bytes count, then that many entries (meta.Entry.Append)
//	ping     8 bytes, what the sender's clock shows in nanoseconds since the epoch
//	request  8 bytes nonce, 1 byte what: 1 = sync, 2 = leave
//	reply    8 bytes nonce, then what went wrong as text; empty for success
const (
	kindHello   byte = 1
	kindDigest  byte = 2
	kindEntries byte = 3
	kindPing    byte = 4
	kindRequest byte = 5
	kindReply   byte = 6
)

type requestKind byte

const (
	// requestSync: make what I have sent durable.
	requestSync requestKind = 1
	// requestLeave: delete me.
	requestLeave requestKind = 2
)

const (
	proto = 1
	// chunk is when a frame of entries is full; the last entry may go beyond.
	chunk = 256 << 10
	// minEntry is the smallest encoding of an entry.
	minEntry = 2 + 1 + 1 + 8 + 1 + 4
	// maxProblem bounds the text in a reply.
	maxProblem = 4 << 10
)

var errProtocol = errors.New("protocol error")

type hello struct {
	Proto int `json:"proto"`
}

func encodeHello() []byte {
	data, _ := json.Marshal(hello{Proto: proto}) // cannot fail
	return data
}

func decodeHello(b []byte) (hello, error) {
	var h hello
	if err := json.Unmarshal(b, &h); err != nil {
		return hello{}, fmt.Errorf("%w: greeting: %w", errProtocol, err)
	}
	if h.Proto < 1 {
		return hello{}, fmt.Errorf("%w: greeting: version %d", errProtocol, h.Proto)
	}
	return h, nil
}

func encodeDigest(d meta.Digest) []byte {
	out := make([]byte, 0, len(d)*len(d[0]))
	for _, sum := range d {
		out = append(out, sum[:]...)
	}
	return out
}

func decodeDigest(b []byte) (d meta.Digest, err error) {
	if len(b) != len(d)*len(d[0]) {
		return d, fmt.Errorf("%w: digest of %d bytes", errProtocol, len(b))
	}
	for i := range d {
		b = b[copy(d[i][:], b):]
	}
	return d, nil
}

// encodeEntries encodes as many entries as fit in one frame and returns the others.
func encodeEntries(entries []meta.Entry) (payload []byte, rest []meta.Entry) {
	payload = make([]byte, 4, 1024)
	n := 0
	for n < len(entries) && len(payload) < chunk {
		payload = entries[n].Append(payload)
		n++
	}
	binary.LittleEndian.PutUint32(payload, uint32(n))
	return payload, entries[n:]
}

func decodeEntries(b []byte) ([]meta.Entry, error) {
	if len(b) < 4 {
		return nil, fmt.Errorf("%w: entries of %d bytes", errProtocol, len(b))
	}
	n := int(binary.LittleEndian.Uint32(b))
	b = b[4:]
	if n > len(b)/minEntry {
		return nil, fmt.Errorf("%w: %d entries in %d bytes", errProtocol, n, len(b))
	}
	entries := make([]meta.Entry, n)
	for i := range entries {
		var err error
		if entries[i], b, err = meta.Decode(b); err != nil {
			return nil, fmt.Errorf("%w: %w", errProtocol, err)
		}
	}
	if len(b) > 0 {
		return nil, fmt.Errorf("%w: %d bytes after the last entry", errProtocol, len(b))
	}
	return entries, nil
}

func encodePing(now time.Time) []byte {
	return binary.LittleEndian.AppendUint64(nil, uint64(now.UnixNano()))
}

func decodePing(b []byte) (time.Time, error) {
	if len(b) != 8 {
		return time.Time{}, fmt.Errorf("%w: ping of %d bytes", errProtocol, len(b))
	}
	return time.Unix(0, int64(binary.LittleEndian.Uint64(b))), nil
}

func encodeRequest(nonce uint64, what requestKind) []byte {
	return append(binary.LittleEndian.AppendUint64(nil, nonce), byte(what))
}

func decodeRequest(b []byte) (nonce uint64, what requestKind, err error) {
	if len(b) != 9 {
		return 0, 0, fmt.Errorf("%w: request of %d bytes", errProtocol, len(b))
	}
	what = requestKind(b[8])
	if what != requestSync && what != requestLeave {
		return 0, 0, fmt.Errorf("%w: unknown request %d", errProtocol, what)
	}
	return binary.LittleEndian.Uint64(b), what, nil
}

func encodeReply(nonce uint64, problem error) []byte {
	out := binary.LittleEndian.AppendUint64(nil, nonce)
	if problem != nil {
		text := problem.Error()
		out = append(out, text[:min(len(text), maxProblem)]...)
	}
	return out
}

// decodeReply returns what the peer could not do as problem.
func decodeReply(b []byte) (nonce uint64, problem, err error) {
	if len(b) < 8 || len(b) > 8+maxProblem {
		return 0, nil, fmt.Errorf("%w: reply of %d bytes", errProtocol, len(b))
	}
	nonce = binary.LittleEndian.Uint64(b)
	if len(b) > 8 {
		problem = fmt.Errorf("the other node: %s", b[8:])
	}
	return nonce, problem, nil
}
