package nbd

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// runFails runs a program that must fail, and returns what it says.
func runFails(t *testing.T, program string, args ...string) string {
	t.Helper()
	need(t, program)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err == nil {
		t.Errorf("%s %q succeeds: %s", program, args, out)
	}
	return string(out)
}

// listed are the names in the output of nbdinfo --json --list.
func listed(t *testing.T, uri string) string {
	t.Helper()
	var info struct {
		Exports []struct {
			Name string `json:"export-name"`
		}
	}
	if err := json.Unmarshal([]byte(run(t, "nbdinfo", "--json", "--list", uri)), &info); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range info.Exports {
		names = append(names, e.Name)
	}
	return strings.Join(names, " ")
}

func TestNbdinfoOverTCP(t *testing.T) {
	t.Parallel()
	need(t, "nbdinfo")
	h := openHub(t, HubConfig{})
	a, b := h.show(t, "a", realDevice()), h.show(t, "b", newBatchDevice(testSize))
	if got := listed(t, "nbd://"+h.address()); got != "a b" {
		t.Errorf("list is %s", got)
	}
	for e, size := range map[*Export]string{a: "16777216\n", b: "1048576\n"} {
		if got := run(t, "nbdinfo", "--size", e.Path()); got != size {
			t.Errorf("%s has %s bytes", e.Path(), got)
		}
	}
	if got := run(t, "nbdinfo", "--map", a.Path()); !strings.Contains(got, "hole,zero") {
		t.Errorf("map is %s", got)
	}
	runFails(t, "nbdinfo", "nbd://"+h.address()+"/c")
	runFails(t, "nbdinfo", "--size", "nbd://"+h.address())
}

func TestCopyOverTCP(t *testing.T) {
	t.Parallel()
	need(t, "nbdcopy")
	need(t, "qemu-img")
	h := openHub(t, HubConfig{})
	from, to := realDevice(), newBatchDevice(realSize)
	a, b := h.show(t, "a", from), h.show(t, "b", to)
	run(t, "nbdcopy", "--connections=4", "--requests=32", "--flush", a.Path(), b.Path())
	if !bytes.Equal(to.data, from.data) {
		t.Error("the copy differs")
	}
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", a.Path(), b.Path())
	file := filepath.Join(t.TempDir(), "copy")
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", b.Path(), file)
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, from.data) {
		t.Errorf("convert: %v, %d bytes", err, len(got))
	}
}

func TestRealClientsOverTLS(t *testing.T) {
	t.Parallel()
	need(t, "nbdinfo")
	need(t, "nbdcopy")
	p, other := newPKI(t), newPKI(t)
	h, e := secureHub(t, p)
	uri := e.Path() + "?tls-certificates=" + p.dir
	if got := run(t, "nbdinfo", "--size", uri); got != "16777216\n" {
		t.Errorf("size is %s", got)
	}
	if got := run(t, "nbdinfo", uri); !strings.Contains(got, "with TLS") {
		t.Errorf("nbdinfo says: %s", got)
	}
	if got := listed(t, "nbds://"+h.address()+"/?tls-certificates="+p.dir); got != "vol" {
		t.Errorf("list is %s", got)
	}
	file := filepath.Join(t.TempDir(), "copy")
	run(t, "nbdcopy", uri, file)
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, realDevice().data) {
		t.Errorf("the copy differs: %v, %d bytes", err, len(got))
	}
	runFails(t, "nbdinfo", "--size", "nbd://"+h.address()+"/vol")
	runFails(t, "nbdinfo", "--size", e.Path()+"?tls-certificates="+other.dir)
}

func TestQemuOverTLS(t *testing.T) {
	t.Parallel()
	need(t, "qemu-img")
	p := newPKI(t)
	h, _ := secureHub(t, p)
	host, port, _ := strings.Cut(h.address(), ":")
	image := "driver=raw,file.driver=nbd,file.host=" + host + ",file.port=" + port + ",file.export=vol"
	creds := "tls-creds-x509,id=tls0,endpoint=client,dir=" + p.dir
	out := run(t, "qemu-img", "info", "--object", creds, "--image-opts", image+",file.tls-creds=tls0")
	if !strings.Contains(out, "16 MiB") {
		t.Errorf("info: %s", out)
	}
	if out := runFails(t, "qemu-img", "info", "--image-opts", image); !strings.Contains(out, "TLS") {
		t.Errorf("without TLS qemu-img says: %s", out)
	}
}
