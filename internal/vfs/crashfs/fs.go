// Package crashfs is a vfs.FS in memory for tests. It implements the durability model of package vfs exactly and lets a test cut the power,
// kill the process, make any operation fail, fill the disk and rot bits. Everything is replayable: the same operations and the same seed
// give the same files.
//
// What a power cut may do:
//   - each 512-byte sector of a file that was changed since the last Sync or SyncData of the file holds the durable contents or those of
//     any later write to it; sectors are independent of each other and never torn;
//   - the size is the durable one or any that the file had since; what lies behind it reads as zeroes when the file grows again;
//   - of the creations, renames and removals in a directory since its last SyncDir any subset has happened. A rename is atomic: the file
//     has one of its names, and a name that is replaced is never missing. A rename between directories is durable with either one's SyncDir.
//
// Directories are durable when MkdirAll returns, as with vfs.OS. The removal of a directory syncs it first and is durable at once. There are
// no links, and directories cannot be renamed.
package crashfs

import (
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/tidwall/btree"

	"mars/internal/vfs"
	"mars/internal/vfs/inject"
)

// ErrGone is what every operation on an FS and its files returns after Crash or Kill: the process that had them open is no more.
var ErrGone = errors.New("process is gone")

// maxFile bounds offsets and sizes in bytes: what a test could ask for by mistake.
const maxFile = 1 << 46

// FS is the file system as one process sees it. Its methods may be called concurrently; replayable is only what happens in a defined order.
type FS struct {
	mu      sync.Mutex
	gone    bool
	names   *namespace
	quota   int64 // bytes; files share it in blocks
	used    int64 // bytes
	plan    inject.Plan[Op]
	tracing bool
	trace   []Op
}

var _ vfs.FS = (*FS)(nil)

// New returns an empty file system of practically unlimited size. The directories "." and "/" exist.
func New() *FS {
	return &FS{names: newNamespace(), quota: maxFile}
}

// SetQuota limits the space of all files together to n bytes: beyond it is ENOSPC. Space that is in use already stays.
func (f *FS) SetQuota(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.quota = n
}

// do runs one operation unless a fault strikes it, with the lock held.
func (f *FS) do(op Op, run func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.begin(op)
	if err == nil {
		err = run()
	}
	return op.wrap(err)
}

func (f *FS) begin(op Op) error {
	if f.gone {
		return ErrGone
	}
	if f.tracing {
		f.trace = append(f.trace, op)
	}
	if fault := f.plan.Next(op); fault != nil {
		if fault.Drop && op.ino != nil {
			op.ino.drop()
		}
		return fault.Err
	}
	return nil
}

// Create implements vfs.FS.
func (f *FS) Create(name string) (vfs.File, error) {
	return f.open(Op{Kind: OpCreate, Name: path.Clean(name)}, f.create)
}

// Open implements vfs.FS.
func (f *FS) Open(name string) (vfs.File, error) {
	return f.open(Op{Kind: OpOpen, Name: path.Clean(name)}, f.names.file)
}

