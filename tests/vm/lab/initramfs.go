package lab

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// writeInitramfs makes the first file system of the machines: the agent, the modules that are needed to reach the real one, and the programs
// under test below /host. files maps paths below /host to files of this host.
func writeInitramfs(to string, img *Image, agent string, files map[string]string) (err error) {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	buf := bufio.NewWriter(f)
	a := &archive{w: buf, dirs: map[string]bool{".": true}}
	a.file("init", agent, 0o755)
	a.file("host/init", agent, 0o755)
	var order strings.Builder
	for _, m := range img.Modules {
		fmt.Fprintln(&order, filepath.Base(m))
		a.file("modules/"+filepath.Base(m), m, 0o644)
	}
	a.bytes("modules/order", []byte(order.String()), 0o644)
	a.dir("host/bin")
	for name, from := range files {
		a.file("host/"+name, from, 0o755)
	}
	a.entry("TRAILER!!!", 0, nil)
	if a.err != nil {
		return a.err
	}
	return buf.Flush()
}

// archive writes a cpio archive as the kernel reads it (Linux Documentation/driver-api/early-userspace/buffer-format.rst). After the first
// error it does nothing.
type archive struct {
	w    io.Writer
	dirs map[string]bool
	ino  int
	err  error
}

const (
	modeDir  = 0o040000
	modeFile = 0o100000
)

func (a *archive) file(name, from string, perm uint32) {
	data, err := os.ReadFile(from)
	if err != nil && a.err == nil {
		a.err = err
	}
	a.bytes(name, data, perm)
}

func (a *archive) bytes(name string, data []byte, perm uint32) {
	a.dir(path.Dir(name))
	a.entry(name, modeFile|perm, data)
}

func (a *archive) dir(name string) {
	if a.dirs[name] {
		return
	}
	a.dir(path.Dir(name))
	a.dirs[name] = true
	a.entry(name, modeDir|0o755, nil)
}

func (a *archive) entry(name string, mode uint32, data []byte) {
	if a.err != nil {
		return
	}
	a.ino++
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", a.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	_, a.err = io.WriteString(a.w, pad(head+name+"\x00"))
	if a.err == nil {
		_, a.err = a.w.Write(data)
	}
	if a.err == nil {
		_, a.err = a.w.Write(make([]byte, -len(data)&3))
	}
}

func pad(s string) string { return s + strings.Repeat("\x00", -len(s)&3) }
