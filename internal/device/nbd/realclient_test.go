package nbd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mars/internal/block"
)

// These tests let the programs that people use talk to the server. A program that is not installed is a skip, or with MARS_TEST_REQUIRE=all
// a failure.

const realSize = 16 << 20

// need skips or fails the test when a program is missing.
func need(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		missing(t, program+" is not installed")
	}
}

func missing(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("MARS_TEST_REQUIRE") == "all" {
		t.Fatalf("%s, but MARS_TEST_REQUIRE=all", reason)
	}
	t.Skipf("SKIPPED: %s", reason)
}

// run runs a program and returns what it prints.
func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	need(t, program)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s%s", program, args, err, out, stderr.Bytes())
	}
	return string(out)
}

// export serves dev as "vol" and returns its URI.
func export(t *testing.T, dev block.Device) (*Server, string) {
	t.Helper()
	s, path := serve(t, Config{Export: "vol", Dev: dev})
	return s, "nbd+unix:///vol?socket=" + path
}

// realDevice has data, holes, and reads that wait.
func realDevice() nowaitDevice {
	dev := nowaitDevice{newBatchDevice(realSize)}
	for off := 0; off < realSize; off += 1 << 20 {
		copy(dev.data[off:], bytes.Repeat([]byte(fmt.Sprintf("%08d", off)), 40<<10/8))
	}
	return dev
}

func TestNbdinfo(t *testing.T) {
	t.Parallel()
	need(t, "nbdinfo")
	s, uri := export(t, realDevice())
	var info struct {
		Protocol string
		Exports  []struct {
			Name     string      `json:"export-name"`
			Size     int64       `json:"export-size"`
			Contexts []string    `json:"contexts"`
			Min      int64       `json:"block_size_minimum"`
			Max      json.Number `json:"block_size_maximum"`
			Multi    bool        `json:"can_multi_conn"`
			Fast     bool        `json:"can_fast_zero"`
		}
	}
	for _, args := range [][]string{{"--json", uri}, {"--json", "--list", strings.Replace(uri, "vol", "", 1)}} {
		if err := json.Unmarshal([]byte(run(t, "nbdinfo", args...)), &info); err != nil {
			t.Fatal(err)
		}
		if len(info.Exports) != 1 {
			t.Fatalf("nbdinfo %v: %+v", args, info)
		}
		e := info.Exports[0]
		if e.Size != realSize || len(e.Contexts) != 1 || e.Min != 512 || e.Max != "33554432" || !e.Multi || !e.Fast {
			t.Errorf("nbdinfo %v: %+v", args, info)
		}
	}
	if e := info.Exports[0]; e.Name != "vol" {
		t.Errorf("the list names %q", e.Name)
	}
	waitFor(t, "nbdinfo to be gone", func() bool { return len(s.Clients()) == 0 })
}

func TestNbdinfoMap(t *testing.T) {
	t.Parallel()
	need(t, "nbdinfo")
	_, uri := export(t, realDevice())
	got := strings.Fields(run(t, "nbdinfo", "--map", uri))
	want := strings.Fields("0 40960 0 data 40960 1007616 3 hole,zero 1048576 40960 0 data")
	if len(got) < len(want) || strings.Join(got[:len(want)], " ") != strings.Join(want, " ") {
		t.Errorf("map is %v", got)
	}
}

func TestQemuImg(t *testing.T) {
	t.Parallel()
	need(t, "qemu-img")
	dev := realDevice()
	_, uri := export(t, dev)
	if out := run(t, "qemu-img", "info", "--output=json", uri); !strings.Contains(out, fmt.Sprintf(`"virtual-size": %d`, realSize)) {
		t.Errorf("info: %s", out)
	}
	if out := run(t, "qemu-img", "map", "--output=json", uri); !strings.Contains(out, `"start": 40960, "length": 1007616`) {
		t.Errorf("map: %s", out)
	}
	file := filepath.Join(t.TempDir(), "copy")
	run(t, "qemu-img", "convert", "-O", "raw", uri, file)
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, dev.data) {
		t.Errorf("convert from the export: %v, %d bytes", err, len(got))
	}
	other := nowaitDevice{newBatchDevice(realSize)}
	copy(other.data, bytes.Repeat([]byte{0xee}, realSize))
	_, otherURI := export(t, other)
	run(t, "qemu-img", "convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw", file, otherURI)
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", uri, otherURI)
	if !bytes.Equal(other.data, dev.data) {
		t.Error("convert to the export made something else")
	}
}

