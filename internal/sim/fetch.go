package sim

import (
	"slices"
	"time"

	"mars/internal/history"
	"mars/internal/ship"
)

// fetcher keeps one fetching session, with whomever the plan names.
type fetcher struct {
	r          *replica
	run        int // of the volume
	err        string
	lacking    []string
	primaryEnd history.LSN
	sess       *fetchSession
	pausing    bool
}

// fetchSession is one connection.
type fetchSession struct {
	f    *fetcher
	node string
	end  *end
}

func (f *fetcher) start(r *replica) {
	f.r = r
	f.run++
	f.pausing = false
	f.err, f.lacking, f.primaryEnd = "", nil, 0
	f.retarget()
}

func (f *fetcher) stop() {
	f.run++
	f.drop()
}

func (f *fetcher) from() string {
	if f.sess == nil {
		return ""
	}
	return f.sess.node
}

// orphan: whoever was asked last does not have what is needed, and would not have been asked if there were somebody else.
func (f *fetcher) orphan() bool { return slices.Contains(f.lacking, f.r.plan.Fetch) }

func (f *fetcher) drop() {
	if s := f.sess; s != nil {
		f.sess = nil
		if s.end != nil {
			s.end.close()
		}
	}
}

// retarget makes the session fit the plan.
func (f *fetcher) retarget() {
	if f.r == nil || f.r.vol == nil {
		return
	}
	want := f.r.plan.Fetch
	if f.sess != nil && f.sess.node != want {
		f.drop()
		f.err = ""
	}
	if f.sess != nil || want == "" || f.pausing {
		return
	}
	f.dial(want)
}

func (f *fetcher) dial(want string) {
	r := f.r
	n, res := r.n, r.res
	s := &fetchSession{f: f, node: want}
	f.sess = s
	n.dial(want, "log", func(src *node, e *end) bool { return src.serveLog(res, e) }, func(e *end, err error) {
		if err != nil {
			s.over(err)
			return
		}
		if f.sess != s {
			e.close()
			return
		}
		s.open(e)
	})
}

func (s *fetchSession) open(e *end) {
	r := s.f.r
	s.end = e
	e.ended = s.over
	req := ship.Request{Resource: r.res.id, From: r.vol.Log().EndPosition()}
	recv, err := ship.NewReceiver(e, req, sink{r}, s.heard)
	if err != nil {
		s.over(err)
		return
	}
	e.frames = func(kind byte, payload []byte) {
		if s.f.sess != s {
			return
		}
		if err := recv.Frame(kind, payload); err != nil {
			e.close()
			s.over(err)
		}
	}
}

func (s *fetchSession) heard(i ship.Info) {
	f := s.f
	f.err = ""
	if i == (ship.Info{}) {
		f.lacking = nil // the log has grown
	}
	f.primaryEnd = max(f.primaryEnd, i.End)
	if i.Stamp != 0 {
		f.r.n.observeStamp(i.Stamp)
	}
}

// over ends the session and tries again soon.
func (s *fetchSession) over(err error) {
	f := s.f
	if f.sess != s {
		return
	}
	f.sess = nil
	before := f.err
	f.err = ""
	if err != nil {
		f.err = err.Error()
	}
	if ship.Lacks(err) && !slices.Contains(f.lacking, s.node) {
		f.lacking = append(f.lacking, s.node)
	}
	if f.err != before {
		f.r.n.w.logf("%s/%s: fetch from %s: %v", f.r.n.id, f.r.res.id, s.node, err)
	}
	f.r.wake()
	f.pausing = true
	run := f.run
	f.r.n.after(retryAfter/4, func() {
		if f.run == run {
			f.pausing = false
			f.retarget()
		}
	})
}

// sink stores what was fetched, and wakes the strategy when the token may have come with it.
type sink struct{ r *replica }

func (s sink) Ingest(records []byte) error {
	r := s.r
	if r.n.w.canary("apply-unverified") {
		records = forge(records, r.vol.Log().EndPosition().Digest)
	}
	if err := r.vol.Ingest(records); err != nil {
		return err
	}
	if r.vol.Log().Successor() != "" {
		r.wake()
	}
	return nil
}

// logSession is the serving end of a log connection.
type logSession struct {
	r       *replica
	end     *end
	srv     *ship.Server
	stop    func()
	planned bool
	info    bool
}

// serveLog lets a member fetch the log.
func (n *node) serveLog(res *simResource, e *end) bool {
	var s *logSession
	e.ended = func(error) {
		if s != nil {
			s.over()
		}
	}
	e.frames = func(_ byte, payload []byte) {
		if s != nil {
			return
		}
		req, err := ship.DecodeRequest(payload)
		if err != nil {
			e.close()
			return
		}
		r, err := n.servable(res, e.peer.as)
		if err != nil {
			ship.Refuse(e, ship.CodeNotHere, err)
			e.close()
			return
		}
		srv, err := ship.NewServer(ship.ServerConfig{Conn: e, Log: r.vol.Log(), Stamp: n.nextStamp, Buf: r.res.chunk()}, req)
		if err != nil {
			e.close()
			return
		}
		s = &logSession{r: r, end: e, srv: srv, stop: r.vol.WantDurable()}
		r.serving = append(r.serving, s)
		s.wake(0)
		s.tick()
	}
	return true
}

func (s *logSession) tick() {
	if s.end.closed {
		return
	}
	s.info = true
	s.wake(0)
	s.r.n.after(ship.InfoEvery, s.tick)
}

func (s *logSession) wake(d time.Duration) {
	if s.planned {
		return
	}
	s.planned = true
	s.r.n.after(d, func() {
		s.planned = false
		s.send()
	})
}

// send sends as much as the line takes.
func (s *logSession) send() {
	n := s.r.n
	for !s.end.closed && !n.dying {
		if s.end.full() {
			s.wake(between(n.w.rng.net, 1e6, 10e6))
			return
		}
		sent, err := s.srv.Step()
		if err != nil {
			n.w.logf("%s/%s: log session with %s ended: %v", n.id, s.r.res.id, s.end.peer.node.id, err)
			s.end.close()
			s.over()
			return
		}
		if !sent {
			break
		}
		s.info = true
		n.w.afterShip(s)
	}
	if s.info && !s.end.closed && !n.dying {
		s.info = false
		s.srv.Info()
	}
}

func (s *logSession) over() {
	if s.stop == nil {
		return
	}
	s.stop()
	s.stop = nil
	r := s.r
	for i, x := range r.serving {
		if x == s {
			r.serving = append(append([]*logSession(nil), r.serving[:i]...), r.serving[i+1:]...)
			return
		}
	}
}
