package node

import (
	"bytes"
	"encoding/json"
	"sync"
	"time"

	"mars/internal/control"
	"mars/internal/resource"
)

// writebackShown is the backlog in bytes from which on a primary's writeback is shown as something that goes on; below it is the normal case.
const writebackShown = 128 << 20

// publishEvery limits how often positions alone are published; changes of state go out at once.
const publishEvery = 250 * time.Millisecond

// publish tells the others how the replica is.
func (r *runner) publish(in resource.Input, plan resource.Plan) {
	f := r.makeFacts(in, plan)
	r.mu.Lock()
	before := r.facts
	r.facts = f
	r.mu.Unlock()
	urgent := f.Writable != before.Writable || f.Attached != before.Attached || f.Consistent != before.Consistent || f.Device != before.Device ||
		len(f.Path.Timelines) != len(before.Path.Timelines) || f.Path.Successor != before.Path.Successor || f.Switches != before.Switches
	if !urgent && time.Since(r.publishedAt) < publishEvery {
		return
	}
	b, err := json.Marshal(f)
	if err != nil {
		r.n.log.Error("cannot publish the state", "res", r.name(), "err", err)
		return
	}
	// What the others believe counts, not what was said last: after a crash and a clock that jumped back, an old fact of ours can come back from
	// them with a newer stamp than what we have said since.
	k := key(r.id, "facts", in.Self)
	if now, _, ok := r.n.cluster.Get(k); ok && bytes.Equal(now, b) {
		return
	}
	if err := r.n.cluster.PutVolatile(k, b); err != nil {
		r.n.log.Warn("cannot publish the state", "res", r.name(), "err", err)
		return
	}
	r.publishedAt = time.Now()
}

func (r *runner) makeFacts(in resource.Input, plan resource.Plan) resource.Facts {
	l := &in.Local
	e := r.n.catalog()[r.id]
	f := resource.Facts{
		Attached: l.Open, Switches: in.Switches, DiskSize: l.DiskSize, Device: l.Device, Users: l.Users, View: r.view(in, plan),
	}
	if m := e.members[in.Self]; m != nil {
		f.Disk = m.Disk
	}
	r.mu.Lock()
	before := r.facts
	r.mu.Unlock()
	if !l.Open {
		// Where a detached replica stands is still needed by the others: they keep log for it.
		f.Path, f.Durable, f.Applied, f.Size, f.Sync = before.Path, before.Durable, before.Applied, before.Size, before.Sync
		if len(f.Path.Timelines) == 0 && !l.Missing {
			if old := e.facts[in.Self]; old != nil {
				f.Path, f.Durable, f.Applied, f.Size, f.Sync = old.Path, old.Durable, old.Applied, old.Size, old.Sync
			}
		}
		return f
	}
	f.Path, f.Durable, f.Applied, f.Stamp, f.EndStamp = l.Path, l.Durable, l.Applied.LSN, l.AppliedStamp, l.EndStamp
	f.Size, f.Consistent, f.Writable, f.Sync = l.Size, l.Consistent && l.Defect == nil, l.Writable, l.Sync
	return f
}

// view describes the replica for humans: what package resource says, and what needs a clock.
func (r *runner) view(in resource.Input, plan resource.Plan) resource.View {
	v := resource.Describe(in, plan)
	v.Split = r.n.withNames(v.Split, in)
	now := time.Now()
	v.LagSecs = r.lagSeconds(in, now)
	v.Progress = r.rates.progress(in, v.Lag, now)
	v.Messages = r.n.messages(in, plan, v, now)
	r.mu.Lock()
	defer r.mu.Unlock()
	if v.WaitsFor != "" {
		v.WaitsFor = r.n.withNames(v.WaitsFor, in) + " (since " + now.Sub(r.waiting.since).Round(time.Second).String() + ")"
	} else if r.openErr != nil {
		v.WaitsFor = r.openErr.Error()
	}
	return v
}

// lagSeconds returns how old the oldest write of the primary can be that is not on the disk here.
func (r *runner) lagSeconds(in resource.Input, now time.Time) float64 {
	l := &in.Local
	if !l.Open || l.Writable || resource.Lag(&in) == 0 {
		return 0
	}
	known := l.AppliedStamp
	if rep := r.replica(); rep != nil && l.Applied.LSN == l.Path.End {
		rep.fetch.mu.Lock()
		known = max(known, rep.fetch.caughtUp)
		rep.fetch.mu.Unlock()
	}
	if known == 0 {
		return 0
	}
	return max(0, now.Sub(time.Unix(0, known)).Seconds())
}

// rates estimates how fast things go on. Everybody who looks at the status asks it, so it may be used concurrently, and it takes measure only
// at distances that mean something, however often it is asked.
type rates struct {
	mu     sync.Mutex
	gauges map[string]*gauge // by kind of progress
}

type gauge struct {
	at   time.Time
	done int64
	rate float64
}

// Distances between two measurements; after a longer pause it begins anew.
const (
	rateLeast = 200 * time.Millisecond
	rateMost  = 10 * time.Second
)

func (s *rates) progress(in resource.Input, lag int64, now time.Time) []control.Progress {
	l := &in.Local
	if !l.Open {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []control.Progress
	if l.Sync != nil && !l.Sync.Copied {
		out = append(out, s.one(control.ProgressSync, counted{l.Sync.Done, l.Size}, now))
	}
	end := int64(l.Path.End)
	if rest := int64(l.Applied.LSN) + lag - end; rest > 0 {
		out = append(out, s.one(control.ProgressFetch, counted{end, end + rest}, now))
	}
	kind := control.ProgressReplay
	if l.Writable {
		kind = control.ProgressWriteBack
	}
	if end > int64(l.Applied.LSN) && (!l.Writable || lag > writebackShown) {
		out = append(out, s.one(kind, counted{int64(l.Applied.LSN), end}, now))
	}
	return out
}

type counted struct{ done, total int64 }

// one needs mu.
func (s *rates) one(kind string, c counted, now time.Time) control.Progress {
	g := s.gauges[kind]
	if g == nil || now.Sub(g.at) > rateMost {
		g = &gauge{at: now, done: c.done}
		if s.gauges == nil {
			s.gauges = map[string]*gauge{}
		}
		s.gauges[kind] = g
	}
	if dt := now.Sub(g.at); dt >= rateLeast {
		g.rate = 0.7*g.rate + 0.3*max(0, float64(c.done-g.done)/dt.Seconds())
		g.at, g.done = now, c.done
	}
	p := control.Progress{Kind: kind, DoneBytes: c.done, TotalBytes: c.total, Rate: g.rate, RemainingSeconds: -1}
	if p.Rate > 1 {
		p.RemainingSeconds = float64(c.total-c.done) / p.Rate
	}
	return p
}
