package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"mars/internal/control"
)

const (
	syncEmpty      = "full sync, empty target"
	syncEqual      = "full sync, 0 % different"
	syncOnePercent = "full sync, 1 % different"
	syncAll        = "full sync, 100 % different"
	wireSuffix     = ", on the wire"

	rsyncDelta = "rsync --inplace --no-whole-file"
	rsyncWhole = "rsync --whole-file"
	nbdcopyTLS = "nbdcopy from nbdkit with TLS"
)

// syncRows are what the target holds before.
var syncRows = []struct {
	name   string
	before content
	empty  bool
	rsync  string
	copy   bool // nbdcopy, which always copies everything, is measured here
}{
	{name: syncEmpty, empty: true, rsync: rsyncWhole, copy: true},
	{name: syncEqual, rsync: rsyncDelta},
	{name: syncOnePercent, before: content{every: 100}, rsync: rsyncDelta},
	{name: syncAll, before: content{seed: 1 << 32}, rsync: rsyncDelta, copy: true},
}

func fullSyncNames() []string {
	var names []string
	for _, r := range syncRows {
		names = append(names, r.name, r.name+wireSuffix)
	}
	return names
}

// fullSync fills a target that holds nothing, or something else, until it is complete and durable, with each program.
func (b *bench) fullSync(ctx context.Context, _ int) error {
	if err := b.marsSyncs(ctx); err != nil {
		return err
	}
	if err := b.unwind(); err != nil {
		return err
	}
	src, err := b.disk("src.img", b.o.size, content{})
	if err != nil {
		return err
	}
	rsync, err := b.rsyncDaemon(ctx)
	if err != nil {
		return err
	}
	nbd, err := b.tlsServer(ctx, src)
	if err != nil {
		return err
	}
	for i, r := range syncRows {
		if !b.wanted(r.name, r.name+wireSuffix) {
			continue
		}
		flag := "--whole-file"
		if r.rsync == rsyncDelta {
			flag = "--no-whole-file"
		}
		err := b.syncOne(i, src, "dst.img", r.rsync, func(string) error {
			_, err := command(ctx, "rsync", "--inplace", flag, "--ignore-times", "--fsync", src, rsync+"/dst.img")
			return err
		})
		if err != nil {
			return err
		}
		if !r.copy {
			continue
		}
		err = b.syncOne(i, src, "dst.img", nbdcopyTLS, func(dst string) error {
			_, err := command(ctx, "nbdcopy", "--flush", nbd, dst)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// marsSyncs lets a newcomer join on disks that hold this or that.
func (b *bench) marsSyncs(ctx context.Context) error {
	p := plan{shape: shape{1, b.o.size}, nodes: 1}
	c, err := b.startCluster(ctx, p)
	if err != nil {
		return err
	}
	if err := c.joinNode(ctx, p); err != nil {
		return err
	}
	for i, r := range syncRows {
		if !b.wanted(r.name, r.name+wireSuffix) {
			continue
		}
		err := b.syncOne(i, c.disks[0], "b.img", marsAlone, func(dst string) error {
			return c.b.fill(ctx, dst)
		})
		if err != nil {
			return err
		}
		if _, err := c.b.adm(ctx, "leave-resource", "disk0"); err != nil {
			return err
		}
	}
	return nil
}

// fill joins with a disk and returns when the replica is complete.
func (n *node) fill(ctx context.Context, disk string) error {
	if _, err := n.adm(ctx, "join-resource", "disk0", disk); err != nil {
		return err
	}
	if err := n.wait(ctx, "disk0", control.CondSyncOff); err != nil {
		return err
	}
	return n.wait(ctx, "disk0", control.CondUpToDate)
}

// syncOne prepares the target of the i-th row and measures seconds and bytes of one program. All programs find nothing in the page cache: volumes are
// larger than memory, and marsd drops what it finds there of a disk, on purpose.
func (b *bench) syncOne(i int, src, file, name string, run func(dst string) error) error {
	r := syncRows[i]
	dst, err := b.before(file, r.empty, r.before)
	if err != nil {
		return err
	}
	b.dropCaches()
	wire, err := wireBytes()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := run(dst); err != nil {
		return fmt.Errorf("%s: %s: %w", r.name, name, err)
	}
	b.add(r.name, "s", name, since(began))
	if !inside() {
		b.note("bytes on the wire: needs root")
		return nil
	}
	after, err := wireBytes()
	if err == nil {
		b.add(r.name+wireSuffix, "% of the volume", name, (after-wire)*100/float64(b.o.size))
	}
	return err
}

func (b *bench) before(file string, empty bool, c content) (string, error) {
	if !empty {
		return b.disk(file, b.o.size, c)
	}
	path := filepath.Join(b.o.dir, file)
	return path, errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, b.o.size))
}

// freePort returns a port of loopback that nobody listens on at the moment.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func waitPort(ctx context.Context, port int) error {
	return waitFor(ctx, "nobody listens", func() error {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			c.Close()
		}
		return err
	})
}

// rsyncDaemon serves the bench's directory without encryption and returns its URL.
func (b *bench) rsyncDaemon(ctx context.Context) (string, error) {
	port, err := freePort()
	if err != nil {
		return "", err
	}
	config := filepath.Join(b.o.dir, "rsyncd.conf")
	text := fmt.Sprintf("use chroot = no\n[bench]\npath = %s\nread only = no\nuid = %d\ngid = %d\n", b.o.dir, os.Geteuid(), os.Getegid())
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return "", err
	}
	if _, err := b.start("rsync", "--daemon", "--no-detach", "--address=127.0.0.1", fmt.Sprintf("--port=%d", port), "--config="+config); err != nil {
		return "", err
	}
	return fmt.Sprintf("rsync://127.0.0.1:%d/bench", port), waitPort(ctx, port)
}

// tlsServer serves a file over TLS and returns its URI. A pre-shared key spares a certificate; what is measured is the cipher.
func (b *bench) tlsServer(ctx context.Context, file string) (string, error) {
	port, err := freePort()
	if err != nil {
		return "", err
	}
	key := filepath.Join(b.o.dir, "psk")
	secret := make([]byte, 32)
	seeded(2).Read(secret)
	if err := os.WriteFile(key, fmt.Appendf(nil, "bench:%x\n", secret), 0o600); err != nil {
		return "", err
	}
	if _, err := b.start("nbdkit", "-f", "-r", "--tls=require", "--tls-psk="+key, "-i", "127.0.0.1", "-p", fmt.Sprint(port), "file", file); err != nil {
		return "", err
	}
	return fmt.Sprintf("nbds://bench@127.0.0.1:%d/?tls-psk-file=%s", port, key), waitPort(ctx, port)
}
