package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"mars/internal/block"
	"mars/internal/config"
	"mars/internal/device"
	"mars/internal/device/knbd"
	"mars/internal/device/loop"
	"mars/internal/device/nbd"
	"mars/internal/device/ublk"
	"mars/internal/history"
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

// kind is a way to show a device as a block device of the kernel.
type kind struct {
	mode      config.DeviceMode
	available func() error
	open      func(rep *replica) (device.FrontEnd, error)
	// leftovers finds the devices of former processes; nil: none survives its process.
	leftovers func(cfg config.Config) ([]device.Paused, error)
}

// kinds are all there are, the best first.
var kinds = []kind{
	{config.DeviceUblk, ublk.Available, openUblk, func(cfg config.Config) ([]device.Paused, error) { return ublk.Leftovers(ublkDir(cfg)) }},
	{config.DeviceNBD, knbd.Available, openNBD, func(cfg config.Config) ([]device.Paused, error) { return knbd.Leftovers(nbdDir(cfg)) }},
	{config.DeviceLoop, loop.Available, openLoop, nil},
}

func openLoop(rep *replica) (device.FrontEnd, error) {
	n, name := rep.r.n, rep.r.name()
	return loop.Open(loop.Config{
		Name: name, Dev: rep.vol, MountDir: filepath.Join(n.cfg.Dir, "loop"), Link: filepath.Join(n.cfg.DevDir, name),
		BlockSize: int(rep.disk.LogicalBlockSize()), Log: n.log,
	})
}

func openNBD(rep *replica) (device.FrontEnd, error) {
	n, name := rep.r.n, rep.r.name()
	return knbd.Open(knbd.Config{
		Name: name, Resource: rep.r.id, Dev: rep.vol, Dir: nbdDir(n.cfg), Link: filepath.Join(n.cfg.DevDir, name),
		BlockSize: int(rep.disk.LogicalBlockSize()), Log: n.log, Tenure: rep.tenure(), Continues: rep.continues,
	})
}

func openUblk(rep *replica) (device.FrontEnd, error) {
	n, name := rep.r.n, rep.r.name()
	return ublk.Open(ublk.Config{
		Resource: rep.r.id, Dev: rep.vol, Dir: ublkDir(n.cfg), Link: filepath.Join(n.cfg.DevDir, name),
		BlockSize: int(rep.disk.LogicalBlockSize()), Log: n.log.With("res", name), Tenure: rep.tenure(), Continues: rep.continues,
	})
}

func ublkDir(cfg config.Config) string { return filepath.Join(cfg.Dir, "ublk") }

func nbdDir(cfg config.Config) string { return filepath.Join(cfg.Dir, "nbd") }

// kindFor returns how a device is shown in the kernel; nil: not at all. One that waits to be continued decides, where there is a choice.
func kindFor(mode config.DeviceMode, waits config.DeviceMode) *kind {
	if mode == config.DeviceAuto && waits != "" {
		mode = waits
	}
	for i := range kinds {
		k := &kinds[i]
		if mode == k.mode || mode == config.DeviceAuto && k.available() == nil {
			return k
		}
	}
	return nil
}

// tenure names the time during which the content changes only by what is written here.
func (rep *replica) tenure() string {
	p := rep.vol.Log().Path()
	return p.Tip().ID.String()
}

// continues reports whether the content is that of a former tenure and what this node has written since. Log that was cut off is no concern:
// before that is done a paused device is given up.
func (rep *replica) continues(tenure string) bool {
	p := rep.vol.Log().Path()
	i := slices.IndexFunc(p.Timelines, func(t history.Timeline) bool { return t.ID.String() == tenure })
	return i >= 0 && !slices.ContainsFunc(p.Timelines[i:], func(t history.Timeline) bool { return t.Origin != rep.r.n.self() })
}

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
	var waits config.DeviceMode
	if rep.paused != nil {
		waits = rep.paused.mode
	}
	if k := kindFor(n.cfg.Device, waits); k != nil {
		ways = append(ways, func() (device.FrontEnd, error) { return k.open(rep) })
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
	rep.paused = nil // taken over, or given up as something that could not be
	return nil
}

