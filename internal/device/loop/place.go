package loop

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"mars/internal/block"
	"mars/internal/device/blockdev"

	"golang.org/x/sys/unix"
)

// place is where a resource has its files:
//
//	DIR/NAME/        private
//	DIR/NAME/claim   locked by the living owner; remembers what a later clean-up must know
//	DIR/NAME/mnt     the FUSE mount, with one file NAME in it
type place struct{ dir, name string }

func (p place) home() string  { return filepath.Join(p.dir, p.name) }
func (p place) claim() string { return filepath.Join(p.home(), "claim") }
func (p place) mnt() string   { return filepath.Join(p.home(), "mnt") }
func (p place) file() string  { return filepath.Join(p.mnt(), p.name) }

// makePlace resolves symlinks in dir, so that its paths look like those the kernel shows.
func makePlace(dir, name string) (place, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return place{}, fmt.Errorf("mount directory: %w", err)
	}
	resolved, err := realDir(dir)
	return place{dir: resolved, name: name}, err
}

func realDir(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return "", fmt.Errorf("mount directory: %w", err)
	}
	return abs, nil
}

// claim is the right to touch a place: an flock that the kernel drops when its owner dies.
type claim struct {
	at place
	f  *os.File
}

// claimState is what a clean-up after kill -9 needs to know. It is for the time until the next reboot at most, so it is not synced.
type claimState struct {
	Link string `json:"link"`
	Node string `json:"node"`
}

// takeClaim fails with block.ErrBusy when a living process, or another FrontEnd of this one, has the place.
func takeClaim(p place) (*claim, error) {
	for {
		if err := os.Mkdir(p.home(), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("claim %s: %w", p.name, err)
		}
		c, err := tryClaim(p, os.O_CREATE)
		if errors.Is(err, fs.ErrNotExist) {
			continue // its former owner removes the directory right now
		}
		return c, err
	}
}

func tryClaim(p place, flag int) (*claim, error) {
	f, err := os.OpenFile(p.claim(), os.O_RDWR|flag, 0o600)
	if err != nil {
		return nil, fmt.Errorf("claim %s: %w", p.name, err)
	}
	if err := lockCurrent(f); err != nil {
		return nil, errors.Join(fmt.Errorf("claim %s: %w", p.name, err), f.Close())
	}
	return &claim{at: p, f: f}, nil
}

// lockCurrent locks f and makes sure that it is still the file of its name: its last owner removes it while holding the lock.
func lockCurrent(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("shown by a living process: %w", block.ErrBusy)
	}
	if err != nil {
		return err
	}
	mine, err := f.Stat()
	if err != nil {
		return err
	}
	named, err := os.Stat(f.Name())
	if err != nil {
		return err
	}
	if !os.SameFile(mine, named) {
		return fs.ErrNotExist
	}
	return nil
}

func (c *claim) record(s claimState) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := c.f.Truncate(0); err != nil {
		return err
	}
	_, err = c.f.WriteAt(b, 0)
	return err
}

// recorded is empty when the owner died before it had made a link.
func (c *claim) recorded() claimState {
	var s claimState
	b, err := os.ReadFile(c.at.claim())
	if err != nil || json.Unmarshal(b, &s) != nil {
		return claimState{}
	}
	return s
}

// drop removes the place and gives up the claim. A directory that is not empty stays: something there is not ours.
func (c *claim) drop() error {
	err := errors.Join(
		blockdev.Remove(c.at.mnt()),
		blockdev.Remove(c.at.claim()),
		blockdev.Remove(c.at.home()))
	return errors.Join(err, c.f.Close())
}
