package crashfs

import (
	"fmt"
	"path"
	"syscall"

	"mars/internal/vfs/inject"
)

// OpKind is the kind of an operation.
type OpKind uint8

// The operations of an FS and its files.
const (
	OpCreate OpKind = iota + 1
	OpOpen
	OpRemove
	OpRename
	OpMkdir
	OpReadDir
	OpSyncDir
	OpSpace
	OpRead
	OpWrite
	OpTruncate
	OpAllocate
	OpSync
	OpSyncData
	OpSize
	OpClose
)

var kindNames = [...]string{
	OpCreate: "create", OpOpen: "open", OpRemove: "remove", OpRename: "rename", OpMkdir: "mkdir", OpReadDir: "readdir",
	OpSyncDir: "syncdir", OpSpace: "space", OpRead: "read", OpWrite: "write", OpTruncate: "truncate", OpAllocate: "allocate",
	OpSync: "sync", OpSyncData: "syncdata", OpSize: "size", OpClose: "close",
}

func (k OpKind) String() string { return kindNames[k] }

// Op is one operation.
type Op struct {
	Kind    OpKind
	Name    string // cleaned; of an open file the name by which it was opened
	NewName string // OpRename only
	Off, N  int64  // bytes; OpRead, OpWrite, OpAllocate; the size of OpTruncate is Off
	ino     *inode
}

// String is like "sync: d/pos.tmp" or "rename: d/pos.tmp -> d/pos".
func (o Op) String() string {
	if o.Kind == OpRename {
		return fmt.Sprintf("%s: %s -> %s", o.Kind, o.Name, o.NewName)
	}
	return fmt.Sprintf("%s: %s", o.Kind, o.Name)
}

// Changes tells whether the operation changes something or makes it durable, in contrast to those that only look.
func (o Op) Changes() bool {
	switch o.Kind {
	case OpOpen, OpReadDir, OpSpace, OpRead, OpSize, OpClose:
		return false
	}
	return true
}

// Fault makes operations fail, see inject.Fault. A fault with Drop on OpSync and OpSyncData is Linux's fsync error.
type Fault = inject.Fault[Op]

// Inject adds a fault. Faults end with the process: Crash and Kill remove them.
func (f *FS) Inject(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.plan.Add(fault)
}

// FailAt makes the i-th operation from now fail with err; 0 is the next one.
func (f *FS) FailAt(i int, err error) { f.Inject(Fault{Skip: i, Err: err}) }

// StopAt makes the i-th operation from now and all later ones fail with ErrGone, so that a Crash or Kill after it finds the state between
// two operations.
func (f *FS) StopAt(i int) { f.Inject(Fault{Skip: i, Err: ErrGone, Sticky: true}) }

// ClearFaults removes all faults, except those of FailReads.
func (f *FS) ClearFaults() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.plan.Clear()
}

// Ops is the number of operations so far.
func (f *FS) Ops() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.plan.Seen()
}

// Fired is the number of operations that were made to fail.
func (f *FS) Fired() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.plan.Fired()
}

// FailReads makes every read fail with err that touches [off, off+n) of the file, as a bad spot of the medium does; it outlives a crash.
func (f *FS) FailReads(name string, off, n int64, err error) error {
	return f.tamper(name, func(ino *inode) error {
		ino.bad = append(ino.bad, badRange{off, off + n, err})
		return nil
	})
}

// Corrupt inverts n bytes at off of the file, durably and unnoticed: bit rot.
func (f *FS) Corrupt(name string, off, n int64) error {
	return f.tamper(name, func(ino *inode) error {
		if off < 0 || n < 0 || off > ino.size-n {
			return fmt.Errorf("corrupt %s: %d bytes at %d, but the size is %d: %w", name, n, off, ino.size, syscall.EINVAL)
		}
		ino.data.Corrupt(off, n)
		return nil
	})
}

// tamper does something to a file behind the back of the program, not counted as an operation.
func (f *FS) tamper(name string, do func(*inode) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone {
		return ErrGone
	}
	ino, err := f.names.file(path.Clean(name))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return do(ino)
}

// StartTrace begins a new record of the operations.
func (f *FS) StartTrace() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tracing, f.trace = true, nil
}

// Trace returns the operations since StartTrace, one line each, see Op.String. Failed ones are included.
func (f *FS) Trace() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	lines := make([]string, len(f.trace))
	for i, op := range f.trace {
		lines[i] = op.String()
	}
	return lines
}
