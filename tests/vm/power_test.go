package vm

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"mars/internal/control"
	"mars/tests/stamp"
	"mars/tests/vm/lab"
)

const (
	// appSize is what the application uses of the volume: small, so that it overwrites much.
	appSize = 24 * mib
)

var powerDisks = []lab.Disk{{Name: "disk", Size: 64 * mib, Volatile: true}, {Name: "store", Size: 384 * mib, Volatile: true}}

// TestPowerCut: the primary loses its power at random moments, under load, and with it whatever its disks had not flushed. The journal of what
// was acknowledged is kept outside. After each cut the secondary's disk is a state that the volume really had; after the reboot everything is
// there that was flushed or written with FUA; and at the end of each round both are the same.
//
// MARS_TEST_SEED chooses the writes, the moments (in acknowledgements) and what the disks lose. How the machines interleave is not repeated.
func TestPowerCut(t *testing.T) {
	long(t)
	onEachFront(t, func(t *testing.T, f front) {
		w := newWorld(t, 40*time.Minute, lab.Config{Machines: 2, Disks: powerDisks})
		a, b := pair(w, f)
		rng := rand.New(rand.NewPCG(seed(t), 1))
		j := &stamp.Journal{}
		for round := 1; round <= rounds(t, 20) && !t.Failed(); round++ {
			application := a.writes(j, rng)
			application.runs(20 + rng.IntN(400))
			a.loses(rng)
			application.dies()
			t.Logf("round %d: %d writes acknowledged so far", round, j.Acked())
			b.settles()
			b.check(j, "/dev/lab/disk", 0)
			if rng.IntN(4) == 0 { // once more, in the middle of recovery
				a.boots(f)
				a.loses(rng)
			}
			a.boots(f)
			a.primary()
			j.Adopt(application.recovers())
			b.follows(a)
			b.check(j, "/dev/lab/disk", j.Now())
		}
	})
}

// TestPowerCutFileSystem: the same with files on ext4. A file whose fsync was acknowledged is there with its contents, and the file system is
// sound once it has recovered.
func TestPowerCutFileSystem(t *testing.T) {
	long(t)
	onEachFront(t, func(t *testing.T, f front) {
		w := newWorld(t, 20*time.Minute, lab.Config{Machines: 2, Disks: powerDisks})
		a, b := pair(w, f)
		rng := rand.New(rand.NewPCG(seed(t), 2))
		a.sh("mkfs.ext4 -q %s; mount %s /srv; mkdir /srv/d; sync", device, device)
		kept := map[string]string{}
		for round := range rounds(t, 5) {
			files := a.keepsFiles(round, kept)
			files.runs(5 + rng.IntN(60))
			a.loses(rng)
			files.end()
			a.boots(f)
			a.primary()
			a.sh("mount %s /srv; umount /srv; e2fsck -fn %s; mount %s /srv", device, device, device)
			checkFiles(t, a, kept)
		}
		a.sh("umount /srv")
		b.follows(a)
		a.sh("marsadm secondary %s", res)
		b.sh("marsadm primary %s", res)
		b.primary()
		b.sh("e2fsck -fn %s; mount %s /srv", device, device)
		checkFiles(t, b, kept)
	})
}

// rounds is how many there are: MARS_VM_ROUNDS, or the usual number.
func rounds(t *testing.T, usual int) int {
	t.Helper()
	return int(number(t, "MARS_VM_ROUNDS", uint64(usual)))
}

func number(t *testing.T, name string, usual uint64) uint64 {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return usual
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

func seed(t *testing.T) uint64 {
	t.Helper()
	s := number(t, "MARS_TEST_SEED", 1)
	t.Logf("MARS_TEST_SEED=%d", s)
	return s
}

// loses takes the node's power away.
func (x *node) loses(rng *rand.Rand) {
	x.w.t.Helper()
	if err := x.Cut(rng); err != nil {
		x.w.t.Fatal(err)
	}
}

// boots starts the machine again, and marsd on what is left of its disks.
func (x *node) boots(f front) {
	x.w.t.Helper()
	if err := x.Boot(x.w.ctx); err != nil {
		x.w.t.Fatal(err)
	}
	x.starts(f)
}

// settles waits until a secondary has replayed all that it has, and stops.
func (x *node) settles() {
	x.w.t.Helper()
	x.awaitSelf("it has replayed all that it has", func(m control.Member) bool {
		return m.Consistent && m.AppliedLSN == m.EndLSN && m.ReplState == control.ReplPrimaryUnreach
	})
}

// check reads which writes are on a device, and fails the test unless that is a state of the volume with all that was acknowledged until must.
func (x *node) check(j *stamp.Journal, dev string, must stamp.Time) stamp.Image {
	x.w.t.Helper()
	img := x.image(dev)
	if err := j.Check(img, must); err != nil {
		x.w.t.Fatalf("%s: %s: %v", x.Name, dev, err)
	}
	return img
}

func checkFiles(t *testing.T, x *node, kept map[string]string) {
	t.Helper()
	sums := parseSums(x.sh("cd /srv/d; find . -type f -name '[0-9]*' -print0 | xargs -0r md5sum"))
	for name, want := range kept {
		if got := sums["./"+name]; got != want {
			t.Errorf("%s: file %s: want %s, have %q", x.Name, name, want, got)
		}
	}
	if len(kept) == 0 {
		t.Error("nothing was written")
	}
	t.Logf("%s has all %d files", x.Name, len(kept))
}
