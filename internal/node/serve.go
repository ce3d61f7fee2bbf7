package node

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"mars/internal/cluster"
	"mars/internal/fullsync"
	"mars/internal/ship"
	"mars/internal/transport"
	"mars/internal/volume"
)

// sessions are the connections through which other members read this replica.
type sessions struct {
	mu     sync.Mutex
	cancel map[int]context.CancelCauseFunc
	next   int
	paused bool
	wg     sync.WaitGroup // grows only while not paused
}

var errPaused = errors.New("the log here is being changed")

// begin registers a session; end must be called when it is over. While sessions are paused none begins.
func (s *sessions) begin(ctx context.Context) (_ context.Context, end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.paused {
		return nil, nil, errPaused
	}
	ctx, cancel := context.WithCancelCause(ctx)
	if s.cancel == nil {
		s.cancel = map[int]context.CancelCauseFunc{}
	}
	id := s.next
	s.next++
	s.cancel[id] = cancel
	s.wg.Add(1)
	return ctx, func() {
		cancel(nil)
		s.mu.Lock()
		delete(s.cancel, id)
		s.mu.Unlock()
		s.wg.Done()
	}, nil
}

// pause ends all sessions and returns when they have ended; resume lets new ones begin. The peers come back by themselves.
func (s *sessions) pause() (resume func()) {
	s.mu.Lock()
	s.paused = true
	for _, c := range s.cancel {
		c(errPaused)
	}
	s.mu.Unlock()
	s.wg.Wait()
	return func() {
		s.mu.Lock()
		s.paused = false
		s.mu.Unlock()
	}
}

// serveLog lets a member fetch the log (invariant I10: nobody else).
func (n *Node) serveLog(ctx context.Context, conn *transport.Conn, peer cluster.NodeInfo) {
	req, err := ship.ReadRequest(conn)
	if err != nil {
		n.log.Debug("log session without a request", "peer", peer.Name, "err", err)
		return
	}
	rep, err := n.servable(req.Resource, peer)
	if err != nil {
		ship.Refuse(conn, ship.CodeNotHere, err)
		return
	}
	ctx, end, err := rep.session.begin(ctx)
	if err != nil {
		ship.Refuse(conn, ship.CodeError, err)
		return
	}
	defer end()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	// The fetcher only listens, so reading shows the end of the connection, and nothing else.
	hungUp, cancel := context.WithCancel(ctx)
	defer cancel()
	conn.SetProgress(transport.Progress{Write: transport.DefaultProgress})
	var wg sync.WaitGroup
	wg.Go(func() { conn.ReadFrame(nil); cancel() })
	err = ship.Serve(hungUp, ship.ServerConfig{Conn: conn, Log: rep.vol.Log(), Stamp: n.stamps.next, Turn: n.ships.take}, req, rep.vol.WantDurable)
	conn.Close()
	wg.Wait()
	n.log.Debug("log session ended", "res", rep.r.name(), "peer", peer.Name, "err", err)
}

// servable finds the replica that a member may read.
func (n *Node) servable(id string, peer cluster.NodeInfo) (*replica, error) {
	e, ok := n.catalog()[id]
	if !ok || e.members[peer.ID] == nil {
		return nil, fmt.Errorf("node %s is no member of the resource, as far as %s knows", peer.Name, n.cfg.Name)
	}
	// Log is kept for members, and only for them. What other nodes have said may be in memory only: whoever gets something here must still be
	// known as a member after a crash, else the log that it needs next would be deleted.
	if err := n.cluster.Batch(nil); err != nil {
		return nil, fmt.Errorf("remember that node %s is a member: %w", peer.Name, err)
	}
	r := n.runner(id)
	if r == nil || r.volume() == nil {
		return nil, fmt.Errorf("the replica on %s is not attached", n.cfg.Name)
	}
	return r.replica(), nil
}

// serveSync lets a member copy the content.
func (n *Node) serveSync(ctx context.Context, conn *transport.Conn, peer cluster.NodeInfo) {
	req, err := fullsync.ReadOpen(conn)
	if err != nil {
		n.log.Debug("sync session without a request", "peer", peer.Name, "err", err)
		return
	}
	rep, err := n.servable(req.Resource, peer)
	if err != nil {
		fullsync.Refuse(conn, fullsync.CodeNotHere, err)
		return
	}
	if rep.leaving.Load() {
		fullsync.Refuse(conn, fullsync.CodeInconsistent, errors.New("the replica is about to be thrown away"))
		return
	}
	ctx, end, err := rep.session.begin(ctx)
	if err != nil {
		fullsync.Refuse(conn, fullsync.CodeError, err)
		return
	}
	defer end()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	reply, code, err := syncReply(rep.vol, req)
	if err != nil {
		fullsync.Refuse(conn, code, err)
		return
	}
	conn.SetProgress(transport.Progress{Write: transport.DefaultProgress}) // a paused target asks nothing for long
	n.log.Info("serving a sync", "res", rep.r.name(), "peer", peer.Name)
	err = fullsync.Serve(ctx, conn, reply, rep.vol)
	n.log.Info("sync session ended", "res", rep.r.name(), "peer", peer.Name, "err", err)
}

// syncReply decides whether the replica can serve a target that stands where req says.
func syncReply(v *volume.Volume, req fullsync.OpenRequest) (rep fullsync.OpenReply, code string, err error) {
	rep.Start, rep.Size, err = v.CopyStart()
	if err != nil {
		return rep, fullsync.CodeInconsistent, err
	}
	if req.From == nil {
		return rep, "", nil
	}
	p := v.Log().Path()
	if !p.Contains(*req.From) {
		if req.From.LSN > p.End {
			return rep, fullsync.CodeBehind, fmt.Errorf("the log here ends at LSN %d, the target is at %d", p.End, req.From.LSN)
		}
		return rep, fullsync.CodeDiverged, fmt.Errorf("position %v is not on the history here", *req.From)
	}
	return rep, "", nil
}
