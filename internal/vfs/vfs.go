// Package vfs is the file system as the storage code sees it: only the operations it needs, with the durability points explicit, so that
// tests can fail any operation and simulate a power cut between any two of them.
//
// Durability model (that of POSIX and of Linux file systems in their default mode): file contents are durable after Sync or SyncData of the
// file (SyncData also covers the file size); the existence and name of a file are durable after SyncDir of its directory.
package vfs

import (
	"errors"
	"fmt"
	"path/filepath"
)

// File is an open file. Offsets are bytes. ReadAt and WriteAt follow io.ReaderAt and io.WriterAt and may be called concurrently.
type File interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	// WritevAt writes the buffers one after the other at off, with one system call where the platform can.
	WritevAt(bufs [][]byte, off int64) (int, error)
	Truncate(size int64) error
	// Allocate reserves space for [off, off+n) and extends the size to at least off+n. ErrNoSpace (syscall.ENOSPC) when there is none.
	Allocate(off, n int64) error
	// Sync and SyncData: when one fails, what was written before may be lost although it can still be read, and a second call would
	// succeed without it. The error is reported once: of two concurrent calls one may succeed.
	Sync() error
	SyncData() error
	Size() (int64, error)
	Close() error
}

// FS is a file system. Names are slash-separated paths. Errors satisfy errors.Is with fs.ErrNotExist and fs.ErrExist where they apply and
// with syscall.ENOSPC and syscall.EIO.
type FS interface {
	// Create makes a new empty file open for reading and writing; an existing file is truncated.
	Create(name string) (File, error)
	// Open opens an existing file for reading and writing.
	Open(name string) (File, error)
	Remove(name string) error
	Rename(oldname, newname string) error
	// MkdirAll makes dir and its parents where they are missing. They are durable when it returns.
	MkdirAll(dir string) error
	// ReadDir returns the names in dir, sorted.
	ReadDir(dir string) ([]string, error)
	// SyncDir makes the names in dir durable, and the absence of those that were removed.
	SyncDir(dir string) error
	// Space returns free (for this process) and total bytes of the file system that holds dir.
	Space(dir string) (Space, error)
}

// Space is the room on a file system in bytes.
type Space struct{ Free, Total int64 }

// ReadFile returns the whole content of name, at most max bytes of it: a larger file is an error.
func ReadFile(fs FS, name string, max int64) (data []byte, err error) {
	f, err := fs.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	n, err := f.Size()
	if err != nil {
		return nil, err
	}
	if n > max {
		return nil, fmt.Errorf("%s: %d bytes, more than the limit of %d", name, n, max)
	}
	data = make([]byte, n)
	if n == 0 {
		return data, nil
	}
	_, err = f.ReadAt(data, 0)
	return data, err
}

// WriteFileAtomic replaces name with data. After a crash the file holds either the old or the new content, never a mixture; when nil is
// returned the new content is durable. A failed sync must not be retried: the caller stops what depends on it.
func WriteFileAtomic(fs FS, name string, data []byte) error {
	tmp := name + ".tmp"
	if err := writeSynced(fs, tmp, data); err != nil {
		return fmt.Errorf("write %s: %w", tmp, err)
	}
	if err := fs.Rename(tmp, name); err != nil {
		return fmt.Errorf("publish %s: %w", name, err)
	}
	if err := fs.SyncDir(filepath.Dir(name)); err != nil {
		return fmt.Errorf("sync directory of %s: %w", name, err)
	}
	return nil
}

func writeSynced(fs FS, name string, data []byte) (err error) {
	f, err := fs.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.WriteAt(data, 0); err != nil {
		return err
	}
	return f.Sync()
}