func TestQemuIO(t *testing.T) {
	t.Parallel()
	need(t, "qemu-io")
	dev := realDevice()
	_, uri := export(t, dev)
	out := run(t, "qemu-io", "-f", "raw", "-t", "none", uri,
		"-c", "write -P 0x11 0 1M", "-c", "write -f -P 0x22 64k 4k", "-c", "write -z 128k 64k", "-c", "write -z -u 256k 64k",
		"-c", "discard 512k 64k", "-c", "aio_write -P 0x33 2M 3M", "-c", "aio_read 8M 1M", "-c", "aio_flush", "-c", "flush",
		"-c", "read -P 0x11 0 64k", "-c", "read -P 0x22 64k 4k", "-c", "read -P 0 128k 64k", "-c", "read -P 0 256k 64k",
		"-c", "read -P 0 512k 64k", "-c", "read -P 0x33 2M 3M", "-c", "write -P 0x44 1000 3000", "-c", "read -P 0x44 1000 3000")
	if strings.Contains(out, "failed") {
		t.Errorf("qemu-io: %s", out)
	}
	if dev.flushes == 0 {
		t.Error("no flush reached the device")
	}
}

func TestNbdcopy(t *testing.T) {
	t.Parallel()
	need(t, "nbdcopy")
	dev, other := realDevice(), newBatchDevice(realSize)
	_, from := export(t, dev)
	_, to := export(t, other)
	run(t, "nbdcopy", "--connections=4", "--requests=32", "--flush", from, to)
	if !bytes.Equal(other.data, dev.data) {
		t.Error("the copy differs")
	}
	if other.flushes == 0 {
		t.Error("no flush reached the device")
	}
}

func TestNbdsh(t *testing.T) {
	t.Parallel()
	need(t, "nbdsh")
	s, uri := export(t, realDevice())
	path := filepath.Join(t.TempDir(), "ready")
	script := `
import errno, os, sys
h.set_strict_mode(0)
h.add_meta_context("base:allocation")
h.connect_uri("` + uri + `")
assert h.get_structured_replies_negotiated() and h.can_meta_context("base:allocation")
assert h.can_multi_conn() and h.can_fua() and h.can_fast_zero() and h.can_df()
def fails(code, f, *args):
    try:
        f(*args)
    except nbd.Error as e:
        assert e.errnum == code, (e.errnum, code)
        return
    assert False, "no error"
size = h.get_size()
fails(errno.EINVAL, h.pread, 512, 1)
fails(errno.EINVAL, h.pread, 512, size)
fails(errno.ENOSPC, h.pwrite, bytearray(512), size)
fails(errno.EINVAL, h.pwrite, bytearray(100), 0)
h.pwrite(b"x" * 4096, 8192, nbd.CMD_FLAG_FUA)
assert h.pread(4096, 8192, nbd.CMD_FLAG_DF) == b"x" * 4096
h.zero(4096, 8192, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
assert h.pread(4096, 8192) == bytes(4096)
bufs = [h.aio_pread(nbd.Buffer(65536), i * 65536) for i in range(64)]
while h.aio_in_flight() > 0:
    h.poll(-1)
assert all(h.aio_command_completed(c) for c in bufs)
extents = []
h.block_status(1 << 20, 0, lambda ctx, off, e, err: extents.extend(e))
assert sum(extents[0::2]) == 1 << 20, extents
assert h.pread(1 << 20, 0, nbd.CMD_FLAG_DF)[:8] == b"00000000"
open("` + path + `", "w").close()
sys.stdin.read()
h.shutdown()
`
	cmd := exec.CommandContext(t.Context(), "nbdsh", "-c", script)
	cmd.Env = append(os.Environ(), "PATH=/usr/bin:"+os.Getenv("PATH")) // its module belongs to the system's python3
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }() // ends with the program
	waitFor(t, "the script to be done", func() bool {
		_, err := os.Stat(path)
		return err == nil || len(exited) > 0
	})
	if users, want := s.Clients(), fmt.Sprintf("pid %d (", cmd.Process.Pid); len(users) != 1 || !strings.HasPrefix(users[0], want) {
		t.Errorf("Clients are %v, want %s...", users, want)
	}
	stdin.Close()
	if err := <-exited; err != nil {
		t.Fatalf("nbdsh: %v\n%s", err, output.Bytes())
	}
}

// TestFio lets fio verify what it reads back, with many requests in flight.
func TestFio(t *testing.T) {
	t.Parallel()
	need(t, "fio")
	if out, err := exec.Command("fio", "--enghelp").Output(); err != nil || !strings.Contains(string(out), "nbd") {
		missing(t, "this fio has no nbd engine")
	}
	_, uri := export(t, nowaitDevice{newBatchDevice(realSize)})
	run(t, "fio", "--aux-path="+t.TempDir(), "--verify_state_save=0", "--name=verify", "--ioengine=nbd", "--uri="+uri, "--rw=randrw", "--bsrange=4k-128k", "--iodepth=32", "--size=16m",
		"--loops=2", "--verify=crc32c", "--verify_fatal=1", "--fsync=50", "--trim_percentage=0")
}
