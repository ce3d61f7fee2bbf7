// Package fullsync copies the content of a replica to a newcomer while the application writes, by comparing digests so that what is equal
// does not travel. It knows ranges and digests; what makes the result consistent (replay of the log from before the first to behind the
// last read) is the volume's business.
//
// The target asks, the source answers in order; several questions may be under way. Integers are little-endian:
//
//	Open     JSON OpenRequest        answered by JSON OpenReply or by Refusal
//	Compare  offset 8, length 4, reflected LSN 8, then 16 bytes of digest for every unit of 64 KiB
//	         answered by Units: per unit one code byte, then what the codes announce, in order:
//	         same: nothing; zero: nothing; data: the unit; digests: 16 bytes for every block of 4 KiB of the unit
//	Want     offset 8, length 4 of a unit, bitmap 2 bytes: the blocks whose digests differ; answered by Blocks: their contents
//	Finish   empty                   answered by JSON position: what the copy may contain
//
// The digest is BLAKE3, cut to 128 bits: an attacker who writes to the volume must not be able to make two blocks that are taken for equal, and what is
// equal is read and hashed at both ends and nothing else, so the hash decides how long a sync takes.
package fullsync

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/zeebo/blake3"

	"mars/internal/history"
)

// Frame kinds on a sync connection.
const (
	frameOpen      = 1
	frameOpenReply = 2
	frameRefusal   = 3
	frameCompare   = 4
	frameUnits     = 5
	frameWant      = 6
	frameBlocks    = 7
	frameFinish    = 8
	frameFinished  = 9
)

// Sizes in bytes.
const (
	blockSize  = 4 << 10
	unitSize   = 64 << 10
	chunkSize  = 1 << 20 // of one Compare
	digestSize = 16
)

// What a source says about a unit.
const (
	unitSame    = 0
	unitZero    = 1
	unitData    = 2
	unitDigests = 3
)

// Conn is what a session needs of a connection; *transport.Conn is one.
type Conn interface {
	ReadFrame(buf []byte) (kind byte, payload []byte, err error)
	WriteFrame(kind byte, parts ...[]byte) error
	Flush() error
}

// OpenRequest begins a session.
type OpenRequest struct {
	Resource string `json:"resource"` // id
	// From is up to where the target has replayed; nil for a newcomer that has nothing.
	From *history.Position `json:"from,omitempty"`
}

// OpenReply accepts it.
type OpenReply struct {
	Start history.Path `json:"start"` // where a newcomer's log begins
	Size  int64        `json:"size"`  // of the volume at Start
}

// Codes of a Refusal.
const (
	CodeNotHere      = "not-here"
	CodeInconsistent = "inconsistent" // the source has no consistent image itself
	CodeBehind       = "behind"       // the source is older than what the target has replayed
	CodeDiverged     = "diverged"     // the target's log is not on the source's history
	CodeError        = "error"
)

// Refusal is the source's no.
type Refusal struct {
	Code string `json:"code"`
	Text string `json:"text"`
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("refused by the other end (%s): %s", r.Code, r.Text)
}

type digest [digestSize]byte

func sum(p []byte) (d digest) {
	s := blake3.Sum256(p)
	copy(d[:], s[:])
	return d
}

var (
	zeroUnit    = make([]byte, unitSize)
	zeroUnitSum = sum(zeroUnit)
)

func unitSum(p []byte) digest {
	if len(p) == unitSize && bytes.Equal(p, zeroUnit) {
		return zeroUnitSum // comparing is faster than hashing, and empty volumes are frequent
	}
	return sum(p)
}

// sums returns the digest of every unit of p, one after the other; as of computes it, on all cores.
func sums(p []byte, of func(i int, unit []byte) digest) []byte {
	n := int(units(int64(len(p))))
	out := make([]byte, n*digestSize)
	var next atomic.Int32
	work := func() {
		for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
			d := of(i, p[i*unitSize:min((i+1)*unitSize, len(p))])
			copy(out[i*digestSize:], d[:])
		}
	}
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), n) - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
	return out
}

func isZero(p []byte) bool { return bytes.Equal(p, zeroUnit[:len(p)]) }

// compare is a decoded Compare request.
type compare struct {
	off       int64
	n         int64
	reflected history.LSN
	digests   []byte
}

const compareHeader = 20

func (c *compare) encode() []byte {
	b := make([]byte, compareHeader, compareHeader+len(c.digests))
	binary.LittleEndian.PutUint64(b, uint64(c.off))
	binary.LittleEndian.PutUint32(b[8:], uint32(c.n))
	binary.LittleEndian.PutUint64(b[12:], uint64(c.reflected))
	return append(b, c.digests...)
}

func decodeCompare(b []byte) (compare, error) {
	if len(b) < compareHeader {
		return compare{}, fmt.Errorf("compare request of %d bytes", len(b))
	}
	c := compare{
		off:       int64(binary.LittleEndian.Uint64(b)),
		n:         int64(binary.LittleEndian.Uint32(b[8:])),
		reflected: history.LSN(binary.LittleEndian.Uint64(b[12:])),
		digests:   b[compareHeader:],
	}
	if c.n <= 0 || c.n > chunkSize || c.off < 0 || int64(len(c.digests)) != digestSize*units(c.n) {
		return compare{}, fmt.Errorf("compare request for %d bytes at %d with %d bytes of digests", c.n, c.off, len(c.digests))
	}
	return c, nil
}

func units(n int64) int64 { return (n + unitSize - 1) / unitSize }

// each calls f for every part of size bytes of p, the last one may be shorter.
func each(p []byte, size int, f func(i int, part []byte) error) error {
	for i := 0; i*size < len(p); i++ {
		if err := f(i, p[i*size:min((i+1)*size, len(p))]); err != nil {
			return err
		}
	}
	return nil
}

// want is a decoded Want request.
type want struct {
	off  int64
	n    int64 // of the unit
	bits uint16
}

const wantSize = 14

func (w *want) encode() []byte {
	b := make([]byte, wantSize)
	binary.LittleEndian.PutUint64(b, uint64(w.off))
	binary.LittleEndian.PutUint32(b[8:], uint32(w.n))
	binary.LittleEndian.PutUint16(b[12:], w.bits)
	return b
}

func decodeWant(b []byte) (want, error) {
	if len(b) != wantSize {
		return want{}, fmt.Errorf("want request of %d bytes", len(b))
	}
	w := want{off: int64(binary.LittleEndian.Uint64(b)), n: int64(binary.LittleEndian.Uint32(b[8:])), bits: binary.LittleEndian.Uint16(b[12:])}
	if w.n <= 0 || w.n > unitSize || w.off < 0 {
		return want{}, fmt.Errorf("want request for %d bytes at %d", w.n, w.off)
	}
	return w, nil
}

func writeJSON(c Conn, kind byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return errors.Join(c.WriteFrame(kind, b), c.Flush())
}

// Refuse answers a request with a no.
func Refuse(c Conn, code string, why error) error {
	return writeJSON(c, frameRefusal, Refusal{Code: code, Text: why.Error()})
}
