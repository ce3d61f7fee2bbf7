package lab

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"

	"mars/internal/block"
	"mars/internal/block/blocktest"
	"mars/internal/device/nbd"
)

// Disk is a disk of a machine, /dev/lab/NAME there. It is empty when the machine boots for the first time and keeps its contents until the
// lab is closed.
type Disk struct {
	Name string
	Size int64 // bytes
	// Volatile: until a flush, or FUA, what the machine has written is in a cache that Cut loses sector by sector, in part or all of it. The disk
	// is in the lab's memory then. Other disks are files of the host: to them every completed write is for ever.
	Volatile bool
}

// drive is a Disk in its machine.
type drive struct {
	Disk
	path   string          // file, or socket
	device *blocktest.Disk // of a volatile one
	server *nbd.Server     // while the machine runs
	done   chan error
}

func newDrive(d Disk, dir string) (*drive, error) {
	v := &drive{Disk: d, path: filepath.Join(dir, d.Name)}
	if d.Volatile {
		v.device = blocktest.NewDisk(d.Size)
		return v, nil
	}
	f, err := os.Create(v.path)
	if err != nil {
		return nil, err
	}
	return v, errors.Join(f.Truncate(d.Size), f.Close())
}

// plug makes the disk ready and returns QEMU's arguments for it.
func (v *drive) plug() ([]string, error) {
	blockdev := "driver=file,aio=threads,filename=" + v.path
	if v.Volatile {
		l, err := net.Listen("unix", v.path)
		if err != nil {
			return nil, err
		}
		v.server, v.done = nbd.New(nbd.Config{Export: v.Name, Dev: v.device}), make(chan error, 1)
		go func() { v.done <- v.server.Serve(l) }() // ends with unplug
		blockdev = "driver=nbd,server.type=unix,server.path=" + v.path + ",export=" + v.Name
	}
	return []string{
		"-blockdev", fmt.Sprintf("%s,node-name=%s,discard=unmap", blockdev, v.Name),
		"-device", fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%s,write-cache=on", v.Name, v.Name),
	}, nil
}

// unplug ends the service after the end of the machine. What the machine has written stays, flushed or not.
func (v *drive) unplug() error {
	if v.server == nil {
		return nil
	}
	v.server.Abort()
	err := <-v.done
	v.server = nil
	return err
}

// cut is the loss of power: of what was not flushed an arbitrary part, chosen by rng, is lost.
func (v *drive) cut(rng *rand.Rand) {
	if v.Volatile {
		v.device = v.device.Crash(rng)
	}
}

// ReadAt reads what the disk would have after a flush.
func (v *drive) ReadAt(p []byte, off int64) (int, error) {
	if !v.Volatile {
		f, err := os.Open(v.path)
		if err != nil {
			return 0, err
		}
		defer f.Close()
		return f.ReadAt(p, off)
	}
	if off+int64(len(p)) > v.Size {
		return 0, io.ErrUnexpectedEOF
	}
	return len(p), v.device.ReadAt(p, off)
}

var _ block.Device = (*blocktest.Disk)(nil)
