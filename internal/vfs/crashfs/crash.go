package crashfs

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"

	"mars/internal/block/sectors"
)

// Crash cuts the power and returns the file system after it: of what was not durable an allowed subset is left, chosen by rng. f and its
// files are gone (ErrGone), whatever the outcome; Clone f before to try several.
func (f *FS) Crash(rng *rand.Rand) *FS {
	return f.crash(fate{data: sectors.Random(rng), sizes: sectors.Random(rng), names: sectors.Random(rng)})
}

// CrashLosingAll is a Crash that loses everything that it may lose.
func (f *FS) CrashLosingAll() *FS {
	return f.crash(fate{data: sectors.Lost, sizes: sectors.Lost, names: sectors.Lost})
}

// CrashKeepingAll is a Crash that by luck loses nothing but what a failed sync has dropped.
func (f *FS) CrashKeepingAll() *FS {
	return f.crash(fate{data: sectors.Kept, sizes: sectors.Kept, names: sectors.Kept})
}

// Kill is kill -9 of the process: everything that was written stays, durable or not as it was. f and its files are gone (ErrGone).
func (f *FS) Kill() *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.successor()
	n.names.live.Scan(func(_ string, ino *inode) bool {
		ino.opens = 0
		return true
	})
	n.recount()
	return n
}

// Clone returns an independent copy, with all that is not durable, but without open files, faults and trace.
func (f *FS) Clone() *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := &FS{names: f.names.clone(), quota: f.quota}
	n.recount()
	return n
}

// fate says what survives of each kind of effect.
type fate struct{ data, sizes, names sectors.Choose }

// successor ends f and returns the FS that takes over its files.
func (f *FS) successor() *FS {
	n := &FS{names: f.names, quota: f.quota, gone: f.gone}
	f.gone = true
	return n
}

func (f *FS) crash(fate fate) *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.successor()
	if n.gone {
		return n // a process that was gone before has no files to lose
	}
	n.names = n.names.crash(fate.names)
	n.names.live.Scan(func(_ string, ino *inode) bool { // in the order of the names
		ino.crash(fate)
		return true
	})
	n.recount()
	return n
}

func (n *namespace) crash(choose sectors.Choose) *namespace {
	for _, op := range n.pending {
		if choose(2) == 1 {
			n.apply(op)
		}
	}
	after := &namespace{}
	n.durable.Scan(func(name string, ino *inode) bool {
		ino.unlinked, ino.opens = false, 0
		after.live.Set(name, ino)
		after.durable.Set(name, ino)
		return true
	})
	return after
}

func (ino *inode) crash(fate fate) {
	ino.data.Crash(fate.data)
	largest := ino.size
	switch {
	case ino.sizeLost:
		ino.size = ino.sizes[0]
	case len(ino.sizes) > 0:
		if pick := fate.sizes(len(ino.sizes) + 1); pick < len(ino.sizes) {
			ino.size = ino.sizes[pick]
		}
	}
	for _, s := range ino.sizes {
		largest = max(largest, s)
	}
	ino.sizes, ino.sizeLost = nil, false
	ino.data.Zero(ino.size, largest-ino.size)
	ino.data.Sync()
	ino.blocks.cut(roundUp(ino.size))
}

// recount computes the space in use.
func (f *FS) recount() {
	f.used = 0
	f.names.live.Scan(func(_ string, ino *inode) bool {
		f.used += ino.blocks.covered(0, maxFile)
		return true
	})
}

func (n *namespace) clone() *namespace {
	copies := map[*inode]*inode{}
	of := func(ino *inode) *inode {
		if copies[ino] == nil {
			copies[ino] = ino.clone()
		}
		return copies[ino]
	}
	c := new(namespace)
	n.live.Scan(func(name string, ino *inode) bool {
		c.live.Set(name, of(ino))
		return true
	})
	n.durable.Scan(func(name string, ino *inode) bool {
		c.durable.Set(name, of(ino))
		return true
	})
	for _, op := range n.pending {
		c.pending = append(c.pending, dirOp{of(op.ino), op.from, op.to})
	}
	return c
}

func (ino *inode) clone() *inode {
	c := *ino
	c.opens = 0
	c.data = *ino.data.Clone()
	c.sizes = append([]int64(nil), ino.sizes...)
	c.blocks = append(spans(nil), ino.blocks...)
	c.bad = append([]badRange(nil), ino.bad...)
	return &c
}

// Digest identifies the names, sizes and contents of all files as a program sees them now.
func (f *FS) Digest() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := sha256.New()
	f.names.live.Scan(func(name string, ino *inode) bool {
		fmt.Fprintf(h, "%q %v %d\n", name, ino.dir, ino.size)
		ino.data.Digest(h)
		return true
	})
	return hex.EncodeToString(h.Sum(nil))
}
