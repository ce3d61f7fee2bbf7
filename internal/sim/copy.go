package sim

import (
	"errors"
	"fmt"

	"mars/internal/fullsync"
	"mars/internal/history"
	"mars/internal/volume"
)

// copyStep is a range that is being copied. Replay is held off meanwhile.
type copyStep struct {
	c    *volume.Copy
	done bool // the range is there; the source is asked what it may contain
	last bool // nothing is left to copy: the source is asked for the end
}

// copyStepSize is how much of the disk is copied between two replays.
const copyStepSize = 96 << 10

// active reports whether a step is under way.
func (s *copySession) active() bool { return s != nil && s.step != nil }

// copySome begins the next step, after having opened a session with the source if need be.
func (m *mover) copySome(from string) {
	r := m.r
	if now := r.n.w.now; now < m.retry {
		m.plan(m.retry - now)
		return
	}
	if m.copy != nil && m.copy.from != from {
		m.endSession()
	}
	if m.copy == nil {
		m.dialCopy(from)
		return
	}
	if !m.copy.ready {
		return // the answer comes
	}
	m.copy.next()
}

func (m *mover) endSession() {
	if m.copy != nil {
		m.copy.abort()
	}
}

// dialCopy opens a session for the replica as it is.
func (m *mover) dialCopy(from string) {
	r := m.r
	s := &copySession{m: m, from: from}
	m.copy = s
	pos := r.vol.Reflects()
	r.n.dialSync(r.res, from, &pos, s)
}

// dialSync begins a session of which s takes the frames.
func (n *node) dialSync(res *simResource, from string, pos *history.Position, s syncUser) {
	n.dial(from, "sync", func(src *node, e *end) bool { return src.serveSync(res, e) }, func(e *end, err error) {
		if err != nil {
			s.failed(err)
			return
		}
		if !s.wanted() {
			e.close()
			return
		}
		sess, err := fullsync.Begin(e, fullsync.OpenRequest{Resource: res.id, From: pos})
		if err != nil {
			s.failed(err)
			return
		}
		s.begun(e, sess)
		e.ended = func(err error) { s.failed(err) }
		e.frames = func(kind byte, payload []byte) {
			if err := sess.Frame(kind, payload); err != nil {
				e.close()
				s.failed(err)
				return
			}
			if !sess.Waiting() {
				s.answered()
			}
		}
	})
}

// syncUser is who has begun a session.
type syncUser interface {
	wanted() bool
	begun(*end, *fullsync.Session)
	answered()
	failed(error)
}

func (s *copySession) wanted() bool                      { return s.m.copy == s }
func (s *copySession) begun(e *end, f *fullsync.Session) { s.end, s.sess = e, f }

// next begins a step.
func (s *copySession) next() {
	r := s.m.r
	c, err := r.vol.StartCopy(copyStepSize)
	if err != nil {
		s.failed(err)
		return
	}
	if c == nil {
		s.step = &copyStep{last: true}
		s.check(s.sess.StartFinish())
		return
	}
	s.step = &copyStep{c: c}
	s.check(s.sess.StartCopy(c.Disk(), fullsync.Range{Off: c.Off, Len: c.Len, Reflected: r.vol.Reflects().LSN}))
}

func (s *copySession) check(err error) {
	if err != nil {
		s.failed(err)
	}
}

// answered goes on when everything that was asked is answered.
func (s *copySession) answered() {
	if s.m.copy != s {
		return
	}
	r := s.m.r
	switch {
	case s.step == nil:
		s.ready = true
		r.n.w.logf("%s/%s: copies from %s", r.n.id, r.res.id, s.from)
	case s.step.last:
		s.step = nil
		if err := r.vol.EndCopy(s.sess.Until()); err != nil {
			s.failed(err)
			return
		}
		r.n.w.logf("%s/%s: copy is complete, consistent at LSN %d", r.n.id, r.res.id, s.sess.Until().LSN)
		r.n.w.stats.Syncs++
		s.m.endSession()
	case !s.step.done:
		s.step.done = true
		s.check(s.sess.StartFinish())
		return
	default:
		c := s.step.c
		s.step = nil
		c.Saw(s.sess.Until())
		if err := c.Commit(); err != nil {
			s.failed(err)
			return
		}
	}
	r.wake()
	s.m.plan(0)
}

// abort ends the session.
func (s *copySession) abort() {
	if s.m.copy == s {
		s.m.copy = nil
	}
	if s.step != nil && s.step.c != nil {
		s.step.c.Abort()
	}
	s.step = nil
	if s.end != nil {
		s.end.close()
	}
}

