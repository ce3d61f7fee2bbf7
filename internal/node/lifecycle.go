package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"mars/internal/block"
	"mars/internal/bytesize"
	"mars/internal/control"
	"mars/internal/history"
	"mars/internal/meta"
	"mars/internal/resource"
	"mars/internal/volume"
)

// createResource makes the first replica. The order matters for a crash in the middle: state and log come first, the metadata, which make them
// known, last and at once; leftovers without metadata are removed at the next start.
func (n *Node) createResource(ctx context.Context, c control.Command) (control.Result, error) {
	if found := n.catalog().byName(c.Resource); len(found) > 0 {
		return control.Result{}, fmt.Errorf("resource %s exists already; choose another name, or `marsadm join-resource %s DISK` to add a replica", c.Resource, c.Resource)
	}
	size, id, err := n.createReplica(c)
	if err != nil {
		return control.Result{}, fmt.Errorf("create-resource %s: %w", c.Resource, err)
	}
	r, err := n.awaitRunner(ctx, id)
	if err != nil {
		return control.Result{}, err
	}
	err = r.await(ctx, func(in resource.Input, _ resource.Plan) (bool, error) {
		return in.Local.Writable && in.Local.Device != "", nil
	})
	path := r.devicePath()
	return say("resource %s of %s created; node %s is primary, the device is %s", c.Resource, bytesize.Format(size), n.cfg.Name, path), err
}

func (n *Node) createReplica(c control.Command) (size int64, id string, err error) {
	n.create.Lock()
	defer n.create.Unlock()
	disk, err := block.OpenDisk(c.Disk, block.DiskOptions{})
	if err != nil {
		return 0, "", err
	}
	size, id, err = n.fillReplica(c, disk)
	// The disk must be free before the metadata make the runner open it.
	if err := errors.Join(err, disk.Close()); err != nil {
		return 0, "", err
	}
	path, err := filepath.Abs(c.Disk)
	if err != nil {
		return 0, "", err
	}
	self := n.self()
	return size, id, n.cluster.Batch([]meta.Change{
		{Key: key(id, "primary"), Value: encode(self)},
		{Key: key(id, "member", self), Value: encode(memberRecord{Disk: path})},
		{Key: key(id, "switch", self), Value: encode(resource.AllOn)},
		{Key: key(id, "name"), Value: encode(c.Resource)},
	})
}

// fillReplica writes the state and the log of the first replica of a new resource.
func (n *Node) fillReplica(c control.Command, disk *block.Disk) (size int64, id string, err error) {
	size = disk.Size() / block.SectorSize * block.SectorSize
	if c.Size != 0 {
		if c.Size%block.SectorSize != 0 || c.Size > size {
			return 0, "", fmt.Errorf("--size %d: it must be a multiple of 512 and not more than the %d bytes of %s", c.Size, size, c.Disk)
		}
		size = c.Size
	}
	id = newID()
	cfg, err := n.volumeConfig(id, disk)
	if err != nil {
		return 0, "", err
	}
	vol, err := volume.Create(cfg, size)
	if err != nil {
		return 0, "", err
	}
	err = vol.Activate(n.self(), history.Timeline{ID: newTimelineID(), Stamp: n.stamps.next()})
	return size, id, errors.Join(err, vol.Close())
}

// joinResource adds a replica here. It returns when the sync has begun; wait-resource NAME uptodate waits for its end.
func (n *Node) joinResource(ctx context.Context, e entry, c control.Command) (control.Result, error) {
	self := n.self()
	if e.members[self] != nil {
		return control.Result{}, fmt.Errorf("node %s is a member of resource %s already", n.cfg.Name, e.name)
	}
	if err := n.awaitGone(ctx, e.id, self); err != nil { // a former membership that has just ended may still hold the disk
		return control.Result{}, err
	}
	disk, err := block.OpenDisk(c.Disk, block.DiskOptions{})
	if err != nil {
		return control.Result{}, fmt.Errorf("join-resource %s: %w", e.name, err)
	}
	have := disk.Size()
	if err := disk.Close(); err != nil {
		return control.Result{}, err
	}
	if err := resource.MayJoin(n.members(e), have); err != nil {
		return control.Result{}, fmt.Errorf("join-resource %s: disk %s: %w", e.name, c.Disk, n.named(e, err))
	}
	path, err := filepath.Abs(c.Disk)
	if err != nil {
		return control.Result{}, err
	}
	err = n.cluster.Batch([]meta.Change{
		{Key: key(e.id, "facts", self), Delete: true},
		{Key: key(e.id, "switch", self), Value: encode(resource.AllOn)},
		{Key: key(e.id, "member", self), Value: encode(memberRecord{Disk: path})},
	})
	if err != nil {
		return control.Result{}, err
	}
	r, err := n.awaitRunner(ctx, e.id)
	if err != nil {
		return control.Result{}, err
	}
	err = r.await(ctx, func(in resource.Input, _ resource.Plan) (bool, error) { return in.Local.Open, nil })
	return say("node %s has joined resource %s; the replica is being filled", n.cfg.Name, e.name), err
}

