package loop

import (
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"mars/internal/block"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// fileNode is the number of the one file below the root.
	fileNode = 2
	// maxTransfer is the largest READ or WRITE in bytes that the kernel may send.
	maxTransfer = 1 << 20
	// maxBackground bounds the requests that the kernel has with us at a time; it is the loop driver's own queue depth. Together with
	// maxTransfer it bounds the memory of the front end to 128 MiB of buffers.
	maxBackground = 128
	// logEvery keeps a broken disk from flooding the log.
	logEvery = time.Second
)

// volumeFS is a FUSE file system with one file in it: the Device. It has no state besides the Device's, so all requests run in parallel.
type volumeFS struct {
	fuse.RawFileSystem // answers ENOSYS to everything that is not below
	dev                block.Device
	name               string
	blockSize          int64
	log                *slog.Logger

	sealed atomic.Bool // the loop device has the file open, nobody else gets it
	dead   atomic.Bool // aborted: the Device is not called any more

	lastLog atomic.Int64 // unix nanoseconds
	results sync.Pool    // *readResult
}

func newVolumeFS(cfg Config, log *slog.Logger) *volumeFS {
	v := &volumeFS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		dev:           cfg.Dev,
		name:          cfg.Name,
		blockSize:     int64(cfg.BlockSize),
		log:           log,
	}
	v.results.New = func() any { return &readResult{pool: &v.results} }
	return v
}

// size is that of the file: whole logical blocks, since the kernel could not address the rest.
func (v *volumeFS) size() int64 { return v.dev.Size() &^ (v.blockSize - 1) }

func (v *volumeFS) String() string { return "mars" }

func (v *volumeFS) attr(node uint64, out *fuse.Attr) fuse.Status {
	switch node {
	case fuse.FUSE_ROOT_ID:
		*out = fuse.Attr{Ino: node, Mode: syscall.S_IFDIR | 0o700, Nlink: 2}
	case fileNode:
		size := uint64(v.size())
		*out = fuse.Attr{Ino: node, Mode: syscall.S_IFREG | 0o600, Nlink: 1, Size: size, Blocks: size / 512, Blksize: 4096}
	default:
		return fuse.ENOENT
	}
	return fuse.OK
}

// Lookup knows one name. Names and attributes are not cached by the kernel, so that a new size is seen at once.
func (v *volumeFS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if h.NodeId != fuse.FUSE_ROOT_ID || name != v.name {
		return fuse.ENOENT
	}
	out.NodeId = fileNode
	return v.attr(fileNode, &out.Attr)
}

func (v *volumeFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return v.attr(in.NodeId, &out.Attr)
}

// Open serves the loop driver's open of the file, and no other.
func (v *volumeFS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if in.NodeId != fileNode {
		return fuse.ENOENT
	}
	if v.sealed.Load() {
		return fuse.EACCES
	}
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES | fuse.FOPEN_NOFLUSH
	return fuse.OK
}

// readResult is a buffer on its way to the kernel. Pooled, because reads are many.
type readResult struct {
	data []byte
	pool *sync.Pool
}

func (r *readResult) Bytes([]byte) ([]byte, fuse.Status) { return r.data, fuse.OK }
func (r *readResult) Size() int                          { return len(r.data) }
func (r *readResult) Done() {
	r.data = nil
	r.pool.Put(r)
}

func (v *volumeFS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if v.dead.Load() {
		return nil, fuse.ENODEV
	}
	// Like any file, this one gives less at its end. The loop device never asks for that.
	off := int64(in.Offset)
	n := max(0, min(int64(in.Size), int64(len(buf)), v.size()-off))
	if err := v.dev.ReadAt(buf[:n], off); err != nil {
		return nil, v.fail("read", off, err)
	}
	r := v.results.Get().(*readResult)
	r.data = buf[:n]
	return r, fuse.OK
}

func (v *volumeFS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if v.dead.Load() {
		return 0, fuse.ENODEV
	}
	off := int64(in.Offset)
	if off > v.size()-int64(len(data)) {
		return 0, fuse.Status(syscall.ENOSPC)
	}
	if err := v.dev.WriteAt(data, off, 0); err != nil {
		return 0, v.fail("write", off, err)
	}
	return uint32(len(data)), fuse.OK
}

func (v *volumeFS) Fsync(_ <-chan struct{}, _ *fuse.FsyncIn) fuse.Status {
	if v.dead.Load() {
		return fuse.ENODEV
	}
	if err := v.dev.Flush(); err != nil {
		return v.fail("flush", 0, err)
	}
	return fuse.OK
}

// Flush comes with every close of a descriptor; it is not a request for durability.
func (v *volumeFS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

// Fallocate is how the loop driver spells discard, and write-zeroes with (punch hole) and without (zero range) leave to deallocate.
func (v *volumeFS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if v.dead.Load() {
		return fuse.ENODEV
	}
	off, n := int64(in.Offset), int64(in.Length)
	var err error
	switch in.Mode &^ unix.FALLOC_FL_KEEP_SIZE {
	case unix.FALLOC_FL_PUNCH_HOLE:
		err = v.dev.Discard(off, n, 0)
	case unix.FALLOC_FL_ZERO_RANGE:
		err = v.dev.WriteZeroes(off, n, block.NoHole)
	default:
		return fuse.Status(syscall.EOPNOTSUPP)
	}
	if err != nil {
		return v.fail("discard", off, err)
	}
	return fuse.OK
}

// StatFs matters because the loop driver takes its discard granularity from here.
func (v *volumeFS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	bsize := max(4096, v.blockSize)
	*out = fuse.StatfsOut{Bsize: uint32(bsize), Frsize: uint32(bsize), Blocks: uint64(v.size() / bsize), NameLen: 255}
	return fuse.OK
}

// fail turns a Device's error into an errno. The errno loses the reason, so this is the place that logs it.
func (v *volumeFS) fail(op string, off int64, err error) fuse.Status {
	now := time.Now().UnixNano()
	if last := v.lastLog.Load(); now-last >= int64(logEvery) && v.lastLog.CompareAndSwap(last, now) {
		v.log.Error("device failed a request", "op", op, "off", off, "err", err)
	}
	return errno(err)
}

func errno(err error) fuse.Status {
	for _, m := range []struct {
		is error
		no syscall.Errno
	}{
		{block.ErrNoSpace, syscall.ENOSPC},
		{block.ErrAlign, syscall.EINVAL},
		{block.ErrRange, syscall.EINVAL},
		{block.ErrReadOnly, syscall.EROFS},
		{block.ErrClosed, syscall.ENODEV},
		{block.ErrNotFast, syscall.EOPNOTSUPP},
	} {
		if errors.Is(err, m.is) {
			return fuse.Status(m.no)
		}
	}
	return fuse.EIO
}
