package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// fileLoad creates, renames, replaces and deletes files in one directory, one operation after the other; each is durable before the next one
// begins. So what is there after a crash must be the state after some number of operations, where only the next one may be half done.
//
// The journal is a base state and the operations since then. done is written by the worker; everything else is touched only while it rests.
type fileLoad struct {
	rnd   *rand.Rand
	base  fileState
	first uint64 // number of operations that are in base
	ops   []fileOp
	done  atomic.Uint64 // operations that are completed and durable
	bytes atomic.Int64
	next  uint64 // content of the next file
}

// fileState is which content each file has.
type fileState map[string]uint64

type fileOp struct {
	kind     string // create, replace, rename, remove, clean
	name, to string
	content  uint64
	touched  []string // names that may be in any state while it is going on
}

const (
	filesPace = 10 * time.Millisecond
	mostFiles = 80
	maxFile   = 100 << 10
	scratch   = "scratch" // is written without any promise
	temporary = "tmp"
	filesDir  = "files"
)

func newFileLoad(seed uint64) *fileLoad {
	return &fileLoad{rnd: rand.New(rand.NewPCG(seed, 2)), base: fileState{}}
}

func (s fileState) after(op fileOp) {
	switch op.kind {
	case "create", "replace":
		s[op.name] = op.content
	case "rename":
		s[op.to] = s[op.name]
		delete(s, op.name)
	case "remove":
		delete(s, op.name)
	case "clean":
		for _, name := range op.touched {
			delete(s, name)
		}
	}
}

// content is what the file with that number has in it.
func content(n uint64) []byte {
	rnd := rand.New(rand.NewPCG(n, 3))
	p := make([]byte, 8+rnd.IntN(maxFile)&^7)
	for i := 0; i+8 <= len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], rnd.Uint64())
	}
	return p
}

// state is the state after n operations.
func (f *fileLoad) state(n uint64) fileState {
	s := maps.Clone(f.base)
	for _, op := range f.ops[:n-f.first] {
		s.after(op)
	}
	return s
}

// work does one operation after the other until ctx ends or the file system fails.
func (f *fileLoad) work(ctx context.Context, mounted string) error {
	dir := filepath.Join(mounted, filesDir)
	now := f.state(f.first + uint64(len(f.ops)))
	tick := time.NewTicker(filesPace)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		op := f.choose(now)
		f.ops = append(f.ops, op)
		if err := f.do(dir, op); err != nil {
			return fmt.Errorf("%s %s: %w", op.kind, op.name, err)
		}
		now.after(op)
		f.done.Store(f.first + uint64(len(f.ops)))
	}
}

func (f *fileLoad) choose(now fileState) fileOp {
	names := slices.Sorted(maps.Keys(now))
	f.next++
	fresh := fmt.Sprintf("file%d", f.next)
	what := f.rnd.IntN(4)
	switch {
	case len(names) > mostFiles:
		what = 1
	case len(names) < 10:
		what = 0
	}
	if what == 0 {
		return fileOp{kind: "create", name: fresh, content: f.next, touched: []string{fresh}}
	}
	name := names[f.rnd.IntN(len(names))]
	switch what {
	case 1:
		return fileOp{kind: "remove", name: name, touched: []string{name}}
	case 2:
		return fileOp{kind: "rename", name: name, to: fresh, touched: []string{name, fresh}}
	}
	return fileOp{kind: "replace", name: name, content: f.next, touched: []string{name}}
}

func (f *fileLoad) do(dir string, op fileOp) error {
	path := filepath.Join(dir, op.name)
	var err error
	switch op.kind {
	case "create":
		err = f.write(path, op.content)
	case "replace":
		tmp := filepath.Join(dir, temporary)
		if err = f.write(tmp, op.content); err == nil {
			err = os.Rename(tmp, path)
		}
	case "rename":
		err = os.Rename(path, filepath.Join(dir, op.to))
	case "remove":
		err = os.Remove(path)
	}
	if err != nil {
		return err
	}
	if op.content%5 == 1 {
		if err := os.WriteFile(filepath.Join(dir, scratch), content(op.content), 0o600); err != nil {
			return err
		}
	}
	return syncDir(dir)
}

