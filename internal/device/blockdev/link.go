package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Remove removes a file that may be gone already.
func Remove(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// PlaceLink points link to node, atomically. It replaces a symlink, but nothing else.
func PlaceLink(link, node string) error {
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		return fmt.Errorf("link: %w", err)
	}
	if st, err := os.Lstat(link); err == nil && st.Mode()&fs.ModeSymlink == 0 {
		return fmt.Errorf("link %s: there is something that is not a symlink", link)
	}
	tmp := filepath.Join(filepath.Dir(link), "."+filepath.Base(link)+".new")
	if err := Remove(tmp); err != nil {
		return fmt.Errorf("link: %w", err)
	}
	if err := os.Symlink(node, tmp); err != nil {
		return fmt.Errorf("link: %w", err)
	}
	if err := os.Rename(tmp, link); err != nil {
		return errors.Join(fmt.Errorf("link: %w", err), os.Remove(tmp))
	}
	return nil
}

// DropLink removes link if it still points to node.
func DropLink(link, node string) error {
	if link == "" || node == "" {
		return nil
	}
	if target, err := os.Readlink(link); err != nil || target != node {
		return nil // gone, or somebody else's by now
	}
	if err := Remove(link); err != nil {
		return fmt.Errorf("link: %w", err)
	}
	return nil
}
