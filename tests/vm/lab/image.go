package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// Image is what every machine boots: Debian's kernel, unchanged, and a root file system of Debian packages, read-only and shared.
type Image struct {
	Dir     string   // of the cache that holds it
	Release string   // of the kernel
	Kernel  string   // file
	Root    string   // file with an ext4
	Modules []string // files that make the root file system readable, in the order of loading
}

// packages of the machines, with all that they depend on. Adding one is enough to have it in every machine.
//
//go:embed packages.txt
var packages string

// format of the cache; changing it makes everybody's images anew.
const format = "2"

// ErrMissing is wrapped by errors that say what the host has to have before there can be machines.
var ErrMissing = errors.New("the VM lab needs")

// ErrNotFetched is wrapped by errors that say why the packages could not be had from the mirror.
var ErrNotFetched = errors.New("packages for the machines cannot be fetched")

// hostTools are programs of the host, and Debian's packages that have them.
var hostTools = map[string]string{
	"qemu-system-x86_64": "qemu-system-x86", "apt-get": "apt", "dpkg-deb": "dpkg", "mke2fs": "e2fsprogs", "zstd": "zstd", "xz": "xz-utils",
}

// CacheDir is where images are kept: MARS_VM_CACHE, or mars-vm below the user's cache directory.
func CacheDir() (string, error) {
	if dir := os.Getenv("MARS_VM_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("where to keep images (MARS_VM_CACHE says it): %w", err)
	}
	return filepath.Join(dir, "mars-vm"), nil
}

// Prepare returns the image, and makes it first when it is not in the cache: that takes a minute and the machine's Debian mirror.
func Prepare(ctx context.Context) (*Image, error) {
	if err := checkHost(); err != nil {
		return nil, err
	}
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(format + packages))
	dir := filepath.Join(cache, hex.EncodeToString(sum[:6]))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	unlock, err := lock(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := os.Stat(filepath.Join(dir, "done")); err != nil {
		if err := build(ctx, dir); err != nil {
			return nil, fmt.Errorf("make the image in %s: %w", dir, err)
		}
	}
	return load(dir)
}

func checkHost() error {
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	var missing []string
	for tool, pkg := range hostTools {
		if _, err := exec.LookPath(tool); err != nil {
			missing = append(missing, pkg)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: %s", ErrMissing, strings.Join(missing, " "))
	}
	return nil
}

// lock waits until nobody else has the file locked.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { f.Close() }, nil
}

func load(dir string) (*Image, error) {
	release, err := os.ReadFile(filepath.Join(dir, "release"))
	if err != nil {
		return nil, err
	}
	order, err := os.ReadFile(filepath.Join(dir, "modules", "order"))
	if err != nil {
		return nil, err
	}
	img := &Image{Dir: dir, Release: string(release), Kernel: filepath.Join(dir, "vmlinux"), Root: filepath.Join(dir, "root.ext4")}
	for name := range strings.FieldsSeq(string(order)) {
		img.Modules = append(img.Modules, filepath.Join(dir, "modules", name))
	}
	return img, nil
}

// build makes everything in dir, and "done" last.
func build(ctx context.Context, dir string) error {
	tree := filepath.Join(dir, "tree")
	if err := os.RemoveAll(tree); err != nil {
		return err
	}
	b := &builder{ctx: ctx, dir: dir, tree: tree}
	if err := b.fetch(); err != nil {
		return fmt.Errorf("%w: %w", ErrNotFetched, err)
	}
	for _, step := range []func() error{b.unpack, b.configure, b.kernel, b.modules, b.pack} {
		if err := step(); err != nil {
			return err
		}
	}
	if err := errors.Join(os.RemoveAll(tree), os.RemoveAll(filepath.Join(dir, "apt"))); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "done"), nil, 0o644)
}

// builder makes an image.
type builder struct {
	ctx       context.Context
	dir, tree string
	release   string
}

// run runs a program of the host and returns what it prints.
func (b *builder) run(env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(b.ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, tail(out.String()), tail(errs.String()))
	}
	return out.String(), nil
}

// tail returns the last lines of a long text.
func tail(s string) string {
	const most = 2000
	if len(s) > most {
		s = "..." + s[len(s)-most:]
	}
	return s
}
