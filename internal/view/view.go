// Package view shows a control.Status to humans: for each resource one line that says how it is, and below it only what deserves attention -
// what runs and how long it will take, what waits and for what, which members are not up to date, and messages.
//
// It is pure: no clock, no terminal, no daemon. What a machine wants to read is the Status itself, as JSON.
package view

import (
	"fmt"
	"io"
	"strings"
	"time"

	"mars/internal/bytesize"
	"mars/internal/control"
)

// Options says what the output is for.
type Options struct {
	Width int       // columns of the terminal; 0 = do not fit lines to any
	Color bool      // colours by ANSI escapes
	ASCII bool      // no characters beyond ASCII
	Now   time.Time // for the age of messages; zero = when the status was taken
}

// detailIndent and labelWidth give the lines below a resource their shape.
const (
	detailIndent = "    "
	labelWidth   = len("waits for")
	hang         = len(detailIndent) + labelWidth + len(gap)
)

// Render writes st to w.
func Render(w io.Writer, st control.Status, o Options) error {
	if o.Now.IsZero() {
		o.Now = st.Time
	}
	return paint(w, o.status(st), o)
}

func (o Options) status(st control.Status) []line {
	if st.Cluster == "" {
		return append(noCluster(st), o.messages(st.Messages, "")...)
	}
	lines := o.resources(st)
	about := silentNodes(st)
	about = append(about, o.logStore(st.LogStore)...)
	about = append(about, o.messages(st.Messages, "")...)
	if len(about) > 0 {
		lines = append(lines, line{spans: cell{{clean(st.Node), strong}, {" (this node)", dim}}})
	}
	return append(lines, about...)
}

func noCluster(st control.Status) []line {
	return []line{
		{spans: cell{{clean(st.Node), strong}, {" is in no cluster.", plain}}},
		hint("start one:", "marsadm create-cluster"),
		hint("or join one:", "marsadm join-token   (at one of its nodes)"),
		hint("", "marsadm join-cluster HOST:PORT --token TOKEN   (here)"),
	}
}

func hint(label, command string) line {
	return line{spans: cell{{fmt.Sprintf("%s%-12s  ", detailIndent, label), dim}, {command, plain}}}
}

func (o Options) resources(st control.Status) []line {
	if len(st.Resources) == 0 {
		return []line{
			{spans: cell{{"The cluster has no resources.", plain}}},
			hint("create one:", "marsadm create-resource NAME DISK"),
		}
	}
	rows := make([][]cell, 0, len(st.Resources))
	sizeWidth := 0
	for _, r := range st.Resources {
		sizeWidth = max(sizeWidth, len(bytesize.Format(r.SizeBytes)))
	}
	for _, r := range st.Resources {
		size := fmt.Sprintf("%*s", sizeWidth, bytesize.Format(r.SizeBytes))
		replicas := fmt.Sprintf("[%d/%d]", len(r.Members), len(st.Nodes))
		rows = append(rows, append([]cell{{{clean(r.Name), strong}}, {{size, plain}}, {{replicas, dim}}}, stateCells(r)...))
	}
	var lines []line
	for i, l := range table("", rows) {
		lines = append(lines, l)
		lines = append(lines, o.details(st.Resources[i])...)
	}
	return lines
}

// silentNodes names the nodes without contact that no resource's own lines name.
func silentNodes(st control.Status) []line {
	shown := make(map[string]bool)
	for _, r := range st.Resources {
		for _, m := range r.Members {
			shown[m.Node] = true
		}
	}
	var lines []line
	for _, n := range st.Nodes {
		if !n.Alive && !n.Self && !shown[n.Name] {
			lines = append(lines, detail(span{clean(n.Name), warn}, cell{{lastContact(n.LastContactSeconds), warn}}))
		}
	}
	return lines
}

// logStoreWorthShowing is the percentage of use from which the log store gets a line.
const logStoreWorthShowing = 80

func (o Options) logStore(s control.LogStore) []line {
	total := s.UsedBytes + s.FreeBytes
	if s.LimitBytes > 0 {
		total = min(total, s.LimitBytes)
	}
	if total <= 0 || float64(s.UsedBytes) < float64(total)*logStoreWorthShowing/100 {
		return nil
	}
	how := warn
	if s.UsedBytes > total-total/50 {
		how = bad
	}
	text := fmt.Sprintf("%s of %s used, %s free on the file system of %s",
		bytesize.Format(s.UsedBytes), bytesize.Format(total), bytesize.Format(s.FreeBytes), clean(s.Dir))
	bar := o.bar(s.UsedBytes, total, how)
	return []line{detail(span{"log store", how}, append(bar, span{fmt.Sprintf(" %s%s%s", percent(s.UsedBytes, total), gap, text), plain}))}
}

// detail is one line below a resource: a label and what it says.
func detail(label span, text cell) line {
	pad := strings.Repeat(" ", max(0, labelWidth-label.width()))
	return line{spans: append(cell{{detailIndent, plain}, label, {pad + gap, plain}}, text...), hang: hang}
}

// messages shows errors and warnings; a node that is not this one is named.
func (o Options) messages(messages []control.Message, node string) []line {
	var lines []line
	for _, m := range messages {
		how := warn
		switch m.Level {
		case control.LevelErr:
			how = bad
		case control.LevelInfo:
			continue
		}
		text := clean(m.Key) + ": " + clean(m.Text)
		if node != "" {
			text = clean(node) + ": " + text
		}
		said := cell{{text, plain}}
		if age := o.Now.Sub(m.Since); !m.Since.IsZero() && age > 0 {
			said = append(said, span{" (for " + Duration(age) + ")", dim})
		}
		lines = append(lines, detail(span{clean(m.Level), how}, said))
	}
	return lines
}
