package iouring

import (
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// open opens a ring until the end of the test; where the machine has none, or forbids it, the test is skipped.
func open(t *testing.T, n int, kind Kind) *Ring {
	t.Helper()
	r, err := Open(n, kind)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		if os.Getenv("MARS_TEST_REQUIRE") == "all" {
			t.Fatal("REQUIRED: ", err)
		}
		t.Skip("SKIPPED: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func eventfd(t *testing.T, count uint) int {
	t.Helper()
	fd, err := unix.Eventfd(count, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
	})
	return fd
}

func TestReads(t *testing.T) {
	for name, kind := range map[string]Kind{"shared": Shared, "pinned": Pinned} {
		t.Run(name, func(t *testing.T) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			const n = 5
			r := open(t, n, kind)
			var bufs [n][8]byte
			for round := range uint64(100) { // far more than the ring has room for
				for i := range bufs {
					r.Next().Read(eventfd(t, uint(round)+uint(i)+1), bufs[i][:], round<<32|uint64(i))
				}
				seen := map[uint64]bool{}
				for len(seen) < n {
					if err := r.Enter(1); err != nil {
						t.Fatal(err)
					}
					for c, ok := r.Completed(); ok; c, ok = r.Completed() {
						if c.ID>>32 != round || c.Result != 8 || seen[c.ID] {
							t.Fatalf("round %d: completion %+v", round, c)
						}
						seen[c.ID] = true
					}
				}
				for i, b := range bufs {
					if got := binary.NativeEndian.Uint64(b[:]); got != round+uint64(i)+1 {
						t.Fatalf("round %d, read %d: %d", round, i, got)
					}
				}
			}
		})
	}
}

// A read that has to wait is completed by a write from another thread.
func TestWaits(t *testing.T) {
	r, fd := open(t, 1, Shared), eventfd(t, 0)
	buf := make([]byte, 8)
	r.Next().Read(fd, buf, 7)
	if err := r.Enter(0); err != nil {
		t.Fatal(err)
	}
	if c, ok := r.Completed(); ok {
		t.Fatalf("completed before it could: %+v", c)
	}
	go func() { _, _ = unix.Write(fd, binary.NativeEndian.AppendUint64(nil, 3)) }() // ends by itself
	for {
		if err := r.Enter(1); err != nil {
			t.Fatal(err)
		}
		if c, ok := r.Completed(); ok {
			if c.ID != 7 || c.Result != 8 || binary.NativeEndian.Uint64(buf) != 3 {
				t.Errorf("completion %+v, buffer %v", c, buf)
			}
			return
		}
	}
}

func TestFullAndFailing(t *testing.T) {
	r := open(t, 2, Shared)
	for range 2 {
		r.Next().Command(-1, 1, 9)
	}
	if r.Next() != nil {
		t.Error("a ring of 2 has given out 3 entries")
	}
	for done := 0; done < 2; {
		if err := r.Enter(1); err != nil {
			t.Fatal(err)
		}
		for c, ok := r.Completed(); ok; c, ok = r.Completed() {
			done++
			if c.ID != 9 || c.Result != -int32(unix.EBADF) {
				t.Errorf("completion %+v", c)
			}
		}
	}
	if _, err := Open(0, Shared); err == nil {
		t.Error("an empty ring was opened")
	}
}
