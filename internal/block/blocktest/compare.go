package blocktest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"mars/internal/block"
)

const compareUnit = 256 << 10

// Hash identifies size and contents of a device. Equal devices of different implementations have equal hashes.
func Hash(dev block.Device) (string, error) {
	h := sha256.New()
	size := dev.Size()
	fmt.Fprintf(h, "%d\n", size)
	buf := make([]byte, compareUnit)
	for off := int64(0); off < size; off += compareUnit {
		p := buf[:min(compareUnit, size-off)]
		if err := dev.ReadAt(p, off); err != nil {
			return "", err
		}
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Equal returns nil when both devices have the same size and contents, else an error that names the first sector that differs.
func Equal(a, b block.Device) error {
	size := a.Size()
	if other := b.Size(); other != size {
		return fmt.Errorf("sizes differ: %d and %d bytes", size, other)
	}
	bufs := [2][]byte{make([]byte, compareUnit), make([]byte, compareUnit)}
	for off := int64(0); off < size; off += compareUnit {
		n := min(compareUnit, size-off)
		for i, dev := range []block.Device{a, b} {
			if err := dev.ReadAt(bufs[i][:n], off); err != nil {
				return err
			}
		}
		if err := sameSectors(bufs[0][:n], bufs[1][:n], off); err != nil {
			return err
		}
	}
	return nil
}

func sameSectors(a, b []byte, off int64) error {
	if bytes.Equal(a, b) {
		return nil
	}
	for i := 0; ; i += block.SectorSize {
		if x, y := a[i:i+block.SectorSize], b[i:i+block.SectorSize]; !bytes.Equal(x, y) {
			return fmt.Errorf("sector at %d differs: it begins with %x and %x", off+int64(i), x[:16], y[:16])
		}
	}
}
