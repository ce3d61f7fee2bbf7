package vfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// OS returns the file system of the operating system. Files are created for this user only (mode 0600, directories 0700): log segments hold
// the users' data.
func OS() FS { return osFS{} }

type osFS struct{}

func (osFS) Create(name string) (File, error) { return openOS(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC) }
func (osFS) Open(name string) (File, error)   { return openOS(name, os.O_RDWR) }
func (osFS) Remove(name string) error         { return os.Remove(name) }
func (osFS) Rename(oldname, newname string) error {
	return os.Rename(oldname, newname)
}

// MkdirAll makes each missing directory and then syncs its parent. The parent of the deepest one that exists is synced as well: a former
// MkdirAll may have been killed between the two steps.
func (o osFS) MkdirAll(dir string) error {
	dir = filepath.Clean(dir)
	parent := filepath.Dir(dir)
	st, err := os.Stat(dir)
	switch {
	case err == nil && !st.IsDir():
		return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
	case err == nil:
		return ignoreUnsyncable(o.SyncDir(parent))
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := o.MkdirAll(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return o.SyncDir(parent)
}

// ignoreUnsyncable drops the errors of syncing a directory that is not ours to sync, like that of a read-only or foreign one.
func ignoreUnsyncable(err error) error {
	for _, is := range []error{fs.ErrPermission, syscall.EINVAL, syscall.EROFS} {
		if errors.Is(err, is) {
			return nil
		}
	}
	return err
}

func (osFS) ReadDir(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (osFS) SyncDir(dir string) (err error) {
	d, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	return d.Sync()
}

func (osFS) Space(dir string) (Space, error) {
	var st unix.Statfs_t
	if err := retryEINTR(func() error { return unix.Statfs(dir, &st) }); err != nil {
		return Space{}, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	unit := st.Frsize
	if unit == 0 {
		unit = st.Bsize
	}
	return Space{Free: int64(st.Bavail) * unit, Total: int64(st.Blocks) * unit}, nil
}

func retryEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
