package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// early are the modules without which there is no root file system and no agent; what they name as their needs comes by itself.
var early = []string{"virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "crc32c_generic", "crc32c_intel", "ext4", "overlay"}

// kernel unpacks the kernel proper, which starts several seconds faster than one that has to unpack itself on an emulated processor.
func (b *builder) kernel() error {
	if err := os.WriteFile(filepath.Join(b.dir, "release"), []byte(b.release), 0o644); err != nil {
		return err
	}
	image, err := os.ReadFile(filepath.Join(b.tree, "boot", "vmlinuz-"+b.release))
	if err != nil {
		return err
	}
	payload, err := payloadOf(image)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(b.ctx, "zstd", "-dc")
	cmd.Stdin = bytes.NewReader(payload)
	elf, err := cmd.Output()
	if !bytes.HasPrefix(elf, []byte("\x7fELF")) {
		return fmt.Errorf("unpack the kernel: %d bytes, no ELF file (%w)", len(elf), err)
	}
	return errors.Join(os.WriteFile(filepath.Join(b.dir, "vmlinux"), elf, 0o644), os.RemoveAll(filepath.Join(b.tree, "boot")))
}

// payloadOf finds the packed kernel in a bzImage (Linux Documentation/arch/x86/boot.rst, payload_offset).
func payloadOf(image []byte) ([]byte, error) {
	const setupSects, magic, payload = 0x1f1, 0x202, 0x248
	if len(image) < payload+8 || string(image[magic:magic+4]) != "HdrS" {
		return nil, errors.New("not a bzImage")
	}
	start := (int64(image[setupSects]) + 1) * 512
	off := start + int64(binary.LittleEndian.Uint32(image[payload:]))
	n := int64(binary.LittleEndian.Uint32(image[payload+4:])) - 4 // its last four bytes are the size when unpacked
	if n < 0 || off+n > int64(len(image)) {
		return nil, fmt.Errorf("payload of %d bytes at %d in an image of %d", n, off, len(image))
	}
	return image[off : off+n], nil
}

// modules indexes the kernel's modules with the tree's own depmod, and copies the early ones out.
func (b *builder) modules() error {
	lib := filepath.Join(b.tree, "usr/lib/x86_64-linux-gnu")
	if _, err := b.run(nil, filepath.Join(lib, "ld-linux-x86-64.so.2"), "--library-path", lib, "--argv0", "depmod",
		filepath.Join(b.tree, "usr/bin/kmod"), "-b", b.tree, b.release); err != nil {
		return err
	}
	base := filepath.Join(b.tree, "usr/lib/modules", b.release)
	dep, err := os.ReadFile(filepath.Join(base, "modules.dep"))
	if err != nil {
		return err
	}
	to := filepath.Join(b.dir, "modules")
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	var order []string
	for _, file := range loadOrder(string(dep), early) {
		if err := copyFile(filepath.Join(base, file), filepath.Join(to, filepath.Base(file))); err != nil {
			return err
		}
		order = append(order, filepath.Base(file))
	}
	return os.WriteFile(filepath.Join(to, "order"), []byte(strings.Join(order, "\n")+"\n"), 0o644)
}

// loadOrder returns the files of the modules and of all that they need, those first that others need.
func loadOrder(dep string, names []string) []string {
	needs, file := map[string][]string{}, map[string]string{}
	for line := range strings.Lines(dep) {
		path, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		file[moduleName(path)] = path
		needs[path] = strings.Fields(rest)
	}
	var order []string
	seen := map[string]bool{}
	add := func(path string) {
		if !seen[path] {
			seen[path] = true
			order = append(order, path)
		}
	}
	for _, name := range names {
		path, ok := file[name]
		if !ok {
			continue // built in, or boot will say what is missing
		}
		deps := needs[path]
		for i := range deps { // depmod lists what is to be loaded last first
			add(deps[len(deps)-1-i])
		}
		add(path)
	}
	return order
}

func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o644)
}

// pack makes the root file system; nobody has to be root for that.
func (b *builder) pack() error {
	const size = "1400M" // sparse
	file := filepath.Join(b.dir, "root.ext4")
	if err := os.RemoveAll(file); err != nil {
		return err
	}
	_, err := b.run(nil, "mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-E", "root_owner=0:0", "-d", b.tree, file, size)
	return err
}
