package crashfs

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"

	"mars/internal/vfs"
)

// script is a sequence of operations that must succeed.
type script struct {
	t  *testing.T
	fs *FS
}

func (s script) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s script) file(f vfs.File, err error) vfs.File {
	s.t.Helper()
	s.must(err)
	return f
}

// write writes one sector per letter at the given sector; '.' stands for zeroes.
func (s script) write(f vfs.File, sector int64, letters string) {
	s.t.Helper()
	_, err := f.WriteAt(data(letters), sector*512)
	s.must(err)
}

// durable makes a file with the given sectors that no power cut can take away.
func (s script) durable(name, letters string) vfs.File {
	s.t.Helper()
	f := s.file(s.fs.Create(name))
	s.write(f, 0, letters)
	s.must(f.Sync())
	s.must(s.fs.SyncDir(path.Dir(name)))
	return f
}

func data(letters string) []byte {
	var b []byte
	for _, c := range []byte(strings.ReplaceAll(letters, ".", "\x00")) {
		b = append(b, bytes.Repeat([]byte{c}, 512)...)
	}
	return b
}

// show renders all files, one letter per sector, like "a=AB. d/b=".
func show(t *testing.T, f *FS, dir string) string {
	t.Helper()
	list, err := f.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, name := range list {
		full := path.Join(dir, name)
		switch content, err := vfs.ReadFile(f, full, 1<<20); {
		case errors.Is(err, syscall.EISDIR):
			words = append(words, show(t, f, full))
		case err != nil:
			t.Fatal(err)
		default:
			words = append(words, full+"="+letters(t, content))
		}
	}
	return strings.Join(words, " ")
}

func letters(t *testing.T, content []byte) string {
	t.Helper()
	var s strings.Builder
	for sector := range slices.Chunk(content, 512) {
		if !bytes.Equal(sector, bytes.Repeat(sector[:1], len(sector))) {
			t.Fatalf("torn sector %x", sector)
		}
		s.WriteByte(sector[0])
	}
	return strings.ReplaceAll(s.String(), "\x00", ".")
}

