package sim

import (
	"encoding/binary"
	"hash/crc32"

	"mars/internal/block"
)

// Every sector that an application writes says who it is: resource, number of the write, and place. So an image alone tells which prefix of
// the writes it is, and whether anything in it is torn or misplaced.
//
//	0   4  magic
//	4   4  resource
//	8   8  number of the write, from 1; the content that a disk had before has numbers from `foreign` on
//	16  8  sector
//	24     filler made from all that
//	508 4  CRC32C
const (
	sectorMagic = 0x53494d31
	foreign     = uint64(1) << 40
	garbage     = ^uint64(0)
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// label is what a sector says.
type label struct {
	res uint32
	seq uint64
}

func (l label) fill(p []byte, sector int64) {
	le := binary.LittleEndian
	le.PutUint32(p, sectorMagic)
	le.PutUint32(p[4:], l.res)
	le.PutUint64(p[8:], l.seq)
	le.PutUint64(p[16:], uint64(sector))
	x := (l.seq+1)*0x9e3779b97f4a7c15 ^ uint64(sector)
	for i := 24; i < 504; i += 8 {
		le.PutUint64(p[i:], x)
	}
	le.PutUint32(p[504:], 0)
	le.PutUint32(p[508:], crc32.Checksum(p[:508], castagnoli))
}

// payload returns the bytes of the write seq of n bytes at off.
func payload(l label, off, n int64) []byte {
	p := make([]byte, n)
	for i := int64(0); i < n; i += block.SectorSize {
		l.fill(p[i:i+block.SectorSize], (off+i)/block.SectorSize)
	}
	return p
}

// readSector returns the number of the write that a sector stems from: 0 for zeroes, garbage for what nobody wrote here.
func readSector(p []byte, res uint32, sector int64) uint64 {
	le := binary.LittleEndian
	if le.Uint32(p) != sectorMagic {
		for _, b := range p {
			if b != 0 {
				return garbage
			}
		}
		return 0
	}
	if le.Uint32(p[508:]) != crc32.Checksum(p[:508], castagnoli) || le.Uint64(p[16:]) != uint64(sector) {
		return garbage
	}
	seq := le.Uint64(p[8:])
	if of := le.Uint32(p[4:]); of != res {
		return 1<<63 | uint64(of)<<48 | seq // of a resource that had the disk before
	}
	return seq
}

// image is the content of a volume: the write that each sector stems from.
type image []uint64

func readImage(dev interface {
	ReadAt(p []byte, off int64) error
}, res uint32, size int64) (image, error) {
	img := make(image, size/block.SectorSize)
	buf := make([]byte, size)
	if err := dev.ReadAt(buf, 0); err != nil {
		return nil, err
	}
	for i := range img {
		img[i] = readSector(buf[i*block.SectorSize:(i+1)*block.SectorSize], res, int64(i))
	}
	return img, nil
}

// differs returns the first sector in which the images differ, -1 if there is none.
func (a image) differs(b image) int {
	for i := range max(len(a), len(b)) {
		if i >= len(a) || i >= len(b) || a[i] != b[i] {
			return i
		}
	}
	return -1
}
