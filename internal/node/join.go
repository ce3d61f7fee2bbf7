package node

import (
	"fmt"

	"mars/internal/fullsync"
	"mars/internal/transport"
	"mars/internal/volume"
)

// join creates the missing replica: it asks the source where the log of the newcomer must begin. The copy itself is the mover's work.
func (r *runner) join(from string) error {
	rep := r.replica()
	conn, err := r.n.cluster.DialNode(rep.ctx, transport.Sync, from)
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

// reset throws the replica's log and state away, so that it is filled anew. It runs on the runner's goroutine.
func (r *runner) reset() error {
	rep := r.replica()
	cfg := rep.vcfg
	if err := r.detach(false); err != nil {
		return err
	}
	if err := volume.Wipe(cfg); err != nil {
		return err
	}
	_, err := r.attach()
	return err
}