func (f *FS) open(op Op, find func(name string) (*inode, error)) (vfs.File, error) {
	var h *handle
	err := f.do(op, func() error {
		ino, err := find(op.Name)
		if err == nil {
			ino.opens++
			h = &handle{fs: f, ino: ino, name: op.Name}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

func (f *FS) create(name string) (*inode, error) {
	if err := f.names.parentExists(name); err != nil {
		return nil, err
	}
	ino, err := f.names.file(name)
	switch {
	case err == nil:
		f.resize(ino, 0)
	case errors.Is(err, fs.ErrNotExist):
		ino, err = new(inode), nil
		f.names.link(name, ino)
	}
	return ino, err
}

// Remove implements vfs.FS.
func (f *FS) Remove(name string) error {
	name = path.Clean(name)
	return f.do(Op{Kind: OpRemove, Name: name}, func() error {
		ino, err := f.names.lookup(name)
		switch {
		case err != nil:
			return err
		case ino.dir:
			return f.names.removeDir(name)
		}
		f.names.unlink(name, ino)
		f.release(ino)
		return nil
	})
}

// Rename implements vfs.FS.
func (f *FS) Rename(oldname, newname string) error {
	oldname, newname = path.Clean(oldname), path.Clean(newname)
	return f.do(Op{Kind: OpRename, Name: oldname, NewName: newname}, func() error {
		for _, name := range []string{oldname, newname} {
			if err := f.names.parentExists(name); err != nil {
				return err
			}
		}
		ino, err := f.names.file(oldname)
		if err != nil || oldname == newname {
			return err
		}
		replaced, err := f.names.file(newname)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		f.names.rename(oldname, newname, ino)
		if replaced != nil {
			f.release(replaced)
		}
		return nil
	})
}

// MkdirAll implements vfs.FS.
func (f *FS) MkdirAll(dir string) error {
	dir = path.Clean(dir)
	return f.do(Op{Kind: OpMkdir, Name: dir}, func() error { return f.names.mkdirAll(dir) })
}

// ReadDir implements vfs.FS.
func (f *FS) ReadDir(dir string) (list []string, err error) {
	dir = path.Clean(dir)
	err = f.do(Op{Kind: OpReadDir, Name: dir}, func() error {
		if err := f.names.isDir(dir); err != nil {
			return err
		}
		list = f.names.list(dir)
		return nil
	})
	return list, err
}

// SyncDir implements vfs.FS.
func (f *FS) SyncDir(dir string) error {
	dir = path.Clean(dir)
	return f.do(Op{Kind: OpSyncDir, Name: dir}, func() error {
		if err := f.names.isDir(dir); err != nil {
			return err
		}
		f.names.sync(dir)
		return nil
	})
}

// Space implements vfs.FS: what is left of the quota.
func (f *FS) Space(dir string) (s vfs.Space, err error) {
	dir = path.Clean(dir)
	err = f.do(Op{Kind: OpSpace, Name: dir}, func() error {
		s = vfs.Space{Free: max(f.quota-f.used, 0), Total: f.quota}
		return f.names.isDir(dir)
	})
	return s, err
}

// namespace holds the names: how they are, and how they would be after a power cut that loses all it may.
type namespace struct {
	live    btree.Map[string, *inode]
	durable btree.Map[string, *inode]
	pending []dirOp // since the last sync of their directories, oldest first
}

// dirOp is a change of a directory: a creation has no from, a removal no to.
type dirOp struct {
	ino      *inode
	from, to string
}

func newNamespace() *namespace {
	n := new(namespace)
	for _, root := range []string{".", "/"} {
		n.makeDir(root)
	}
	return n
}

func (n *namespace) makeDir(name string) {
	ino := &inode{dir: true}
	n.live.Set(name, ino)
	n.place(ino, name)
}

func (n *namespace) lookup(name string) (*inode, error) {
	if ino, ok := n.live.Get(name); ok {
		return ino, nil
	}
	if err := n.parentExists(name); err != nil {
		return nil, err
	}
	return nil, fs.ErrNotExist
}

func (n *namespace) file(name string) (*inode, error) {
	ino, err := n.lookup(name)
	if err == nil && ino.dir {
		return nil, syscall.EISDIR
	}
	return ino, err
}

func (n *namespace) isDir(name string) error {
	ino, err := n.lookup(name)
	if err == nil && !ino.dir {
		return syscall.ENOTDIR
	}
	return err
}

func (n *namespace) parentExists(name string) error { return n.isDir(path.Dir(name)) }

func (n *namespace) mkdirAll(dir string) error {
	err := n.isDir(dir)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := n.mkdirAll(path.Dir(dir)); err != nil {
		return err
	}
	n.makeDir(dir)
	return nil
}

func (n *namespace) removeDir(name string) error {
	if len(n.list(name)) > 0 || name == "." || name == "/" {
		return syscall.ENOTEMPTY
	}
	n.sync(name)
	ino, _ := n.live.Delete(name)
	n.forget(ino)
	return nil
}

// list returns the names in dir, sorted.
func (n *namespace) list(dir string) []string {
	prefix := dir + "/"
	switch dir {
	case ".":
		prefix = ""
	case "/":
		prefix = "/"
	}
	var names []string
	n.live.Ascend(prefix, func(name string, _ *inode) bool {
		rest, ok := strings.CutPrefix(name, prefix)
		if ok && rest != "" && rest != "." && !strings.Contains(rest, "/") {
			names = append(names, rest)
		}
		return ok
	})
	return names
}

func (n *namespace) link(name string, ino *inode) {
	n.live.Set(name, ino)
	n.pending = append(n.pending, dirOp{ino: ino, to: name})
}

func (n *namespace) unlink(name string, ino *inode) {
	n.live.Delete(name)
	ino.unlinked = true
	n.pending = append(n.pending, dirOp{ino: ino, from: name})
}

func (n *namespace) rename(from, to string, ino *inode) {
	n.live.Delete(from)
	if old, ok := n.live.Set(to, ino); ok {
		old.unlinked = true
	}
	n.pending = append(n.pending, dirOp{ino: ino, from: from, to: to})
}

// sync makes the pending changes of dir durable. They include what has become of a file before it was moved into or out of dir.
func (n *namespace) sync(dir string) {
	var rest []dirOp
	for _, op := range n.pending {
		if !op.in(dir) {
			rest = append(rest, op)
			continue
		}
		n.apply(op)
		rest = slices.DeleteFunc(rest, func(earlier dirOp) bool { return earlier.ino == op.ino })
	}
	n.pending = rest
}

func (o dirOp) in(dir string) bool {
	return o.from != "" && path.Dir(o.from) == dir || o.to != "" && path.Dir(o.to) == dir
}

// apply makes one change durable. Changes before it may have been left out; so a file is taken away from whatever name it has.
func (n *namespace) apply(op dirOp) {
	n.forget(op.ino)
	if op.to != "" {
		n.place(op.ino, op.to)
	}
}

// forget removes the durable name of ino if it has one.
func (n *namespace) forget(ino *inode) {
	if ino.durableName != "" {
		n.durable.Delete(ino.durableName)
		ino.durableName = ""
	}
}

func (n *namespace) place(ino *inode, name string) {
	if old, ok := n.durable.Set(name, ino); ok {
		old.durableName = ""
	}
	ino.durableName = name
}