func (f *fileLoad) write(path string, n uint64) error {
	p := content(n)
	f.bytes.Add(int64(len(p)))
	return writeSynced(path, p)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// check proves that the directory is in a state after at least must operations. lossy: what is not there is lost for good.
func (f *fileLoad) check(mounted string, must uint64, lossy bool) error {
	dir := filepath.Join(mounted, filesDir)
	have, err := list(dir)
	if err != nil {
		return err
	}
	last := f.first + uint64(len(f.ops))
	from := min(max(must, f.first), last)
	s := f.state(from)
	why := ""
	for n := from; n <= last; n++ {
		var going fileOp
		if n < last {
			going = f.ops[n-f.first]
		}
		if why = s.differs(have, going); why == "" {
			why, err = s.read(dir, going)
		}
		switch {
		case err != nil:
			return err
		case why == "":
			if lossy {
				f.lose(n)
			}
			return nil
		}
		s.after(going)
	}
	return fmt.Errorf("the files are in no state after %d operations or more, of %d that were begun; compared with the last one: %s", must, last, why)
}

// lose makes the state after n operations the truth: the others have never happened. The numbers go on, so that old marks stay below.
func (f *fileLoad) lose(n uint64) {
	last := f.first + uint64(len(f.ops))
	touched := []string{temporary}
	if n < last {
		touched = append(touched, f.ops[n-f.first].touched...)
	}
	f.base = f.state(n)
	f.base.after(fileOp{kind: "clean", touched: touched})
	f.first, f.ops = last+1, nil
	f.done.Store(f.first)
	f.ops = []fileOp{{kind: "clean", touched: touched}}
}

// repair removes what an interrupted operation may have left half done, as an operation of its own.
func (f *fileLoad) repair(mounted string) error {
	dir := filepath.Join(mounted, filesDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if len(f.ops) == 0 {
		return errors.Join(syncDir(mounted), syncDir(dir))
	}
	op := f.ops[len(f.ops)-1]
	if op.kind != "clean" {
		if f.done.Load() == f.first+uint64(len(f.ops)) {
			return nil // nothing was going on
		}
		op = fileOp{kind: "clean", touched: append([]string{temporary}, op.touched...)}
		f.ops = append(f.ops, op)
	}
	for _, name := range op.touched {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := errors.Join(syncDir(mounted), syncDir(dir)); err != nil {
		return err
	}
	f.done.Store(f.first + uint64(len(f.ops)))
	return nil
}

// settled: everything is everywhere; what was before need not be known any more.
func (f *fileLoad) settled() {
	last := f.first + uint64(len(f.ops))
	f.base, f.first, f.ops = f.state(last), last, nil
}

// reset: the file system is made anew.
func (f *fileLoad) reset() {
	f.settled()
	f.base = fileState{}
}

func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if e.Name() != scratch {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// differs says how the names in a directory differ from the state, except for what is going on; "" if they do not.
func (s fileState) differs(have []string, going fileOp) string {
	loose := append([]string{temporary}, going.touched...)
	var wrong []string
	n := 0
	for _, name := range have {
		if slices.Contains(loose, name) {
			continue
		}
		n++
		if _, ok := s[name]; !ok {
			wrong = append(wrong, "+"+name)
		}
	}
	for name := range s {
		if !slices.Contains(loose, name) && !slices.Contains(have, name) {
			wrong = append(wrong, "-"+name)
		}
	}
	if going.kind == "replace" && !slices.Contains(have, going.name) {
		wrong = append(wrong, "-"+going.name) // a file that is being replaced is always there, old or new
	}
	return strings.Join(wrong, " ")
}

// read says which file does not have its content, "" if all have theirs.
func (s fileState) read(dir string, going fileOp) (string, error) {
	for name, n := range s {
		if going.kind != "replace" && slices.Contains(going.touched, name) {
			continue
		}
		p, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return "", err
		}
		if !bytes.Equal(p, content(n)) && (going.name != name || !bytes.Equal(p, content(going.content))) {
			return fmt.Sprintf("%s does not have its content (%d bytes, want %d)", name, len(p), len(content(n))), nil
		}
	}
	return "", nil
}
