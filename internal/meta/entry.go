package meta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"

	"mars/internal/lamport"
)

// Limits of one entry, in bytes.
const (
	MaxKey   = 1 << 10
	MaxValue = 256 << 10
	MaxNode  = 64
	// MaxEntry bounds the encoding of one entry.
	MaxEntry = 2 + MaxKey + 1 + MaxNode + 8 + 1 + 4 + MaxValue
)

// ErrInvalid is the condition behind every entry that breaks a limit or cannot be decoded.
var ErrInvalid = errors.New("invalid metadata entry")

// Entry is one version of one key. A deleted entry is a tombstone: it has no value, and a stamp like any other change.
type Entry struct {
	Key string
	// Value is shared between all holders of the entry and must not be modified.
	Value   []byte
	Stamp   lamport.Stamp
	Deleted bool
}

// Compare orders the versions of one key: by stamp, and, should two different versions carry the same stamp (which a correct node never
// makes), by content, so that all nodes choose the same one anyway. A deletion wins over a value.
func (e Entry) Compare(f Entry) int {
	if c := e.Stamp.Compare(f.Stamp); c != 0 {
		return c
	}
	if e.Deleted != f.Deleted {
		if e.Deleted {
			return 1
		}
		return -1
	}
	return bytes.Compare(e.Value, f.Value)
}

// Merge returns the version that wins. It is commutative, associative and idempotent.
func Merge(a, b Entry) Entry {
	if a.Compare(b) < 0 {
		return b
	}
	return a
}

// Check tells whether e keeps the limits; the error wraps ErrInvalid.
func (e Entry) Check() error {
	if err := CheckKey(e.Key); err != nil {
		return err
	}
	switch {
	case len(e.Value) > MaxValue:
		return fmt.Errorf("%w: value of %s has %d bytes, the limit is %d", ErrInvalid, e.Key, len(e.Value), MaxValue)
	case len(e.Stamp.Node) > MaxNode:
		return fmt.Errorf("%w: node id in the stamp of %s has %d bytes, the limit is %d", ErrInvalid, e.Key, len(e.Stamp.Node), MaxNode)
	case e.Deleted && len(e.Value) > 0:
		return fmt.Errorf("%w: %s is deleted and has a value", ErrInvalid, e.Key)
	}
	return nil
}

// CheckKey tells whether key is one: 1 to MaxKey bytes of UTF-8 without control characters. The error wraps ErrInvalid.
func CheckKey(key string) error {
	if len(key) == 0 || len(key) > MaxKey {
		return fmt.Errorf("%w: key has %d bytes, allowed are 1 to %d", ErrInvalid, len(key), MaxKey)
	}
	if !utf8.ValidString(key) {
		return fmt.Errorf("%w: key %q is not UTF-8", ErrInvalid, key)
	}
	for _, r := range key {
		if r < ' ' || r == 0x7f {
			return fmt.Errorf("%w: key %q has control characters", ErrInvalid, key)
		}
	}
	return nil
}

// The encoding of an entry, on the wire and on disk, integers little-endian:
//
//	size  field
//	2     length of the key
//	k     key
//	1     length of the node id
//	n     node id
//	8     time of the stamp, signed, nanoseconds since the epoch
//	1     flags: 1 = deleted, others must be zero
//	4     length of the value
//	v     value
const flagDeleted = 1

// Append adds the encoding of e to dst. e must pass Check.
func (e Entry) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(e.Key)))
	dst = append(dst, e.Key...)
	dst = append(dst, byte(len(e.Stamp.Node)))
	dst = append(dst, e.Stamp.Node...)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(e.Stamp.Time))
	var flags byte
	if e.Deleted {
		flags = flagDeleted
	}
	dst = append(dst, flags)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(e.Value)))
	return append(dst, e.Value...)
}

// Decode reads one entry from the start of b and returns what follows. The entry shares no memory with b and passes Check. The error wraps
// ErrInvalid.
func Decode(b []byte) (e Entry, rest []byte, err error) {
	r := reader{b: b}
	e.Key = string(r.take(int(r.uint16())))
	e.Stamp.Node = string(r.take(int(r.uint8())))
	e.Stamp.Time = int64(r.uint64())
	flags := r.uint8()
	e.Deleted = flags == flagDeleted
	e.Value = bytes.Clone(r.take(int(r.uint32())))
	if r.short {
		return Entry{}, nil, fmt.Errorf("%w: %d bytes are too short", ErrInvalid, len(b))
	}
	if flags&^flagDeleted != 0 {
		return Entry{}, nil, fmt.Errorf("%w: unknown flags %#x in %q: upgrade this node", ErrInvalid, flags, e.Key)
	}
	if err := e.Check(); err != nil {
		return Entry{}, nil, err
	}
	return e, r.b, nil
}

// reader takes fields off the front of b; after the first missing byte it is short and gives zeroes.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if r.short || n > len(r.b) {
		r.short = true
		return nil
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) fixed(n int) []byte {
	if p := r.take(n); p != nil {
		return p
	}
	return make([]byte, 8)
}

func (r *reader) uint8() uint8   { return r.fixed(1)[0] }
func (r *reader) uint16() uint16 { return binary.LittleEndian.Uint16(r.fixed(2)) }
func (r *reader) uint32() uint32 { return binary.LittleEndian.Uint32(r.fixed(4)) }
func (r *reader) uint64() uint64 { return binary.LittleEndian.Uint64(r.fixed(8)) }