// Each script ends with a power cut. The states that occur after it are exactly the ones listed: every allowed effect occurs, and nothing
// else does.
var crashes = []struct {
	name string
	run  func(s script)
	want []string
}{
	{
		"sectors are independent and not torn",
		func(s script) { s.write(s.durable("f", "AAA"), 0, "BBB") },
		[]string{"f=AAA", "f=AAB", "f=ABA", "f=ABB", "f=BAA", "f=BAB", "f=BBA", "f=BBB"},
	}, {
		"any version since the last sync",
		func(s script) {
			f := s.durable("f", "A")
			s.write(f, 0, "B")
			s.write(f, 0, "C")
		},
		[]string{"f=A", "f=B", "f=C"},
	}, {
		"what was synced stays",
		func(s script) {
			f := s.durable("f", "AAAA")
			s.write(f, 1, "BB")
			s.must(f.SyncData())
		},
		[]string{"f=ABBA"},
	}, {
		"a sync covers the size",
		func(s script) {
			f := s.durable("f", "A")
			s.write(f, 1, "B")
			s.must(f.SyncData())
			s.must(f.Truncate(1536))
			s.must(f.Sync())
		},
		[]string{"f=AB."},
	}, {
		"growth: neither, the size only, or both",
		func(s script) { s.write(s.durable("f", "A"), 1, "B") },
		[]string{"f=A", "f=A.", "f=AB"},
	}, {
		"truncation counts as a write of zeroes",
		func(s script) { s.must(s.durable("f", "AB").Truncate(512)) },
		[]string{"f=A", "f=A.", "f=AB"},
	}, {
		"preallocation is a matter of the size",
		func(s script) { s.must(s.durable("f", "A").Allocate(512, 1024)) },
		[]string{"f=A", "f=A.."},
	}, {
		"a new file is not there before its directory is synced",
		func(s script) {
			f := s.file(s.fs.Create("f"))
			s.write(f, 0, "A")
			s.must(f.Sync())
		},
		[]string{"", "f=A"},
	}, {
		"a synced name alone does not make the contents durable",
		func(s script) {
			f := s.file(s.fs.Create("f"))
			s.write(f, 0, "A")
			s.must(s.fs.SyncDir("."))
		},
		[]string{"f=", "f=.", "f=A"},
	}, {
		"removals happen in any order",
		func(s script) {
			s.durable("a", "A")
			s.durable("b", "B")
			s.must(s.fs.Remove("a"))
			s.must(s.fs.Remove("b"))
		},
		[]string{"", "a=A", "a=A b=B", "b=B"},
	}, {
		"a synced removal is final",
		func(s script) {
			s.durable("a", "A")
			s.must(s.fs.Remove("a"))
			s.must(s.fs.SyncDir("."))
		},
		[]string{""},
	}, {
		"a rename is atomic and never loses the name it replaces",
		func(s script) {
			s.durable("b", "B")
			s.durable("a", "A")
			s.must(s.fs.Rename("a", "b"))
		},
		[]string{"a=A b=B", "b=A"},
	}, {
		"a removal may overtake a rename",
		func(s script) {
			s.durable("a", "A")
			s.durable("old", "O")
			s.must(s.fs.Rename("a", "b"))
			s.must(s.fs.Remove("old"))
		},
		[]string{"a=A", "a=A old=O", "b=A", "b=A old=O"},
	}, {
		"a file has one name at most",
		func(s script) {
			s.must(s.file(s.fs.Create("a")).Sync())
			s.must(s.fs.Rename("a", "b"))
			s.must(s.fs.Rename("b", "c"))
		},
		[]string{"", "a=", "b=", "c="},
	}, {
		"a name that is used again is one of the files or none",
		func(s script) {
			s.durable("a", "A")
			s.must(s.fs.Remove("a"))
			f := s.file(s.fs.Create("a"))
			s.write(f, 0, "B")
			s.must(f.Sync())
		},
		[]string{"", "a=A", "a=B"},
	}, {
		"directories are apart; a rename between them is durable with one of them",
		func(s script) {
			s.must(s.fs.MkdirAll("d/e"))
			s.durable("a", "A")
			f := s.file(s.fs.Create("x"))
			s.must(f.Sync())
			s.must(s.fs.Rename("a", "d/e/a"))
			s.must(s.fs.SyncDir("d/e"))
		},
		[]string{"d/e/a=A", "d/e/a=A x="},
	}, {
		"a moved file does not come back to its first name",
		func(s script) {
			s.must(s.fs.MkdirAll("d"))
			s.must(s.file(s.fs.Create("a")).Sync())
			s.must(s.fs.Rename("a", "d/b"))
			s.must(s.fs.SyncDir("d"))
			s.must(s.fs.SyncDir("."))
		},
		[]string{"d/b="},
	}, {
		"creating over a file truncates it",
		func(s script) {
			s.durable("f", "A")
			s.file(s.fs.Create("f"))
		},
		[]string{"f=", "f=.", "f=A"},
	}, {
		"a failed sync that drops its pages is forgotten by the next sync",
		func(s script) {
			f := s.durable("f", "AA")
			s.write(f, 0, "B")
			s.write(f, 2, "B")
			s.fs.Inject(Fault{Err: syscall.EIO, Drop: true})
			if err := f.SyncData(); !errors.Is(err, syscall.EIO) {
				s.t.Fatalf("sync: %v", err)
			}
			s.must(f.SyncData())
			if got := show(s.t, s.fs, "."); got != "f=BAB" {
				s.t.Fatalf("read back %q", got)
			}
		},
		[]string{"f=AA"},
	}, {
		"what is written again after a dropped sync is durable",
		func(s script) {
			f := s.durable("f", "AA")
			s.write(f, 0, "BB")
			s.fs.Inject(Fault{Err: syscall.EIO, Drop: true})
			_ = f.Sync() // checked above
			s.write(f, 1, "C")
			s.must(f.Sync())
		},
		[]string{"f=AC"},
	}, {
		"a failed sync that keeps its pages can be repeated",
		func(s script) {
			f := s.durable("f", "A")
			s.write(f, 0, "B")
			s.fs.FailAt(0, syscall.EIO)
			if err := f.Sync(); !errors.Is(err, syscall.EIO) {
				s.t.Fatalf("sync: %v", err)
			}
			s.must(f.Sync())
		},
		[]string{"f=B"},
	},
}

func TestPowerCutHasExactlyTheAllowedOutcomes(t *testing.T) {
	t.Parallel()
	for _, c := range crashes {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := script{t, New()}
			c.run(s)
			seen := map[string]bool{}
			for seed := range uint64(1000) {
				seen[show(t, s.fs.Clone().Crash(rand.New(rand.NewPCG(seed, 0))), ".")] = true
			}
			var got []string
			for state := range seen {
				got = append(got, state)
			}
			slices.Sort(got)
			if !slices.Equal(got, c.want) {
				t.Errorf("states %q, want %q", got, c.want)
			}
			if kept := show(t, s.fs.Clone().CrashKeepingAll(), "."); !slices.Contains(c.want, kept) {
				t.Errorf("all kept: %q", kept)
			}
			if lost := show(t, s.fs.CrashLosingAll(), "."); !slices.Contains(c.want, lost) {
				t.Errorf("all lost: %q", lost)
			}
		})
	}
}