// hide closes the front ends; users of any of them prevent that, and then all are as before.
func (rep *replica) hide(ctx context.Context) error {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	if _, users := rep.pathAndUsers(); len(users) > 0 {
		err := fmt.Errorf("the device is used by %s: %w", strings.Join(users, ", "), block.ErrBusy)
		if rep.paused != nil && rep.vol.Status().Writable { // they must not wait for the end of their own use
			err = errors.Join(err, rep.openFronts())
		}
		return err
	}
	if err := rep.dropPaused(); err != nil {
		return err
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

// endFronts withdraws the device whatever its users say. When the process ends, a device that can outlive it stays; awaited: it has users.
func (rep *replica) endFronts() (awaited bool) {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	leaving := rep.r.n.ctx.Err() != nil
	for _, f := range rep.fronts {
		if s, ok := f.(device.Survivor); ok && leaving {
			awaited = awaited || len(f.Users()) > 0
			s.Leave()
		} else {
			f.Abort()
		}
	}
	rep.fronts = nil
	if leaving {
		return awaited
	}
	if err := rep.dropPaused(); err != nil {
		rep.r.n.log.Error("cannot give up a device that waits to be continued", "res", rep.r.name(), "err", err)
	}
	return false
}

// giveUp fails the IO of those who wait for the paused device.
func (rep *replica) giveUp() error {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	return rep.dropPaused()
}

// dropPaused is giveUp with the lock held.
func (rep *replica) dropPaused() error {
	if rep.paused == nil {
		return nil
	}
	rep.r.n.log.Warn("the device of a former process is given up", "res", rep.r.name(), "users", strings.Join(rep.paused.Users(), ", "))
	if err := rep.paused.Drop(); err != nil {
		return fmt.Errorf("give up the device of a former process: %w", err)
	}
	rep.paused = nil
	return nil
}

func (rep *replica) isPaused() bool {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	return rep.paused != nil
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
	if rep.paused != nil {
		users = append(users, rep.paused.Users()...)
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

// leftover is a device of a former process.
type leftover struct {
	device.Paused
	mode config.DeviceMode
}

// leftovers returns the devices of former processes that could be continued, and those of this one.
func leftovers(cfg config.Config, log *slog.Logger) []*leftover {
	var out []*leftover
	for _, k := range kinds {
		if k.leftovers == nil {
			continue
		}
		found, err := k.leftovers(cfg)
		if err != nil {
			log.Warn("cannot look after the devices of former processes", "kind", string(k.mode), "err", err)
		}
		for _, p := range found {
			out = append(out, &leftover{p, k.mode})
		}
	}
	return out
}

// pausedOf returns what a former process has left behind of a resource that is not shown yet; nil: nothing.
func (n *Node) pausedOf(id string) *leftover {
	for _, l := range leftovers(n.cfg, n.log) {
		if l.Resource() == id {
			return l
		}
	}
	return nil
}

// dropStrays gives up the devices of resources that this node is no member of.
func (n *Node) dropStrays() {
	for _, l := range leftovers(n.cfg, n.log) {
		if n.runner(l.Resource()) == nil {
			dropLeftover(l, n.log)
		}
	}
}

func dropLeftover(l *leftover, log *slog.Logger) {
	log.Warn("the device of a former process is given up", "res", l.Resource(), "users", strings.Join(l.Users(), ", "))
	if err := l.Drop(); err != nil {
		log.Error("cannot give up the device of a former process", "res", l.Resource(), "err", err)
	}
}

// cleanStale removes devices that a killed daemon left behind and that this one would not continue.
func cleanStale(cfg config.Config, log *slog.Logger) {
	for _, l := range leftovers(cfg, log) {
		if cfg.Device != config.DeviceAuto && cfg.Device != l.mode {
			dropLeftover(l, log)
		}
	}
	left, err := loop.CleanStale(filepath.Join(cfg.Dir, "loop"))
	if err != nil {
		log.Warn("cannot clean up stale loop devices", "err", err)
	}
	for _, l := range left {
		log.Warn("a stale loop device is still in use; it goes away when its users close it", "res", l.Name, "device", l.Device, "users", strings.Join(l.Users, ", "))
	}
}
