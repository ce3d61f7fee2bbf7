package node

import (
	"errors"
	"fmt"

	"mars/internal/fullsync"
	"mars/internal/transport"
	"mars/internal/volume"
)

// join creates the missing replica: it asks the source where the log of the newcomer must begin. The copy itself is the mover's work.
func (r *runner) join(from string) error {
	rep := r.replica()
	conn, err := r.n.cluster.DialNode(r.ctx, transport.Sync, from)
	if err != nil {
		return fmt.Errorf("ask %s for a start of the sync: %w", r.n.nodeName(from), err)
	}
	defer conn.Close()
	_, reply, err := fullsync.Open(conn, fullsync.OpenRequest{Resource: r.id})
	if err != nil {
		return fmt.Errorf("ask %s for a start of the sync: %w", r.n.nodeName(from), err)
	}
	vol, err := volume.CreateJoining(rep.vcfg, reply.Start, reply.Size)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.missing = false
	r.mu.Unlock()
	rep.startWorkers(vol)
	r.n.log.Info("joined; the disk will be filled", "res", r.name(), "peer", r.n.nodeName(from), "pos", reply.Start.End, "bytes", reply.Size)
	return nil
}

// confirmSource asks another member whether the content can be copied from there, after nobody can copy from here any more: of members that
// throw their replicas away at the same time, each counting on another one, at least one is refused. undo lets others copy again.
func (r *runner) confirmSource(from string) (undo func(), err error) {
	if from == "" {
		return nil, errNoSource
	}
	undo = func() {}
	if rep := r.replica(); rep != nil {
		rep.leaving.Store(true)
		undo = func() { rep.leaving.Store(false) }
	}
	conn, err := r.n.cluster.DialNode(r.ctx, transport.Sync, from)
	if err == nil {
		defer conn.Close()
		_, _, err = fullsync.Open(conn, fullsync.OpenRequest{Resource: r.id})
	}
	if err != nil {
		undo()
		return nil, fmt.Errorf("nothing was changed: node %s does not confirm that it has a consistent replica: %w", r.n.nodeName(from), err)
	}
	return undo, nil
}

var errNoSource = errors.New("nothing was changed: no reachable member has a consistent replica to copy from")

// reset throws the replica's log and state away, so that it is filled anew. It runs on the runner's goroutine.
func (r *runner) reset() error {
	rep := r.replica()
	cfg := rep.vcfg
	if v := r.volume(); v != nil {
		if err := r.n.noteOpen(r.id, v); err != nil {
			return err
		}
	}
	if err := r.detach(false); err != nil {
		return err
	}
	if err := volume.Wipe(cfg); err != nil {
		return err
	}
	_, err := r.attach()
	return err
}
