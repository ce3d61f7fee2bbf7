package sim

import (
	"errors"
	"slices"

	"mars/internal/history"
	"mars/internal/meta"
	"mars/internal/volume"
)

// What package node does in its file former.go, under the same names.

func (n *node) noteFormer(res *simResource, p *history.Path, known history.LSN) error {
	e := n.meta.find(res.id)
	if e == nil {
		return nil
	}
	before := e.formerOf(n.id)
	now := before.With(p, known)
	if slices.Equal(now, before) || n.w.canary("forget-logs") {
		return nil
	}
	return n.meta.put(key(res.id, "former", n.id), now)
}

func (r *replica) noteOpen() error {
	if r.vol == nil {
		return nil
	}
	st := r.vol.Status()
	return r.n.noteFormer(r.res, &st.Path, st.KnownDurable)
}

func (n *node) noteClosed(res *simResource) error {
	p, known, err := volume.History(volume.Config{FS: n.fs, Dir: dirOf(res), Resource: res.raw})
	switch {
	case n.dying:
		return errDead
	case errors.Is(err, volume.ErrNoReplica):
		return nil
	case err != nil:
		n.w.logf("%s/%s: cannot read how far the log of a former membership went: %v", n.id, res.id, err)
		return nil
	}
	return n.noteFormer(res, &p, known)
}

func (n *node) noteFacts(res *simResource) error {
	e := n.meta.find(res.id)
	if e == nil || e.facts[n.id] == nil {
		return nil
	}
	f := e.facts[n.id]
	return n.noteFormer(res, &f.Path, f.Durable)
}

func (n *node) formerFacts(e *entry) []meta.Change {
	f := e.facts[n.id]
	if f == nil || n.w.canary("forget-logs") {
		return nil
	}
	return []meta.Change{{Key: key(e.id, "former", n.id), Value: encode(e.formerOf(n.id).With(&f.Path, f.Durable))}}
}
