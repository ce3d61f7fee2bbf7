package loop

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"mars/internal/block"
	"mars/internal/device/blockdev"
)

// Leftover is a loop device of a dead process that still has users. All its I/O fails; it goes away when the last user has closed it.
type Leftover struct {
	Name   string
	Device string
	Users  []string
}

// CleanStale removes what killed processes left under dir: loop devices, FUSE mounts, symlinks. It touches only places whose claim file is
// there and not locked, so that devices of living processes, and whatever else lies under dir, are safe. It returns the loop devices that
// could not be released yet.
func CleanStale(dir string) ([]Leftover, error) {
	dir, err := realDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("clean up %s: %w", dir, err)
	}
	var left []Leftover
	var errs []error
	for _, e := range entries {
		if !e.IsDir() || !nameRule.MatchString(e.Name()) {
			continue
		}
		l, err := cleanPlace(place{dir: dir, name: e.Name()})
		errs = append(errs, err)
		if l != nil {
			left = append(left, *l)
		}
	}
	return left, errors.Join(errs...)
}

func cleanPlace(p place) (*Leftover, error) {
	c, err := tryClaim(p, 0)
	if errors.Is(err, block.ErrBusy) || errors.Is(err, fs.ErrNotExist) {
		return nil, nil // alive, or not a place of ours
	}
	if err != nil {
		return nil, err
	}
	l, err := cleanClaimed(p, c)
	return l, errors.Join(err, c.drop())
}

// cleanClaimed removes what a dead owner of p left behind. The order matters: the loop devices are found by a path that the lazy unmount
// changes, and the connection is aborted first so that nothing that follows can wait for a daemon that will never answer.
func cleanClaimed(p place, c *claim) (*Leftover, error) {
	loops := boundTo(p.file())
	mounted := mountedAt(p.mnt())
	if mounted {
		if err := abortMount(p.mnt()); err != nil {
			return nil, err
		}
	}
	var left *Leftover
	for _, l := range loops {
		users, err := releaseStale(l, p, c)
		if err != nil {
			return left, err
		}
		if len(users) > 0 {
			left = &Leftover{Name: p.name, Device: l.node(), Users: users}
		}
	}
	state := c.recorded()
	if err := blockdev.DropLink(state.Link, state.Node); err != nil {
		return left, err
	}
	// More than one mount: the owners of the lower ones died while the loop device was in use.
	for ; mounted; mounted = mountedAt(p.mnt()) {
		if err := detachMount(p.mnt()); err != nil {
			return left, err
		}
	}
	return left, nil
}

// releaseStale detaches l and waits until it is free, unless it has users: then it is marked to go with the last of them.
func releaseStale(l loopDev, p place, c *claim) ([]string, error) {
	link := c.recorded().Link
	if err := blockdev.DropLink(link, l.node()); err != nil {
		return nil, err
	}
	if err := l.forceDetach(p.file()); err != nil {
		return nil, err
	}
	ctx, cancel := detachDeadline()
	defer cancel()
	var users []string
	err := blockdev.Poll(ctx, "release "+l.node(), func() (bool, error) {
		users = nil
		if l.backing() != p.file() {
			return true, nil
		}
		users = blockdev.Names(l.disk().Users(link))
		return len(users) > 0, nil
	})
	if err != nil && l.backing() == p.file() {
		return []string{"an opener that is not visible from here"}, nil
	}
	return users, nil
}

// boundTo lists the loop devices that are bound to file.
func boundTo(file string) []loopDev {
	dirs, err := filepath.Glob(sysBlock + "/loop[0-9]*")
	if err != nil {
		return nil // cannot happen: the pattern is well-formed
	}
	var out []loopDev
	for _, dir := range dirs {
		n, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(dir), "loop"))
		if err == nil && loopDev(n).backing() == file {
			out = append(out, loopDev(n))
		}
	}
	return out
}

// mountedAt tells whether one of our file systems is mounted there.
func mountedAt(at string) bool {
	for _, m := range blockdev.ReadMountinfo("/proc/self/mountinfo") {
		if m.Point == at && m.FSType == fuseType {
			return true
		}
	}
	return false
}
