package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"mars/internal/block"
	"mars/internal/config"
	"mars/internal/device"
	"mars/internal/device/loop"
	"mars/internal/device/nbd"
)

// hideTimeout bounds how long a withdrawal may take that no user prevents.
const hideTimeout = 5 * time.Second

// openHub listens for NBD over TCP; it returns nil when that is not wished.
func openHub(cfg config.Config, log *slog.Logger) (*nbd.Hub, error) {
	if cfg.NBDListen == "" {
		return nil, nil
	}
	hub := nbd.HubConfig{Listen: cfg.NBDListen, Log: log}
	if cfg.NBDTLSCert != "" {
		var err error
		hub.TLS, err = nbd.LoadTLS(nbd.TLSFiles{Cert: cfg.NBDTLSCert, Key: cfg.NBDTLSKey, CA: cfg.NBDTLSCA}, log)
		if err != nil {
			return nil, fmt.Errorf("NBD over TCP: %w; let nbd_tls_cert, nbd_tls_key and nbd_tls_ca name PEM files that marsd can read", err)
		}
	}
	h, err := nbd.OpenHub(hub)
	if err != nil {
		return nil, fmt.Errorf("NBD over TCP: %w; set nbd_listen to an address of this host with a free port", err)
	}
	return h, nil
}

func (n *Node) closeHub() {
	if n.hub != nil {
		n.hub.Close()
	}
}

// opener opens one kind of front end.
type opener func() (device.FrontEnd, error)

// openers are how the replica's device is shown; the last way is the preferred one, which applications are told.
func (rep *replica) openers() []opener {
	n, name := rep.r.n, rep.r.name()
	export := nbd.Config{Export: name, Dev: rep.vol, Log: n.log}
	var ways []opener
	if n.hub != nil {
		ways = append(ways, func() (device.FrontEnd, error) { return n.hub.Show(export) })
	}
	ways = append(ways, func() (device.FrontEnd, error) {
		return nbd.Show(export, filepath.Join(n.cfg.Dir, "dev", name+".sock"))
	})
	if useLoop(n.cfg) {
		ways = append(ways, func() (device.FrontEnd, error) {
			return loop.Open(loop.Config{
				Name: name, Dev: rep.vol, MountDir: filepath.Join(n.cfg.Dir, "loop"), Link: filepath.Join(n.cfg.DevDir, name),
				BlockSize: int(rep.disk.LogicalBlockSize()), Log: n.log,
			})
		})
	}
	return ways
}

// show opens the front ends.
func (r *runner) show() error {
	rep := r.replica()
	rep.mu.Lock()
	defer rep.mu.Unlock()
	return rep.openFronts()
}

// openFronts opens the front ends that are not open; all of them, or none. The lock is held.
func (rep *replica) openFronts() error {
	have, ways := len(rep.fronts), rep.openers()
	for len(rep.fronts) < len(ways) {
		f, err := ways[len(rep.fronts)]()
		if err != nil {
			for _, f := range rep.fronts[have:] {
				f.Abort()
			}
			rep.fronts = rep.fronts[:have]
			return fmt.Errorf("show device: %w", err)
		}
		rep.fronts = append(rep.fronts, f)
	}
	return nil
}

// useLoop says whether devices are shown as loop devices.
func useLoop(cfg config.Config) bool {
	switch cfg.Device {
	case config.DeviceLoop:
		return true
	case config.DeviceAuto:
		return loop.Available() == nil
	}
	return false
}

// hide closes the front ends; users of any of them prevent that, and then all are as before.
func (rep *replica) hide(ctx context.Context) error {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	if _, users := rep.pathAndUsers(); len(users) > 0 {
		return fmt.Errorf("the device is used by %s: %w", strings.Join(users, ", "), block.ErrBusy)
	}
	ctx, cancel := context.WithTimeout(ctx, hideTimeout)
	defer cancel()
	for len(rep.fronts) > 0 {
		last := len(rep.fronts) - 1
		err := rep.fronts[last].Close(ctx)
		if errors.Is(err, block.ErrBusy) { // somebody came in this very moment
			return errors.Join(err, rep.openFronts())
		}
		if err != nil {
			return err
		}
		rep.fronts = rep.fronts[:last]
	}
	return nil
}

func (rep *replica) abortFronts() {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	for _, f := range rep.fronts {
		f.Abort()
	}
	rep.fronts = nil
}

// resized tells the front ends that the volume has grown.
func (rep *replica) resized() error {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	var errs []error
	for _, f := range rep.fronts {
		errs = append(errs, f.Resized())
	}
	return errors.Join(errs...)
}

// deviceAndUsers returns the path for applications and who has it open.
func (rep *replica) deviceAndUsers() (path string, users []string) {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	return rep.pathAndUsers()
}

// pathAndUsers is deviceAndUsers with the lock held.
func (rep *replica) pathAndUsers() (path string, users []string) {
	for _, f := range rep.fronts {
		path = f.Path() // the last one is the preferred one
		users = append(users, f.Users()...)
	}
	return path, users
}

// devicePath is where applications find the device; empty if it is not shown.
func (r *runner) devicePath() string {
	rep := r.replica()
	if rep == nil {
		return ""
	}
	path, _ := rep.deviceAndUsers()
	return path
}

// cleanStale removes devices that a killed daemon left behind.
func cleanStale(cfg config.Config, log *slog.Logger) {
	if !useLoop(cfg) {
		return
	}
	left, err := loop.CleanStale(filepath.Join(cfg.Dir, "loop"))
	if err != nil {
		log.Warn("cannot clean up stale loop devices", "err", err)
	}
	for _, l := range left {
		log.Warn("a stale loop device is still in use; it goes away when its users close it", "res", l.Name, "device", l.Device, "users", strings.Join(l.Users, ", "))
	}
}
