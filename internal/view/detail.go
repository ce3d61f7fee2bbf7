package view

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"mars/internal/bytesize"
	"mars/internal/control"
)

// details are the lines below a resource. A resource in its normal state has none.
func (o Options) details(r control.Resource) []line {
	m := local(r)
	lines := o.progress(m)
	lines = append(lines, behind(r, m)...)
	if m.WaitsFor != "" {
		lines = append(lines, detail(span{"waits for", warn}, cell{{clean(m.WaitsFor), plain}}))
	}
	if users := strings.Join(m.Users, ", "); users != "" && m.Role == control.RoleRemainsPrimary {
		lines = append(lines, detail(span{"in use", warn}, cell{{clean(users), plain}}))
	}
	lines = append(lines, others(r)...)
	lines = append(lines, primaries(r)...)
	if r.SplitBrain != "" {
		lines = append(lines, detail(span{control.LevelErr, bad}, cell{{"split brain: " + clean(r.SplitBrain), plain}}))
	}
	lines = append(lines, o.messages(m.Messages, "")...)
	for _, other := range r.Members {
		if !other.Self {
			lines = append(lines, o.messages(other.Messages, other.Node)...)
		}
	}
	return lines
}

func (o Options) progress(m control.Member) []line {
	rows := make([][]cell, 0, len(m.Progress))
	for _, p := range m.Progress {
		rows = append(rows, []cell{
			{{fmt.Sprintf("%-*s", labelWidth, clean(p.Kind)), accent}},
			append(o.bar(p.DoneBytes, p.TotalBytes, accent), span{" " + percent(p.DoneBytes, p.TotalBytes), plain}),
			{{bytesize.Format(p.DoneBytes) + " of " + bytesize.Format(p.TotalBytes), plain}},
			{{rate(p.Rate), rateStyle(p.Rate)}},
			{{timeLeft(p.RemainingSeconds), plain}},
		})
	}
	return table(detailIndent, rows)
}

// behind says how much would be lost, in bytes and in time, if the primary were gone now; at the primary, what is still to be written back.
func behind(r control.Resource, m control.Member) []line {
	if m.LagBytes <= 0 && m.LagSeconds <= 0 {
		return nil
	}
	if m.Role == control.RolePrimary {
		if !slices.ContainsFunc(m.Progress, func(p control.Progress) bool { return p.Kind == control.ProgressWriteBack }) {
			return nil // a busy primary always has something in its buffer: only a drain is worth a line
		}
		return []line{detail(span{"buffer", plain}, cell{{lag(m) + " of log not yet written back", plain}})}
	}
	return []line{detail(span{"behind", warn}, cell{{lag(m) + " behind " + or(clean(r.DesignatedPrimary), "the last primary"), plain}})}
}

func lag(m control.Member) string {
	text := bytesize.Format(max(0, m.LagBytes))
	if m.LagSeconds > 0 {
		text += ", " + Seconds(m.LagSeconds)
	}
	return text
}

// maxOthers bounds the list of other members; --json has all.
const maxOthers = 8

// others lists the other members that are not as they should be.
func others(r control.Resource) []line {
	var rows [][]cell
	var silent []line
	hidden := 0
	for _, m := range r.Members {
		switch {
		case m.Self || healthy(m):
		case len(rows)+len(silent) == maxOthers:
			hidden++
		case m.Alive:
			rows = append(rows, otherRow(m))
		default:
			silent = append(silent, silentLine(m))
		}
	}
	lines := append(table(detailIndent, rows), silent...)
	if hidden > 0 {
		lines = append(lines, detail(span{"...", dim}, cell{{fmt.Sprintf("and %d more members that are not up to date: see --json", hidden), dim}}))
	}
	return lines
}

func healthy(m control.Member) bool {
	return m.Alive && diskIn(m, control.DiskUpToDate, control.DiskWriteBack) && replIn(m, control.ReplReplicating, control.ReplReplaying)
}

