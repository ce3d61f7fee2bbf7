package lab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestLoadOrderPutsNeedsFirst(t *testing.T) {
	t.Parallel()
	dep := "kernel/a.ko.xz: kernel/b.ko.xz kernel/c-d.ko.xz\nkernel/b.ko.xz: kernel/c-d.ko.xz\nkernel/c-d.ko.xz:\nkernel/e.ko.xz:\n"
	got := loadOrder(dep, []string{"c_d", "a", "builtin"})
	if want := []string{"kernel/c-d.ko.xz", "kernel/b.ko.xz", "kernel/a.ko.xz"}; !slices.Equal(got, want) {
		t.Errorf("order %q, want %q", got, want)
	}
}

func TestPayloadOfKernel(t *testing.T) {
	t.Parallel()
	image := make([]byte, 4096)
	image[0x1f1] = 3 // sectors of setup code after the first
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint32(image[0x248:], 100)
	binary.LittleEndian.PutUint32(image[0x24c:], 4+5)
	copy(image[4*512+100:], "hello")
	got, err := payloadOf(image)
	if err != nil || string(got) != "hello" {
		t.Errorf("payload %q, %v", got, err)
	}
	binary.LittleEndian.PutUint32(image[0x24c:], 5000)
	if _, err := payloadOf(image); err == nil {
		t.Error("a payload beyond the end of the image")
	}
	if _, err := payloadOf([]byte("#!/bin/sh")); err == nil {
		t.Error("not a kernel")
	}
}

func TestInitramfsHasFilesAndTheirDirectories(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	agent, module, out := filepath.Join(dir, "agent"), filepath.Join(dir, "m.ko"), filepath.Join(dir, "out")
	for file, text := range map[string]string{agent: "agent", module: "mod"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := writeInitramfs(out, &Image{Modules: []string{module}}, agent, map[string]string{"lib/deep/x": module}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	got := unpackCpio(t, b)
	for name, want := range map[string]string{
		"init": "agent", "host/init": "agent", "modules/m.ko": "mod", "modules/order": "m.ko\n", "host/lib/deep/x": "mod",
		"host": "dir", "host/bin": "dir", "host/lib": "dir", "host/lib/deep": "dir", "modules": "dir",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	if err := writeInitramfs(out, &Image{}, agent, map[string]string{"x": filepath.Join(dir, "missing")}); err == nil {
		t.Error("a missing file is no error")
	}
}

// unpackCpio returns the contents by name, "dir" for directories.
func unpackCpio(t *testing.T, b []byte) map[string]string {
	t.Helper()
	field := func(i int) int {
		n, err := strconv.ParseUint(string(b[6+8*i:][:8]), 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		return int(n)
	}
	got := map[string]string{}
	for {
		mode, size, nameLen := field(1), field(6), field(11)
		name := string(b[110:][:nameLen-1])
		b = b[(110+nameLen+3)&^3:]
		if name == "TRAILER!!!" {
			return got
		}
		got[name] = string(b[:size])
		if mode&modeDir != 0 {
			got[name] = "dir"
		}
		b = b[(size+3)&^3:]
	}
}

// plug connects a pretended machine to the switch.
func plug(t *testing.T, n *network, machine int) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", n.socket(machine))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

// frame is what QEMU sends: the length, the addresses, and a text.
func frame(to, from byte, text string) []byte {
	eth := append([]byte{0x52, 0x54, 0, 0x4d, 0x52, to, 0x52, 0x54, 0, 0x4d, 0x52, from, 8, 0}, text...)
	if to == 0xff {
		copy(eth, bytes.Repeat([]byte{0xff}, 6))
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(eth))), eth...)
}

func TestSwitchBringsFramesToTheirMachine(t *testing.T) {
	t.Parallel()
	n, err := newNetwork(t.TempDir(), 3)
	if err != nil {
		t.Fatal(err)
	}
	a, b, c := plug(t, n, 1), plug(t, n, 2), plug(t, n, 3)
	expect := func(who net.Conn, want []byte) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(who, got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("got %q, want %q (%v)", got, want, err)
		}
	}
	only2, all := frame(2, 1, "to b"), frame(0xff, 1, "to all")
	for _, f := range [][]byte{only2, all} {
		if _, err := a.Write(f); err != nil {
			t.Fatal(err)
		}
	}
	expect(b, only2)
	expect(b, all)
	expect(c, all) // and not what was for b
	b.Close()
	b = plug(t, n, 2) // the next boot
	back := frame(1, 2, "here again")
	if _, err := b.Write(back); err != nil {
		t.Fatal(err)
	}
	expect(a, back)
	for _, x := range []net.Conn{a, b, c} {
		x.Close()
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

// A volatile disk keeps what was flushed and loses some of the rest; the same random numbers lose the same.
func TestVolatileDiskLosesWhatWasNotFlushed(t *testing.T) {
	t.Parallel()
	after := func(seed uint64) string {
		d, err := newDrive(Disk{Name: "d", Size: 1 << 20, Volatile: true}, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		write := func(off int64, text string) {
			t.Helper()
			if err := d.device.WriteAt(bytes.Repeat([]byte(text), 4096), off, 0); err != nil {
				t.Fatal(err)
			}
		}
		write(0, "k")
		if err := d.device.Flush(); err != nil {
			t.Fatal(err)
		}
		write(4096, "l")
		d.cut(rand.New(rand.NewPCG(seed, 0)))
		buf := make([]byte, 8192)
		if _, err := d.ReadAt(buf, 0); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%d kept, %d not lost", bytes.Count(buf, []byte("k")), bytes.Count(buf, []byte("l")))
	}
	seen := map[string]bool{}
	for seed := range uint64(20) {
		first := after(seed)
		if second := after(seed); second != first {
			t.Errorf("seed %d: %s, then %s", seed, first, second)
		}
		if !strings.HasPrefix(first, "4096 kept") {
			t.Errorf("seed %d: %s", seed, first)
		}
		seen[first] = true
	}
	if len(seen) < 3 {
		t.Errorf("all cuts lose the same: %v", seen)
	}
}