func (s *copySession) failed(err error) {
	m := s.m
	if m.copy != s {
		return
	}
	s.abort()
	m.retry = m.r.n.w.now + retryAfter
	m.err = err.Error()
	m.r.n.w.logf("%s/%s: sync is interrupted: %v", m.r.n.id, m.r.res.id, err)
	var ref *fullsync.Refusal
	if errors.As(err, &ref) && ref.Code == fullsync.CodeDiverged {
		m.r.startOver(err)
	}
	m.plan(retryAfter)
}

// joining is a newcomer's question where its log must begin.
type joining struct {
	r    *replica
	end  *end
	sess *fullsync.Session
}

func (r *replica) startJoin(from string) {
	r.join = &joining{r: r}
	r.n.dialSync(r.res, from, nil, r.join)
}

func (j *joining) wanted() bool                      { return j.r.join == j && j.r.alive() }
func (j *joining) begun(e *end, f *fullsync.Session) { j.end, j.sess = e, f }

func (j *joining) answered() {
	if !j.wanted() {
		return
	}
	r := j.r
	r.join = nil
	j.end.close()
	reply := j.sess.Reply()
	v, err := volume.CreateJoining(r.config(), reply.Start, reply.Size)
	if err != nil {
		r.n.w.logf("%s/%s: cannot join: %v", r.n.id, r.res.id, err)
		r.failedAt = r.n.w.now
		r.wake()
		return
	}
	r.missing = false
	r.n.w.logf("%s/%s: joined, to be filled from LSN %d on", r.n.id, r.res.id, reply.Start.End)
	r.n.damaged[r.res.index] = false
	r.n.must[r.res.index].cut() // a new replica; a leave-resource that died half way has ended the old one
	r.opened(v)
	r.wake()
}

func (j *joining) failed(err error) {
	if j.r.join != j {
		return
	}
	j.r.join = nil
	j.r.failedAt = j.r.n.w.now
	j.r.n.w.logf("%s/%s: cannot join now: %v", j.r.n.id, j.r.res.id, err)
	j.r.n.after(tick, j.r.wake)
}

// probe asks another member whether the content can be copied from there.
type probe struct {
	r    *replica
	end  *end
	over bool
	err  error
}

var errLeaving = errors.New("the replica is about to be thrown away")

// confirmSource asks from after nobody can copy from here any more; see package node.
func (r *replica) confirmSource(from string) *probe {
	p := &probe{r: r}
	if from == "" {
		p.failed(errors.New("no reachable member has a consistent replica to copy from"))
		return p
	}
	r.leaving = !r.n.w.canary("hasty-invalidate")
	r.n.dialSync(r.res, from, nil, p)
	return p
}

func (p *probe) wanted() bool                      { return !p.over && p.r.alive() }
func (p *probe) begun(e *end, _ *fullsync.Session) { p.end = e }

func (p *probe) answered() {
	p.over = true
	p.end.close()
}

func (p *probe) failed(err error) {
	if !p.over {
		p.over, p.err, p.r.leaving = true, err, false
	}
}

// serveSync lets a member copy the content.
func (n *node) serveSync(res *simResource, e *end) bool {
	var srv *fullsync.Server
	e.frames = func(kind byte, payload []byte) {
		var err error
		if srv == nil {
			srv, err = n.openSync(res, e, payload)
		} else {
			err = srv.Frame(kind, payload)
			n.w.afterSyncAnswer(n, res)
		}
		if err != nil {
			e.close()
		}
	}
	return true
}

// openSync answers the first frame.
func (n *node) openSync(res *simResource, e *end, payload []byte) (*fullsync.Server, error) {
	req, err := fullsync.DecodeOpen(payload)
	if err != nil {
		return nil, err
	}
	r, err := n.servable(res, e.peer.as)
	if err != nil {
		return nil, errors.Join(err, fullsync.Refuse(e, fullsync.CodeNotHere, err))
	}
	if r.leaving {
		return nil, errors.Join(errLeaving, fullsync.Refuse(e, fullsync.CodeInconsistent, errLeaving))
	}
	reply, code, err := syncReply(r.vol, req)
	if err != nil {
		return nil, errors.Join(err, fullsync.Refuse(e, code, err))
	}
	r.copying = append(r.copying, e)
	return fullsync.NewServer(e, reply, r.vol)
}

// syncReply decides whether the replica can serve a target that stands where req says; see package node.
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

// servable finds the replica that a member may read.
func (n *node) servable(res *simResource, peer string) (*replica, error) {
	e := n.meta.find(res.id)
	if e == nil || !e.members[peer] {
		return nil, fmt.Errorf("node %s is no member of the resource, as far as %s knows", peer, n.id)
	}
	if err := n.meta.batch(); err != nil { // the membership must be known after a crash, too
		return nil, err
	}
	r := n.reps[res.index]
	if r == nil || r.vol == nil {
		return nil, fmt.Errorf("the replica on %s is not attached", n.id)
	}
	return r, nil
}