func otherRow(m control.Member) []cell {
	label := cell{{fmt.Sprintf("%-*s", labelWidth, clean(m.Node)), plain}}
	row := []cell{label, {{dash(m.DiskState), diskStyle(m.DiskState)}}, {{dash(m.ReplState), replStyle(m.ReplState)}}}
	if m.LagBytes > 0 || m.LagSeconds > 0 {
		row = append(row, cell{{lag(m) + " behind", plain}})
	}
	for _, p := range m.Progress {
		text := fmt.Sprintf("%s %s %s %s", clean(p.Kind), strings.TrimSpace(percent(p.DoneBytes, p.TotalBytes)), rate(p.Rate), timeLeft(p.RemainingSeconds))
		row = append(row, cell{{text, plain}})
	}
	return row
}

// silentLine is about a member without contact: what is known is old, and says so.
func silentLine(m control.Member) line {
	known := cell{{lastContact(m.LastContactSeconds), warn}}
	if m.DiskState != "" {
		known = append(known, span{"; it was " + strings.TrimSpace(clean(m.DiskState)+" "+clean(m.ReplState)), dim})
	}
	return detail(span{clean(m.Node), warn}, known)
}

func lastContact(seconds float64) string {
	if seconds < 0 {
		return "no contact since marsd started"
	}
	return "no contact for " + Seconds(seconds)
}

// primaries explains when the actual primary is not the designated one: then two nodes may be writing.
func primaries(r control.Resource) []line {
	switch {
	case len(r.ActualPrimary) > 1:
		text := fmt.Sprintf("%d nodes have an active device at the same time: %s", len(r.ActualPrimary), clean(strings.Join(r.ActualPrimary, ", ")))
		return []line{detail(span{control.LevelErr, bad}, cell{{text, plain}})}
	case len(r.ActualPrimary) == 1 && r.ActualPrimary[0] != r.DesignatedPrimary:
		text := fmt.Sprintf("%s still has the device; designated is %s", clean(r.ActualPrimary[0]), or(clean(r.DesignatedPrimary), "(none)"))
		return []line{detail(span{control.LevelWarn, warn}, cell{{text, plain}})}
	}
	return nil
}

// bar draws done of total.
func (o Options) bar(done, total int64, how style) cell {
	width := 30
	if o.Width > 0 {
		width = min(40, max(10, o.Width-75))
	}
	full := int(ratio(done, total) * float64(width))
	if o.ASCII {
		return cell{{"[" + strings.Repeat("=", full) + strings.Repeat(".", width-full) + "]", how}}
	}
	return cell{{strings.Repeat("━", full), how}, {strings.Repeat("─", width-full), dim}}
}

func ratio(done, total int64) float64 {
	if total <= 0 || done <= 0 {
		return 0
	}
	return min(1, float64(done)/float64(total))
}

// percent rounds down: nothing is 100 % before it is done.
func percent(done, total int64) string {
	return fmt.Sprintf("%5.1f %%", math.Floor(ratio(done, total)*1000)/10)
}

func rate(bytesPerSecond float64) string { return bytesize.Format(clampInt(bytesPerSecond)) + "/s" }

func rateStyle(bytesPerSecond float64) style {
	if bytesPerSecond <= 0 {
		return warn
	}
	return plain
}

func clampInt(f float64) int64 {
	if !(f > 0) { // also NaN
		return 0
	}
	return int64(min(f, 1<<62))
}

func timeLeft(seconds float64) string {
	if seconds < 0 {
		return "? left"
	}
	return Seconds(seconds) + " left"
}

// Seconds is Duration for the daemon's floating point seconds.
func Seconds(s float64) string {
	const most = 100 * 365 * 24 * 3600
	if !(s > 0) {
		return Duration(0)
	}
	return Duration(time.Duration(min(s, most) * float64(time.Second)))
}

// Duration writes d with the two units that matter: "0.4s", "14s", "3m12s", "2h05m", "12d04h".
func Duration(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Truncate(100*time.Millisecond).Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
}
