// Package node is one host: it opens the cluster membership, runs one replica per resource this host is a member of, serves the log and the
// disk content to the other members, and carries out the administrator's commands. It decides nothing about roles or histories: package
// resource does; a node observes, asks, and does as told, again and again.
//
// Layout of DIR: identity and metadata (package cluster), `resource/ID/` with state file and log of each replica (package volume),
// `dev/NAME.sock` NBD sockets, `loop/` mount points, `nbd/` and `ublk/` records of devices, `marsd.sock` control socket, `marsd.lock`.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"mars/internal/cluster"
	"mars/internal/config"
	"mars/internal/control"
	"mars/internal/device/nbd"
	"mars/internal/meta"
	"mars/internal/resource"
	"mars/internal/transport"
	"mars/internal/vfs"
)

// Node is a running host. Create it with Open; it implements control.Backend.
type Node struct {
	cfg     config.Config
	log     *slog.Logger
	fs      vfs.FS
	lock    io.Closer
	cluster *cluster.Cluster
	hub     *nbd.Hub // nil: no NBD over TCP
	store   logStore
	stamps  stamps
	syncs   turns // of logs that only peers wait for
	ships   turns // of small pieces of log
	replays turns // of windows where there is no backlog
	parsed  parsed
	latest  latest
	started time.Time
	version string

	ctx  context.Context
	stop context.CancelCauseFunc
	wg   sync.WaitGroup

	mu      sync.Mutex
	runners map[string]*runner // by resource id
	gone    map[string]bool    // resources whose leftovers were removed
	create  sync.Mutex         // one creation of a resource at a time
}

// Version of the daemon, shown in the status; set by main.
var Version = "dev"

var errClosed = errors.New("marsd is stopping")

// Open starts everything. The caller must Close the node.
func Open(cfg config.Config, log *slog.Logger) (*Node, error) {
	n := &Node{cfg: cfg, log: log, fs: vfs.OS(), started: time.Now(), version: Version,
		runners: make(map[string]*runner), gone: make(map[string]bool),
		syncs: turns{gap: shipInterval, most: maxShipInterval}, ships: turns{gap: shipInterval, most: maxShipInterval},
		replays: turns{gap: replayGap, most: maxReplayGap}}
	for _, d := range []string{cfg.Dir, filepath.Join(cfg.Dir, "resource"), filepath.Join(cfg.Dir, "dev")} {
		if err := n.fs.MkdirAll(d); err != nil {
			return nil, fmt.Errorf("create %s: %w", d, err)
		}
	}
	lock, err := vfs.Lock(filepath.Join(cfg.Dir, "marsd.lock"))
	if err != nil {
		return nil, fmt.Errorf("another marsd works in %s: %w", cfg.Dir, err)
	}
	n.lock = lock
	n.ctx, n.stop = context.WithCancelCause(context.Background())
	n.store = logStore{fs: n.fs, dir: filepath.Join(cfg.Dir, "resource"), limit: cfg.LogLimitBytes, reserve: cfg.LogReserveBytes, used: n.logUsed}
	cleanStale(cfg, log)
	if n.hub, err = openHub(cfg, log); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	n.cluster, err = cluster.Open(cluster.Config{Dir: filepath.Join(cfg.Dir, "cluster"), NodeName: cfg.Name, Listen: cfg.Listen, Advertise: cfg.Advertise, Log: log,
		Final: resource.IsName})
	if err != nil {
		n.closeHub()
		return nil, errors.Join(err, lock.Close())
	}
	n.cluster.Handle(transport.Log, n.serveLog)
	n.cluster.Handle(transport.Sync, n.serveSync)
	n.wg.Go(n.watch) // ends with n.ctx
	return n, nil
}

// Close stops everything in order: no device stays half open, what is in the log goes to the disk if that is quick, what was applied is checkpointed. A device
// that is still in use is withdrawn; its users get errors, and nothing that was acknowledged is lost.
func (n *Node) Close() error {
	n.stop(errClosed)
	n.wg.Wait()
	n.mu.Lock()
	runners := n.runners
	n.runners = map[string]*runner{}
	n.mu.Unlock()
	var wg sync.WaitGroup
	for _, r := range runners {
		wg.Go(r.close)
	}
	wg.Wait()
	n.closeHub()
	return errors.Join(n.cluster.Close(), n.lock.Close())
}

// watch follows the metadata: it starts and stops runners and wakes those whose resource has changed.
func (n *Node) watch() {
	changed, cancel := n.cluster.Watch()
	defer cancel()
	var seen catalog
	for {
		now := n.catalog()
		n.reconcile(now, seen)
		seen = now
		select {
		case <-n.ctx.Done():
			return
		case <-changed:
		}
	}
}

