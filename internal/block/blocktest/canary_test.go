package blocktest

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"mars/internal/block"
)

// submitter makes a Disk a block.Submitter that does the work at once.
type submitter struct{ *Disk }

func (s submitter) Submit(reqs []*block.Request) {
	for _, r := range reqs {
		r.Done(s.one(r))
	}
}

func (s submitter) one(r *block.Request) error {
	switch r.Op {
	case block.OpWrite:
		return s.WriteAt(r.Data, r.Off, r.Flags)
	case block.OpWriteZeroes:
		return s.WriteZeroes(r.Off, r.Len, r.Flags)
	case block.OpDiscard:
		return s.Discard(r.Off, r.Len, r.Flags)
	}
	return s.Flush()
}

// wholeHole claims to have nothing allocated.
type wholeHole struct{ *Disk }

func (d wholeHole) Extents(off, n int64, _ int) ([]block.Extent, error) {
	return []block.Extent{{Len: n, Hole: true}}, block.Check(off, n, d.Size())
}

// lazyDiscard leaves the old contents.
type lazyDiscard struct{ *Disk }

func (d lazyDiscard) Discard(off, n int64, _ block.Flags) error { return block.Check(off, n, d.Size()) }

// unaligned takes any offset.
type unaligned struct{ *Disk }

func (d unaligned) ReadAt(p []byte, off int64) error { return d.Disk.ReadAt(p, off/512*512) }

// shifted writes all buffers to the same place.
type shifted struct{ *Disk }

func (d shifted) WriteVecAt(bufs [][]byte, off int64) error {
	for _, b := range bufs {
		if err := d.WriteAt(b, off, 0); err != nil {
			return err
		}
	}
	return nil
}

// late keeps the caller's buffer until the next operation.
type late struct {
	*Disk
	p   []byte
	off int64
}

func (d *late) WriteAt(p []byte, off int64, _ block.Flags) error {
	d.p, d.off = p, off
	return block.Check(off, int64(len(p)), d.Size())
}

func (d *late) ReadAt(p []byte, off int64) error {
	if err := d.Disk.WriteAt(d.p, d.off, 0); err != nil {
		return err
	}
	return d.Disk.ReadAt(p, off)
}

// reordering does the last request first.
type reordering struct{ submitter }

func (s reordering) Submit(reqs []*block.Request) {
	for i := range reqs {
		s.submitter.Submit(reqs[len(reqs)-1-i:][:1])
	}
}

// defects are devices that break the contract, and the part of Conform that has to notice.
var defects = map[string]struct {
	part string
	make func(*Disk) block.Device
}{
	"whole hole":   {"random_operations", func(d *Disk) block.Device { return wholeHole{d} }},
	"lazy discard": {"zeroes", func(d *Disk) block.Device { return lazyDiscard{d} }},
	"unaligned":    {"bounds", func(d *Disk) block.Device { return unaligned{d} }},
	"late":         {"buffer_ownership", func(d *Disk) block.Device { return &late{Disk: d} }},
	"shifted":      {"random_operations", func(d *Disk) block.Device { return shifted{d} }},
	"reordering":   {"submit", func(d *Disk) block.Device { return reordering{submitter{d}} }},
}

const defectEnv = "MARS_TEST_DEFECT"

func TestSubmitterConforms(t *testing.T) {
	t.Parallel()
	Conform(t, submitter{NewDisk(8 << 20)})
}

// TestDefect fails on purpose; TestConformNoticesDefects runs it in a process of its own.
func TestDefect(t *testing.T) {
	name := os.Getenv(defectEnv)
	if name == "" {
		t.Skip("only run by TestConformNoticesDefects")
	}
	Conform(t, defects[name].make(NewDisk(8<<20)))
}

// A gate has to be able to turn red.
func TestConformNoticesDefects(t *testing.T) {
	t.Parallel()
	for name, defect := range defects {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], "-test.run=^TestDefect$", "-test.v")
			cmd.Env = append(os.Environ(), defectEnv+"="+name)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--- FAIL: TestDefect/"+defect.part) {
				t.Errorf("not noticed: %v\n%s", err, out)
			}
		})
	}
}
