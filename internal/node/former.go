package node

import (
	"errors"
	"fmt"
	"slices"

	"mars/internal/history"
	"mars/internal/meta"
	"mars/internal/volume"
)

// A log is thrown away only after it is in the metadata, durably, how far it went: see resource.Former. That happens by invalidate and a sync
// that starts over (runner.reset), when this node is no member any more (endRunner, removeLeftovers), and outside of our control, when a
// replica is found missing (runner.attach): then the facts that it once published must do.

// noteFormer remembers a log that ends with p, which was durable up to known.
func (n *Node) noteFormer(id string, p *history.Path, known history.LSN) error {
	e, ok := n.catalog()[id]
	if !ok {
		return nil // deleted, or never created
	}
	before := e.former[n.self()]
	now := before.With(p, known)
	if slices.Equal(now, before) {
		return nil
	}
	if err := n.cluster.Put(key(id, "former", n.self()), encode(now)); err != nil {
		return fmt.Errorf("remember how far the log goes: %w", err)
	}
	return nil
}

// noteOpen does it for the log of an open volume.
func (n *Node) noteOpen(id string, v *volume.Volume) error {
	st := v.Status()
	return n.noteFormer(id, &st.Path, st.KnownDurable)
}

// noteClosed does it for a log that nobody has open.
func (n *Node) noteClosed(id string) error {
	if _, ok := n.catalog()[id]; !ok {
		return nil
	}
	cfg, err := n.volumeConfig(id, nil)
	if err != nil {
		return err
	}
	p, known, err := volume.History(cfg)
	switch {
	case errors.Is(err, volume.ErrNoReplica):
		return nil
	case err != nil:
		n.log.Warn("cannot read how far the log of a former membership went", "res", id, "err", err)
		return nil
	}
	return n.noteFormer(id, &p, known)
}

// noteFacts does it for a replica that is not there, though it should.
func (n *Node) noteFacts(e entry) error {
	f := e.facts[n.self()]
	if f == nil {
		return nil
	}
	return n.noteFormer(e.id, &f.Path, f.Durable)
}

// formerFacts is the change that keeps of this node's facts, which are about to be deleted, how far its log went.
func (n *Node) formerFacts(e entry) []meta.Change {
	f, self := e.facts[n.self()], n.self()
	if f == nil {
		return nil
	}
	return []meta.Change{{Key: key(e.id, "former", self), Value: encode(e.former[self].With(&f.Path, f.Durable))}}
}