// members are all members of a resource as known here.
func (n *Node) members(e entry) []resource.Peer {
	var all []resource.Peer
	for node := range e.members {
		p := resource.Peer{Node: node, Facts: e.facts[node]}
		if info, err := n.cluster.Node(node); err == nil {
			p.Alive = info.Alive
		}
		all = append(all, p)
	}
	resource.SortPeers(all)
	return all
}

// named puts names into what package resource says about the members.
func (n *Node) named(e entry, err error) error {
	if err == nil {
		return nil
	}
	return errors.New(strings.ReplaceAll(n.withNames(err.Error(), resource.Input{Peers: n.members(e)}), "RES", e.name))
}

// awaitRunner waits until the watcher has started the runner of a resource.
func (n *Node) awaitRunner(ctx context.Context, id string) (*runner, error) {
	changed, cancel := n.cluster.Watch()
	defer cancel()
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for {
		if r := n.runner(id); r != nil {
			return r, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-n.ctx.Done():
			return nil, errClosed
		case <-changed:
		case <-t.C:
		}
	}
}

// leaveResource ends the membership of this node, or of a dead one.
func (n *Node) leaveResource(ctx context.Context, e entry, c control.Command) (control.Result, error) {
	node := n.self()
	if c.Host != "" {
		info, err := n.cluster.Node(c.Host)
		if err != nil {
			return control.Result{}, err
		}
		node = info.ID
	}
	if e.members[node] == nil {
		return control.Result{}, fmt.Errorf("node %s is no member of resource %s", n.nodeName(node), e.name)
	}
	if node != n.self() {
		if err := resource.MayRemove(n.members(e), node); err != nil {
			return control.Result{}, n.named(e, err)
		}
	}
	changes := resource.Removal(e.id, node, e.designated)
	if node == n.self() {
		changes = append(changes, n.formerFacts(e)...) // should the log not be readable when it is removed
	}
	var err error
	if node == n.self() {
		err = n.leaveSelf(ctx, e, leaving{changes: changes, force: c.Force})
	} else {
		err = n.cluster.Batch(changes)
	}
	if err != nil {
		return control.Result{}, err
	}
	err = n.awaitGone(ctx, e.id, node)
	return say("node %s has left resource %s; its disk keeps the content", n.nodeName(node), e.name), err
}

type leaving struct {
	changes []meta.Change
	force   bool // although nobody confirms that a consistent replica remains, and that somebody may write
}

// leaveSelf leaves on the runner's goroutine, so that this node cannot become primary between the checks and the end.
func (n *Node) leaveSelf(ctx context.Context, e entry, l leaving) error {
	r, err := n.mine(e)
	if err != nil {
		return err
	}
	if err := n.mayLeave(e, l.force); err != nil {
		return err
	}
	return r.do(ctx, func() error {
		undo := func() {}
		if in, ok := r.observe(); ok && resource.WorthKeeping(&in) && !l.force {
			var err error
			if undo, err = r.confirmSource(resource.SyncSource(in)); err != nil {
				return fmt.Errorf("leave-resource %s: %w (--force leaves nevertheless)", e.name, err)
			}
		}
		err := n.mayLeave(n.catalog()[e.id], l.force) // somebody may have passed the right to write to us meanwhile
		if err == nil {
			err = n.cluster.Batch(l.changes)
		}
		if err != nil {
			undo()
		}
		return err
	})
}

// mayLeave refuses what would leave the resource without anybody who may write.
func (n *Node) mayLeave(e entry, force bool) error {
	r, err := n.mine(e)
	if err != nil {
		return err
	}
	in, ok := r.observe()
	if !ok {
		return nil
	}
	return n.refusal(e, in, resource.MayLeave(&in, force))
}

func (n *Node) awaitGone(ctx context.Context, id, node string) error {
	if node != n.self() {
		return nil
	}
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for n.runner(id) != nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
	return nil
}

// deleteResource deletes a resource everywhere. The disks keep their content.
func (n *Node) deleteResource(ctx context.Context, e entry, c control.Command) (control.Result, error) {
	if err := resource.MayDelete(n.members(e), c.Force); err != nil {
		return control.Result{}, n.named(e, err)
	}
	var changes []meta.Change
	for _, m := range n.cluster.List(resourcePrefix + e.id + "/") {
		changes = append(changes, meta.Change{Key: m.Key, Delete: true})
	}
	if err := n.cluster.Batch(changes); err != nil {
		return control.Result{}, err
	}
	return say("resource %s is deleted; the disks keep their content", e.name), n.awaitGone(ctx, e.id, n.self())
}