// reconcile makes the set of runners fit the catalog.
func (n *Node) reconcile(now, before catalog) {
	self := n.self()
	for id, e := range now {
		r := n.runner(id)
		switch mine := e.members[self] != nil && !n.cluster.Evicted(); {
		case mine && r == nil:
			n.startRunner(id)
		case !mine && r != nil:
			n.endRunner(r)
		case r != nil && e.stamp != before[id].stamp:
			r.wake()
		}
	}
	for _, r := range n.allRunners() {
		if _, ok := now[r.id]; !ok {
			n.endRunner(r)
		}
	}
	n.removeLeftovers()
	n.forgetDeleted()
}

// forgetDeleted deletes what was written about a resource by somebody who did not know yet that it was deleted.
func (n *Node) forgetDeleted() {
	if n.cluster.ID() == "" || n.cluster.Evicted() {
		return
	}
	var changes []meta.Change
	for _, k := range resource.Leftovers(n.cluster.List(resourcePrefix), n.cluster.Deleted) {
		changes = append(changes, meta.Change{Key: k, Delete: true})
	}
	if len(changes) == 0 {
		return
	}
	if err := n.cluster.Batch(changes); err != nil {
		n.log.Warn("cannot delete the rest of a deleted resource", "err", err)
	}
}

func (n *Node) startRunner(id string) {
	r := newRunner(n, id)
	n.mu.Lock()
	n.runners[id] = r
	n.mu.Unlock()
	r.start()
}

// endRunner tears the replica of a resource down that this node is no member of any more. The disk keeps its content.
func (n *Node) endRunner(r *runner) {
	v := r.volume()
	noted := v != nil && n.noteOpen(r.id, v) == nil
	r.close()
	switch { // before the runner is gone: who waits for that finds nothing left
	case n.cluster.ID() == "" || n.cluster.Evicted():
	case noted:
		n.removeReplica(r.id)
	default:
		n.removeLeftover(r.id)
	}
	n.mu.Lock()
	delete(n.runners, r.id)
	n.mu.Unlock()
	n.log.Info("left resource", "res", r.name(), "disk", "keeps its content")
}

// removeLeftovers deletes state and log of resources that this node is no member of: after leave-resource, or a crash in the middle of
// create-resource.
func (n *Node) removeLeftovers() {
	if n.cluster.ID() == "" || n.cluster.Evicted() {
		return
	}
	n.create.Lock()
	defer n.create.Unlock()
	n.dropStrays()
	names, err := n.fs.ReadDir(n.store.dir)
	if err != nil {
		n.log.Error("cannot list replicas", "dir", n.store.dir, "err", err)
		return
	}
	for _, id := range names {
		if n.runner(id) == nil {
			n.removeLeftover(id)
		}
	}
}

func (n *Node) removeLeftover(id string) {
	if n.isMember(id) {
		return
	}
	if err := n.noteClosed(id); err != nil {
		n.log.Error("cannot remove the log of a former membership", "res", id, "err", err)
		return
	}
	n.removeReplica(id)
}

// isMember asks the membership itself, not the catalog, which leaves out what it cannot read.
func (n *Node) isMember(id string) bool {
	_, _, member := n.cluster.Get(key(id, "member", n.self()))
	return member
}

// removeReplica deletes state and log of a resource unless this node is a member of it. What it has heard from others about that may be in memory
// only: it must still be known after a crash, else this node would be a member without a replica.
func (n *Node) removeReplica(id string) {
	if n.isMember(id) {
		return
	}
	if err := n.cluster.Batch(nil); err != nil {
		n.log.Error("cannot remove the log of a former membership", "res", id, "err", err)
		return
	}
	if err := os.RemoveAll(filepath.Join(n.store.dir, id)); err != nil {
		n.log.Error("cannot remove the log of a former membership", "dir", filepath.Join(n.store.dir, id), "err", err)
	}
}

func (n *Node) runner(id string) *runner {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.runners[id]
}

func (n *Node) allRunners() []*runner {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]*runner, 0, len(n.runners))
	for _, r := range n.runners {
		out = append(out, r)
	}
	return out
}

func (n *Node) self() string { return n.cluster.Self().ID }

// nodeName returns the label of a node id, for humans.
func (n *Node) nodeName(id string) string {
	if id == "" {
		return ""
	}
	if info, err := n.cluster.Node(id); err == nil {
		return info.Name
	}
	if len(id) > 8 {
		id = id[:8]
	}
	return id + " (left)"
}

var _ control.Backend = (*Node)(nil)
