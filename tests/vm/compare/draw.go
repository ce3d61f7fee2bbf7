package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// Geometry of the picture, in pixels.
const (
	width      = 960
	left       = 70.0
	right      = 20.0
	top        = 52.0
	plotHeight = 250.0
	barHeight  = 26.0
	barGap     = 34.0
)

var (
	curveColors = []string{"#1b7837", "#762a83", "#d6604d", "#4393c3"}
	barColors   = map[Condition]string{Follows: "#4daf4a", Behind: "#fdc863", Inconsistent: "#d73027"}
	conditions  = []Condition{Follows, Behind, Inconsistent}
)

// picture writes SVG.
type picture struct {
	strings.Builder
	seconds float64 // length of the time axis
	most    float64 // writes per second at the top
}

// draw makes the picture: what the application got over time, a curve for each system, and below, for each, a bar with the state of its secondary.
func draw(r *Results) string {
	p := &picture{seconds: 1, most: 1}
	for _, run := range r.Runs {
		p.fit(run)
	}
	bars := top + plotHeight + 62
	height := bars + barGap*float64(len(r.Runs)) + 78 + 16*float64(len(r.Runs))
	fmt.Fprintf(p, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %.0f\" font-family=\"sans-serif\" font-size=\"13\">\n", width, height)
	fmt.Fprintf(p, "<rect width=\"%d\" height=\"%.0f\" fill=\"white\"/>\n", width, height)
	p.text(left, 20, "start", "Writes per second of an application that wants "+fmt.Sprint(wantRate)+", while the link to the secondary gets slow and breaks")
	if len(r.Runs) > 0 {
		p.link(r.Runs[0].Events, bars+barGap*float64(len(r.Runs))-8)
	}
	p.axes()
	for i, run := range r.Runs {
		color := curveColors[i%len(curveColors)]
		p.curve(run, color)
		p.bar(run, bars+float64(i)*barGap, color)
	}
	below := bars + barGap*float64(len(r.Runs)) + 14
	p.legend(below)
	for i, run := range r.Runs {
		p.small(left, below+22+16*float64(i), caption(run))
	}
	if n := len(r.Runs); n > 0 {
		last := r.Runs[n-1]
		p.small(left, below+22+16*float64(n), "Two virtual machines with emulated processors, kernel "+last.Kernel+", on "+last.Machine+"; disks in memory.")
	}
	p.WriteString("</svg>\n")
	return p.String()
}

func caption(run Run) string {
	return fmt.Sprintf("%s: in sync again %.1f s after the link was free; handover %.2f s. %s, %s.", run.System, run.RecoverySeconds, run.HandoverSeconds,
		run.Date.Format("2006-01-02"), run.Commit)
}

// fit makes room for a run.
func (p *picture) fit(run Run) {
	for _, a := range run.App {
		p.seconds, p.most = max(p.seconds, a.At), max(p.most, a.Writes)
	}
	for _, s := range run.States {
		p.seconds = max(p.seconds, s.At)
	}
	p.most = math.Ceil(p.most/100) * 100
}

func (p *picture) x(at float64) float64 {
	return left + min(max(at, 0), p.seconds)/p.seconds*(width-left-right)
}

func (p *picture) y(writes float64) float64 { return top + plotHeight*(1-writes/p.most) }

func (p *picture) text(x, y float64, anchor, s string) {
	fmt.Fprintf(p, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y, anchor, html.EscapeString(s))
}

func (p *picture) small(x, y float64, s string) {
	fmt.Fprintf(p, "<text x=\"%.1f\" y=\"%.1f\" font-size=\"11\" fill=\"#444\">%s</text>\n", x, y, html.EscapeString(s))
}

func (p *picture) line(x1, y1, x2, y2 float64, color string) {
	fmt.Fprintf(p, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n", x1, y1, x2, y2, color)
}

// link shades the times between the changes of the link.
func (p *picture) link(events []Event, bottom float64) {
	shades := map[string]string{"link at 5 Mbit/s": "#f0f0f0", "link broken": "#d9d9d9"}
	p.text(p.x(0)+4, top-8, "start", "link free")
	for i, e := range events {
		end := p.seconds
		if i+1 < len(events) {
			end = events[i+1].At
		}
		if shade, ok := shades[e.What]; ok {
			fmt.Fprintf(p, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n", p.x(e.At), top, p.x(end)-p.x(e.At), bottom-top, shade)
		}
		p.text(p.x(e.At)+4, top-8, "start", e.What)
	}
}

func (p *picture) axes() {
	for writes := 0.0; writes <= p.most; writes += 100 {
		p.line(left, p.y(writes), width-right, p.y(writes), "#bbb")
		p.text(left-8, p.y(writes)+4, "end", fmt.Sprintf("%.0f", writes))
	}
	for s := 0.0; s <= p.seconds; s += 10 {
		p.line(p.x(s), top+plotHeight, p.x(s), top+plotHeight+5, "#666")
		p.text(p.x(s), top+plotHeight+20, "middle", fmt.Sprintf("%.0f s", s))
	}
	p.text(left, top+plotHeight+44, "start", "The secondary says about itself:")
}

// curve draws what the application got; it ends where the application does.
func (p *picture) curve(run Run, color string) {
	var points []string
	for _, a := range run.App {
		points = append(points, fmt.Sprintf("%.1f,%.1f", p.x(a.At), p.y(a.Writes)))
	}
	fmt.Fprintf(p, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" points=\"%s\"/>\n", color, strings.Join(points, " "))
}

// bar draws the states of a secondary, each until the next one, and before them the colour of the system's curve.
func (p *picture) bar(run Run, y float64, color string) {
	for j := 0; j < len(run.States); {
		first := run.States[j]
		for j < len(run.States) && run.States[j].Is == first.Is {
			j++
		}
		end := p.seconds
		if j < len(run.States) {
			end = run.States[j].At
		}
		fmt.Fprintf(p, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n", p.x(first.At), y, p.x(end)-p.x(first.At), barHeight, barColors[first.Is])
	}
	p.text(left+6, y+barHeight/2+4, "start", run.System)
	fmt.Fprintf(p, "<rect x=\"%.1f\" y=\"%.1f\" width=\"24\" height=\"%.1f\" fill=\"%s\"/>\n", left-32, y, barHeight, color)
}

// legend explains the colours of the bars. Those of the curves stand before them.
func (p *picture) legend(y float64) {
	x := left
	for _, c := range conditions {
		fmt.Fprintf(p, "<rect x=\"%.1f\" y=\"%.1f\" width=\"14\" height=\"14\" fill=\"%s\"/>\n", x, y-11, barColors[c])
		p.text(x+20, y, "start", string(c))
		x += 60 + 7*float64(len(c))
	}
}
