package translog

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"

	"mars/internal/history"
)

// Kind of a record. Values are on disk: append only.
type Kind uint8

// The kinds of records.
const (
	KindWrite         Kind = 1 // payload replaces [Off, Off+Len)
	KindDiscard       Kind = 2 // [Off, Off+Len) reads as zeroes, may be unmapped
	KindWriteZeroes   Kind = 3 // [Off, Off+Len) reads as zeroes, stays allocated
	KindTimelineStart Kind = 4 // payload: history.Timeline as JSON; first record of a timeline and of a segment
	KindTimelineEnd   Kind = 5 // payload: EndOfTimeline as JSON; last record of a timeline
	KindResize        Kind = 6 // Len is the new size of the volume; the new room reads as zeroes
)

// EndOfTimeline is the payload of a timeline end record: the token travels with it.
type EndOfTimeline struct {
	Successor string `json:"successor"` // node id
}

// Sizes in bytes.
const (
	HeaderSize = 96
	// MaxPayload of one record. Longer writes become several records.
	MaxPayload = 1 << 20
	recordUnit = 32 // records begin and end at multiples of this
	maxRecord  = HeaderSize + MaxPayload
)

const (
	recordMagic   = 0x4c52414d // "MARL" read as little-endian
	recordVersion = 1

	flagSegmentStart = 1 << 0

	digestCRC32C = 1
)

// Header is a decoded record header; the layout is in the package comment.
type Header struct {
	Kind       Kind
	Flags      uint8
	LSN        history.LSN
	Timeline   history.TimelineID
	Stamp      int64 // Lamport time in ns
	Off        int64
	Len        int64
	PayloadLen int
	Durable    history.LSN // what was durable at the origin when this was written
	PayloadSum [16]byte
	Chain      history.Digest // the chain including this record
}

// Size returns the length of the whole record.
func (h *Header) Size() int64 { return recordSize(h.PayloadLen) }

// End returns the LSN behind the record.
func (h *Header) End() history.LSN { return h.LSN + history.LSN(h.Size()) }

// Modifies reports whether the record changes the volume.
func (h *Header) Modifies() bool {
	switch h.Kind {
	case KindWrite, KindDiscard, KindWriteZeroes, KindResize:
		return true
	}
	return false
}

func recordSize(payload int) int64 {
	return (int64(HeaderSize+payload) + recordUnit - 1) &^ (recordUnit - 1)
}