func TestCrashKeepingAllAndLosingAll(t *testing.T) {
	t.Parallel()
	s := script{t, New()}
	s.write(s.durable("a", "AA"), 1, "BB")
	s.file(s.fs.Create("b"))
	if got := show(t, s.fs.Clone().CrashKeepingAll(), "."); got != "a=ABB b=" {
		t.Errorf("all kept: %q", got)
	}
	if got := show(t, s.fs.CrashLosingAll(), "."); got != "a=AA" {
		t.Errorf("all lost: %q", got)
	}
}

func TestAfterACrashEverythingIsDurable(t *testing.T) {
	t.Parallel()
	s := script{t, New()}
	s.write(s.durable("a", "AAAA"), 1, "BBBBBB")
	s.file(s.fs.Create("b"))
	for seed := range uint64(50) {
		after := s.fs.Clone().Crash(rand.New(rand.NewPCG(seed, 0)))
		before := after.Digest()
		if again := after.CrashLosingAll(); again.Digest() != before {
			t.Fatalf("seed %d: the second crash changed something", seed)
		}
	}
}

func TestGrowthAfterALostSizeReadsZeroes(t *testing.T) {
	t.Parallel()
	s := script{t, New()}
	s.write(s.durable("a", "A"), 1, "B")
	for seed := range uint64(50) {
		s := script{t, s.fs.Clone().Crash(rand.New(rand.NewPCG(seed, 0)))}
		if show(t, s.fs, ".") != "a=A" {
			continue
		}
		s.must(s.file(s.fs.Open("a")).Truncate(1024))
		if got := show(t, s.fs, "."); got != "a=A." {
			t.Fatalf("seed %d: %q", seed, got)
		}
	}
}

func TestKillKeepsAllButEndsTheProcess(t *testing.T) {
	t.Parallel()
	s := script{t, New()}
	f := s.durable("a", "AA")
	s.write(f, 1, "B")
	after := s.fs.Kill()
	if got := show(t, after, "."); got != "a=AB" {
		t.Errorf("after kill: %q", got)
	}
	gone(t, s.fs, f)
	if got := show(t, after.CrashLosingAll(), "."); got != "a=AA" {
		t.Errorf("kill made something durable: %q", got)
	}
}

func TestCrashEndsTheProcess(t *testing.T) {
	t.Parallel()
	s := script{t, New()}
	f := s.durable("a", "AA")
	s.fs.CrashKeepingAll()
	gone(t, s.fs, f)
}

func gone(t *testing.T, f *FS, h vfs.File) {
	t.Helper()
	buf := make([]byte, 512)
	_, read := h.ReadAt(buf, 0)
	_, write := h.WriteAt(buf, 0)
	_, create := f.Create("b")
	_, readDir := f.ReadDir(".")
	_, space := f.Space(".")
	_, size := h.Size()
	for _, err := range []error{
		read, write, create, readDir, space, size, h.Sync(), h.SyncData(), h.Truncate(0), h.Allocate(0, 512), h.Close(), f.Remove("a"),
		f.Rename("a", "b"), f.SyncDir("."), f.MkdirAll("d"), f.Corrupt("a", 0, 1),
	} {
		if !errors.Is(err, ErrGone) {
			t.Errorf("error %v, want ErrGone", err)
		}
	}
}

// The same seed gives the same operations and the same files after the crash.
func TestSeedsReplay(t *testing.T) {
	t.Parallel()
	distinct := map[string]bool{}
	for seed := range uint64(40) {
		first, second := randomLife(t, seed), randomLife(t, seed)
		if first != second {
			t.Fatalf("seed %d does not replay", seed)
		}
		distinct[first] = true
	}
	if len(distinct) < 30 {
		t.Errorf("40 seeds have %d outcomes only", len(distinct))
	}
}

func randomLife(t *testing.T, seed uint64) string {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	f := New()
	var out strings.Builder
	for range 3 {
		r := runner{rng: rng, fs: f, dir: "."}
		for range 100 {
			out.WriteString(r.step() + "\n")
		}
		f = f.Crash(rng)
		out.WriteString(f.Digest() + "\n")
	}
	return out.String()
}

func TestCloneIsIndependent(t *testing.T) {
	t.Parallel()
	s := script{t, New()}
	f := s.durable("a", "AA")
	s.write(f, 0, "B")
	c := script{t, s.fs.Clone()}
	s.write(f, 0, "CC")
	s.must(s.fs.Remove("a"))
	c.write(c.file(c.fs.Open("a")), 1, "D")
	if got := show(t, c.fs, "."); got != "a=BD" {
		t.Errorf("clone: %q", got)
	}
	if got := show(t, c.fs.CrashLosingAll(), "."); got != "a=AA" {
		t.Errorf("clone after crash: %q", got)
	}
	if _, err := s.fs.Open("a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("original: %v", err)
	}
}
