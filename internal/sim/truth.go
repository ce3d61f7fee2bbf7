package sim

import (
	"slices"

	"mars/internal/block"
	"mars/internal/history"
	"mars/internal/translog"
)

// truth is everything that was ever logged for a resource, learned from the origins' logs at once after they were written: the tree of
// timelines with their records. From it follows what the image at any position must be.
type truth struct {
	res      *simResource
	chapters map[history.TimelineID]*chapter
	order    []*chapter
	base     image // content of the first disk
}

// chapter is one timeline.
type chapter struct {
	t       history.Timeline
	parent  *chapter
	base    image // where it begins
	recs    []rec
	durable history.LSN // up to here it was durable at its origin once
	excused bool        // an operator or damage has cut it; what was behind may be gone
	damaged bool        // at its origin: even who could use its token may be forgotten

	cursor int   // records that now contains
	now    image // content there
}

type rec struct {
	lsn, end history.LSN
	kind     translog.Kind
	off, n   int64
	seq      uint64
	chain    history.Digest
	next     string // the successor that an end record names
}

func (r *rec) modifies() bool {
	h := translog.Header{Kind: r.kind}
	return h.Modifies()
}

func newTruth(res *simResource, base image) *truth {
	return &truth{res: res, chapters: map[history.TimelineID]*chapter{}, base: base}
}

func (c *chapter) end() history.LSN {
	if n := len(c.recs); n > 0 {
		return c.recs[n-1].end
	}
	return c.t.Switch
}

// positionAt returns the position at a record boundary; false if there is none at lsn.
func (c *chapter) positionAt(lsn history.LSN) (history.Position, bool) {
	i, ok := slices.BinarySearchFunc(c.recs, lsn, func(r rec, l history.LSN) int { return int(r.end - l) })
	if !ok {
		return history.Position{}, false
	}
	return history.Position{Timeline: c.t.ID, LSN: lsn, Digest: c.recs[i].chain}, true
}

// begin adds a timeline.
func (t *truth) begin(tl history.Timeline) *chapter {
	c := &chapter{t: tl, parent: t.chapters[tl.Parent]}
	c.base = t.base
	if c.parent != nil {
		c.base = c.parent.image(tl.Switch)
	}
	c.now = slices.Clone(c.base)
	t.chapters[tl.ID] = c
	t.order = append(t.order, c)
	return c
}

// add appends a record as it was found at the origin.
func (c *chapter) add(res *simResource, r *translog.Record) {
	x := rec{lsn: r.LSN, end: r.End(), kind: r.Kind, off: r.Off, n: r.Len, chain: r.Chain}
	switch r.Kind {
	case translog.KindWrite:
		x.seq = readSector(r.Payload[:block.SectorSize], uint32(res.index), r.Off/block.SectorSize)
	case translog.KindTimelineEnd:
		x.next = string(r.Payload)
	}
	c.recs = append(c.recs, x)
}

// image returns the content at lsn of the chapter. The caller must not keep it.
func (c *chapter) image(lsn history.LSN) image {
	if c.cursor > 0 && c.recs[c.cursor-1].end > lsn {
		c.cursor, c.now = 0, slices.Clone(c.base)
	}
	for c.cursor < len(c.recs) && c.recs[c.cursor].end <= lsn {
		c.now = c.recs[c.cursor].apply(c.now)
		c.cursor++
	}
	return slices.Clone(c.now)
}

func (r *rec) apply(img image) image {
	from, to := r.off/block.SectorSize, (r.off+r.n)/block.SectorSize
	switch r.kind {
	case translog.KindWrite:
		for i := from; i < to; i++ {
			img[i] = r.seq
		}
	case translog.KindDiscard, translog.KindWriteZeroes:
		for i := from; i < to; i++ {
			img[i] = 0
		}
	case translog.KindResize:
		for int64(len(img)) < r.n/block.SectorSize {
			img = append(img, 0)
		}
	}
	return img
}

