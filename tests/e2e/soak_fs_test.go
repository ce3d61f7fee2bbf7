package e2e

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
)

// fsVolumeSize is the least that mkfs.xfs accepts, and a little.
const fsVolumeSize = 320 * mib

// fsApp is a file system in which files come and go (fileLoad) and a database works (dbLoad), ext4 and xfs by turns.
type fsApp struct {
	s      *soak
	kinds  []fileSystem // the first one is in use
	made   bool         // there is a file system
	rounds int
	dir    string // where it is mounted, "" = nowhere
	files  *fileLoad
	db     *dbLoad
	cancel context.CancelFunc
	wg     sync.WaitGroup
	errs   [2]atomic.Pointer[error]
}

// roundsPerFileSystem is after how many rounds the other kind is made.
const roundsPerFileSystem = 3

func newFSApp(s *soak) *fsApp {
	a := &fsApp{s: s, kinds: []fileSystem{ext4, xfs}, files: newFileLoad(s.seed), db: newDBLoad(s.seed)}
	if s.rnd.IntN(2) == 0 {
		a.turn()
	}
	return a
}

func (a *fsApp) turn()          { a.kinds[0], a.kinds[1] = a.kinds[1], a.kinds[0] }
func (a *fsApp) mark() mark     { return mark{a.files.done.Load(), a.db.done.Load()} }
func (a *fsApp) written() int64 { return a.files.bytes.Load() + a.db.bytes.Load() }

func (a *fsApp) err() error {
	for i := range a.errs {
		if p := a.errs[i].Load(); p != nil {
			return *p
		}
	}
	return nil
}

func (a *fsApp) begin(x *node, must mark, adopt bool) {
	a.s.t.Helper()
	dev := x.device("fs")
	if !a.made {
		a.s.say("mkfs %s", a.kinds[0].name)
		mustRun(a.s.t, append(a.kinds[0].mkfs, dev)...)
		a.made = true
	}
	if adopt {
		a.recoverCopy(dev, must)
	}
	a.dir = a.mount(dev)
	a.fatal(a.files.check(a.dir, must.a, adopt))
	last, err := a.db.check(a.dir, must.b)
	a.fatal(err)
	a.db.resume(last)
	a.fatal(a.files.repair(a.dir))
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	a.fatal(a.db.open(a.dir))
	// Both end with ctx or the first error; joined by join.
	a.wg.Go(func() { a.note(0, a.files.work(ctx, a.dir)) })
	a.wg.Go(func() { a.note(1, a.db.work(ctx)) })
}

func (a *fsApp) note(i int, err error) {
	if err != nil {
		a.errs[i].CompareAndSwap(nil, &err)
	}
}

func (a *fsApp) fatal(err error) {
	a.s.t.Helper()
	if err != nil {
		a.s.t.Fatalf("file system (%s): %v", a.kinds[0].name, err)
	}
}

// join ends the work and waits for that.
func (a *fsApp) join() error {
	if a.cancel == nil {
		return nil
	}
	a.cancel()
	a.wg.Wait()
	a.cancel = nil
	return a.db.close()
}

func (a *fsApp) end() {
	a.s.t.Helper()
	err := a.join()
	if a.err() != nil {
		return // the caller reports it
	}
	a.fatal(err)
	mustRun(a.s.t, "umount", a.dir)
	a.dir = ""
}

func (a *fsApp) crash() {
	a.s.t.Helper()
	until(a.s.t, "files and database notice that their device is gone", func() bool { return a.errs[0].Load() != nil && a.errs[1].Load() != nil })
	a.abandon()
	for i := range a.errs {
		a.errs[i].Store(nil)
	}
}

func (a *fsApp) abandon() {
	a.db.kill()
	_ = a.join() // it has been killed: that is its error
	if a.dir == "" {
		return
	}
	if out, err := exec.Command("umount", "-l", a.dir).CombinedOutput(); err != nil {
		a.s.t.Errorf("umount %s: %v\n%s", a.dir, err, out)
	}
	a.dir = ""
}

// mount mounts a device or an image below the world's directory. An xfs image has the same UUID as its copies.
func (a *fsApp) mount(what string, options ...string) string {
	a.s.t.Helper()
	dir, err := os.MkdirTemp(a.s.w.root, "mnt-")
	if err != nil {
		a.s.t.Fatal(err)
	}
	if a.kinds[0].name == xfs.name {
		options = append(options, "-o", "nouuid")
	}
	mustRun(a.s.t, append(append([]string{"mount"}, options...), what, dir)...)
	return dir
}

// recoverCopy lets a copy of a disk recover as after a power cut, and checks it. The original is left as it is.
func (a *fsApp) recoverCopy(what string, must mark) {
	a.s.t.Helper()
	image := filepath.Join(a.s.w.root, "copy.tmp")
	defer os.Remove(image)
	mustRun(a.s.t, "cp", "--sparse=always", what, image)
	dir := a.mount(image, "-o", "loop")
	_, err := a.db.check(dir, must.b)
	err = errors.Join(err, a.files.check(dir, must.a, false))
	mustRun(a.s.t, "umount", dir)
	a.fatal(err)
	a.fsck(image)
}

func (a *fsApp) fsck(what string) {
	a.s.t.Helper()
	mustRun(a.s.t, append(a.kinds[0].fsck, what)...)
}

func (a *fsApp) prefix(image string, must mark) {
	a.s.t.Helper()
	if a.made {
		a.recoverCopy(image, must)
	}
}

func (a *fsApp) rest(v *soakVolume) {
	a.s.t.Helper()
	a.fsck(v.primary.device(v.name))
	for _, x := range v.members {
		if x != v.primary {
			a.fsck(x.diskOf(v.name)) // as it is: it was unmounted before it was replicated
		}
	}
	a.recoverCopy(v.members[len(v.members)-1].diskOf(v.name), a.mark())
	a.files.settled()
	a.rounds++
	if a.rounds%roundsPerFileSystem == 0 {
		a.turn()
		a.made = false
		a.files.reset()
		a.db.reset()
	}
}
