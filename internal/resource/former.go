package resource

import (
	"mars/internal/history"
)

// Former remembers the logs that a node has thrown away (invalidate, leave-resource, a sync that starts over): how far they went on each
// timeline. A log that is filled anew may end where a former one went on, from a source that stands there. If the token is here at that place,
// it has been used already, by records that may be anywhere or nowhere now. It counts again when the log has got as far as it was.
//
// It has at most history.MaxTimelines elements, the newest last.
type Former []FormerTimeline

// FormerTimeline is a timeline that was in a log that is gone.
type FormerTimeline struct {
	Timeline history.TimelineID `json:"timeline"`
	// From is the first LSN on the timeline that the log did not go on from: its end, or the next one after the switch to another timeline.
	From history.LSN `json:"from"`
}

// With returns f and the log p, which is known to have been durable up to known, should it be defective and p only a part of it.
func (f Former) With(p *history.Path, known history.LSN) Former {
	out := make(Former, 0, len(f)+len(p.Timelines))
	out = append(out, f...)
	for i, t := range p.Timelines {
		from := max(p.End, known)
		if i+1 < len(p.Timelines) {
			from = p.Timelines[i+1].Switch + 1
		}
		out = out.note(FormerTimeline{t.ID, from})
	}
	return out[max(0, len(out)-history.MaxTimelines):]
}

// note makes t the newest element.
func (f Former) note(t FormerTimeline) Former {
	for i := range f {
		if f[i].Timeline == t.Timeline {
			t.From = max(t.From, f[i].From)
			f = append(f[:i], f[i+1:]...)
			break
		}
	}
	return append(f, t)
}

// Voids reports whether a former log went on from where p ends, so that a token there may have been used.
func (f Former) Voids(p *history.Path) bool {
	for _, t := range f {
		if t.Timeline == p.Tip().ID {
			return p.End < t.From
		}
	}
	return false
}