// Reasons why bytes are not the expected record.
var (
	errNoRecord = errors.New("no record") // zeroes or bytes that do not look like a record of this place
	errDamaged  = errors.New("damaged record")
	errStranger = fmt.Errorf("%w of this history", errNoRecord) // intact, but it follows other records than these
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the payload digest that a writer must pass: computed outside of all locks.
func Checksum(payload []byte) uint32 { return crc32.Checksum(payload, castagnoli) }

// encode writes the header into b (HeaderSize bytes) and sets h.Chain from the chain before.
func (h *Header) encode(b []byte, prev history.Digest) {
	_ = b[HeaderSize-1]
	le := binary.LittleEndian
	le.PutUint32(b[0:], recordMagic)
	b[4], b[5], b[6], b[7] = recordVersion, byte(h.Kind), h.Flags, digestCRC32C<<4
	le.PutUint64(b[8:], uint64(h.LSN))
	le.PutUint64(b[16:], uint64(h.Timeline))
	le.PutUint64(b[24:], uint64(h.Stamp))
	le.PutUint64(b[32:], uint64(h.Off))
	le.PutUint64(b[40:], uint64(h.Len))
	le.PutUint32(b[48:], uint32(h.PayloadLen))
	le.PutUint32(b[52:], 0)
	le.PutUint64(b[56:], uint64(h.Durable))
	copy(b[64:80], h.PayloadSum[:])
	h.Chain = chain(prev, b)
	copy(b[80:96], h.Chain[:])
	le.PutUint32(b[52:], crc32.Checksum(b[:HeaderSize], castagnoli))
}

// chain hashes the previous chain value and the header, checksum field zero. The payload is in it through its digest.
func chain(prev history.Digest, hdr []byte) (d history.Digest) {
	var in [16 + 80]byte
	copy(in[:16], prev[:])
	copy(in[16:], hdr[:80])
	clear(in[16+52 : 16+56])
	sum := sha256.Sum256(in[:])
	copy(d[:], sum[:])
	return d
}

// decode parses a header at lsn. errNoRecord: nothing that was ever written here; errDamaged: it was, but is not intact.
func decode(b []byte, lsn history.LSN) (Header, error) {
	if len(b) < HeaderSize {
		return Header{}, fmt.Errorf("%w: %d bytes left", errNoRecord, len(b))
	}
	le := binary.LittleEndian
	if le.Uint32(b) != recordMagic {
		return Header{}, fmt.Errorf("%w: no magic", errNoRecord)
	}
	want := le.Uint32(b[52:])
	var c [HeaderSize]byte
	copy(c[:], b)
	clear(c[52:56])
	if crc32.Checksum(c[:], castagnoli) != want {
		return Header{}, fmt.Errorf("%w: header checksum", errDamaged)
	}
	h := Header{
		Kind: Kind(b[5]), Flags: b[6],
		LSN: history.LSN(le.Uint64(b[8:])), Timeline: history.TimelineID(le.Uint64(b[16:])), Stamp: int64(le.Uint64(b[24:])),
		Off: int64(le.Uint64(b[32:])), Len: int64(le.Uint64(b[40:])), PayloadLen: int(le.Uint32(b[48:])),
		Durable: history.LSN(le.Uint64(b[56:])),
	}
	copy(h.PayloadSum[:], b[64:80])
	copy(h.Chain[:], b[80:96])
	if h.LSN != lsn {
		return Header{}, fmt.Errorf("%w: it belongs to LSN %d", errNoRecord, h.LSN)
	}
	return h, h.valid(b[4], b[7])
}

// valid checks what the checksum cannot: that this version understands the record and that its fields are possible.
func (h *Header) valid(version, digest byte) error {
	switch {
	case version != recordVersion:
		return fmt.Errorf("record version %d is not known here; upgrade this node", version)
	case digest != digestCRC32C<<4:
		return fmt.Errorf("record digest %#x is not known here; upgrade this node", digest)
	case h.Kind < KindWrite || h.Kind > KindResize:
		return fmt.Errorf("record kind %d is not known here; upgrade this node", h.Kind)
	case h.PayloadLen < 0 || h.PayloadLen > MaxPayload || h.Off < 0 || h.Len < 0 || h.Off > 1<<62 || h.Len > 1<<62:
		return fmt.Errorf("%w: impossible lengths", errDamaged)
	case h.Kind == KindWrite && int64(h.PayloadLen) != h.Len:
		return fmt.Errorf("%w: payload of %d bytes for a write of %d", errDamaged, h.PayloadLen, h.Len)
	}
	return nil
}

func (h *Header) payloadIntact(p []byte) bool {
	var sum [16]byte
	binary.LittleEndian.PutUint32(sum[:], Checksum(p))
	return sum == h.PayloadSum
}

// parse decodes and verifies one whole record at lsn that follows the chain prev; b may be longer than the record.
func parse(b []byte, lsn history.LSN, prev history.Digest) (Header, []byte, error) {
	h, err := decode(b, lsn)
	if err != nil {
		return Header{}, nil, err
	}
	if chain(prev, b) != h.Chain {
		return Header{}, nil, fmt.Errorf("%w: it does not follow the record before it", errStranger)
	}
	if int64(len(b)) < h.Size() {
		return Header{}, nil, fmt.Errorf("%w: cut off", errDamaged)
	}
	payload := b[HeaderSize : HeaderSize+h.PayloadLen]
	if !h.payloadIntact(payload) {
		return Header{}, nil, fmt.Errorf("%w: payload checksum", errDamaged)
	}
	return h, payload, nil
}

// inTimeline checks that the record belongs to the timeline that is open at the end of the path.
func inTimeline(p *history.Path, h *Header) error {
	if tip := p.Tip().ID; tip == 0 || h.Timeline != tip {
		return fmt.Errorf("record at %d: %w: it belongs to timeline %v, the log is on %v", h.LSN, errDamaged, h.Timeline, tip)
	}
	if p.Successor != "" {
		return fmt.Errorf("record at %d: %w: it follows the end of its timeline", h.LSN, errDamaged)
	}
	return nil
}

// follow extends the path by one verified record.
func follow(p *history.Path, h *Header, payload []byte) error {
	switch h.Kind {
	case KindTimelineStart:
		var t history.Timeline
		if err := json.Unmarshal(payload, &t); err != nil || t.ID == 0 || t.ID != h.Timeline || t.Parent != p.Tip().ID || t.Switch != h.LSN ||
			t.Digest != p.EndDigest || t.Passed != p.Successor {
			return fmt.Errorf("timeline start record at %d: %w: its content does not fit its place", h.LSN, errDamaged)
		}
		p.Push(t)
	case KindTimelineEnd:
		if err := inTimeline(p, h); err != nil {
			return err
		}
		var e EndOfTimeline
		if err := json.Unmarshal(payload, &e); err != nil || e.Successor == "" {
			return fmt.Errorf("timeline end record at %d: %w: no successor", h.LSN, errDamaged)
		}
		p.Successor = e.Successor
	default:
		if err := inTimeline(p, h); err != nil {
			return err
		}
	}
	p.End, p.EndDigest = h.End(), h.Chain
	if h.Modifies() {
		p.LastData = p.End
	}
	return nil
}
