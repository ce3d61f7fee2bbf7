package sim

import (
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"

	"mars/internal/history"
	"mars/internal/translog"
)

// forge is the bug behind a canary: of what was fetched only the first record is kept, and if it has a payload that is changed, and the record
// made to look intact. The layout is in the package comment of translog.
func forge(records []byte, prev history.Digest) []byte {
	le := binary.LittleEndian
	n := int(le.Uint32(records[48:]))
	b := append([]byte(nil), records[:(translog.HeaderSize+n+31)&^31]...)
	if b[5] != byte(translog.KindWrite) {
		return records
	}
	b[translog.HeaderSize+30] ^= 1
	le.PutUint32(b[64:], translog.Checksum(b[translog.HeaderSize:translog.HeaderSize+n]))
	le.PutUint32(b[52:], 0)
	in := append(append([]byte(nil), prev[:]...), b[:80]...)
	sum := sha256.Sum256(in)
	copy(b[80:96], sum[:16])
	le.PutUint32(b[52:], crc32.Checksum(b[:translog.HeaderSize], castagnoli))
	return b
}