// lose forgets what was lost with its origin: everything behind lsn.
func (c *chapter) lose(lsn history.LSN) {
	for len(c.recs) > 0 && c.recs[len(c.recs)-1].end > lsn {
		c.recs = c.recs[:len(c.recs)-1]
	}
	c.cursor, c.now = 0, slices.Clone(c.base)
}

// dataBehind reports whether the path has records behind lsn that change the volume.
func (t *truth) dataBehind(p *history.Path, lsn history.LSN) bool {
	for i, tl := range p.Timelines {
		end := p.End
		if i+1 < len(p.Timelines) {
			end = p.Timelines[i+1].Switch
		}
		c := t.chapters[tl.ID]
		if c == nil {
			continue
		}
		for k := range c.recs {
			if r := &c.recs[k]; r.modifies() && r.lsn >= lsn && r.end <= end {
				return true
			}
		}
	}
	return false
}

// learn takes in what a replica's log has that is new: only the origin of a timeline may have anything new on it.
func (w *World) learn(r *replica) {
	t := r.res.truth
	p := r.vol.Log().Path()
	for i, tl := range p.Timelines {
		c := t.chapters[tl.ID]
		if c == nil {
			if tl.Origin != r.n.id {
				w.failf("I3", "%s/%s has timeline %v of %s, which %s never had durable", r.n.id, r.res.id, tl.ID, tl.Origin, tl.Origin)
			}
			w.checkNewTimeline(r, tl)
			c = t.begin(tl)
		}
		if c.t != tl {
			w.failf("I5", "%s/%s has timeline %+v, its origin has %+v", r.n.id, r.res.id, tl, c.t)
		}
		end := p.End
		if i+1 < len(p.Timelines) {
			end = p.Timelines[i+1].Switch
		}
		if tl.Origin == r.n.id && c.end() < end {
			w.read(r, c, end)
		}
	}
	w.checkEnd(r, &p)
}

// read reads the new records of a timeline at its origin.
func (w *World) read(r *replica, c *chapter, end history.LSN) {
	start := history.Position{Timeline: c.t.Parent, LSN: c.t.Switch, Digest: c.t.Digest}
	if n := len(c.recs); n > 0 {
		start, _ = c.positionAt(c.recs[n-1].end)
	}
	r.n.quiet++
	_, err := r.vol.Log().Scan(start, end, func(x *translog.Record) bool {
		c.add(r.res, x)
		return true
	})
	r.n.quiet--
	if err != nil && !r.n.damaged[r.res.index] && r.vol.Log().Err() == nil {
		w.failf("I7", "%s/%s: its own log cannot be read from LSN %d on: %v", r.n.id, r.res.id, start.LSN, err)
	}
}

// checkEnd looks whether the log ends where its timeline has a record boundary, after the same records.
func (w *World) checkEnd(r *replica, p *history.Path) {
	tip := p.Tip()
	c := r.res.truth.chapters[tip.ID]
	if c == nil || p.End == tip.Switch || r.vol.Log().Err() != nil {
		return // a log that has failed is not readable; it will be when it is opened again
	}
	if tip.Origin == r.n.id {
		c.durable = max(c.durable, min(r.vol.Log().Durable(), c.end()))
	}
	if r.n.damaged[r.res.index] {
		return
	}
	pos, ok := c.positionAt(p.End)
	if !ok {
		w.failf("I3", "%s/%s has log up to LSN %d on timeline %v of %s, of which only %d was ever durable there", r.n.id, r.res.id, p.End,
			tip.ID, tip.Origin, c.end())
	}
	if pos.Digest != p.EndDigest {
		w.failf("I7", "%s/%s has another log up to LSN %d than the origin %s", r.n.id, r.res.id, p.End, tip.Origin)
	}
}

// imageAt returns what the volume must contain at a position of a path.
func (t *truth) imageAt(pos history.Position) (image, bool) {
	if pos.Timeline == 0 {
		return t.base, pos.LSN == 0
	}
	c := t.chapters[pos.Timeline]
	if c == nil {
		return nil, false
	}
	at, ok := c.positionAt(pos.LSN)
	if !ok || at.Digest != pos.Digest {
		return nil, false
	}
	return c.image(pos.LSN), true
}
