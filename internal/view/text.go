package view

import (
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// style is what a piece of text means; the terminal's colours follow from it.
type style int

const (
	plain style = iota
	dim         // there, but rarely needed
	strong
	good
	warn
	bad
	accent
)

var escapes = [...]string{plain: "", dim: "\x1b[2m", strong: "\x1b[1m", good: "\x1b[32m", warn: "\x1b[33m", bad: "\x1b[1;31m", accent: "\x1b[36m"}

const escapeEnd = "\x1b[0m"

// span is text in one style. Text that comes from elsewhere has gone through clean.
type span struct {
	text  string
	style style
}

func (s span) width() int { return utf8.RuneCountInString(s.text) }

// cell is one entry of a table: a few spans side by side.
type cell []span

func (c cell) width() int {
	n := 0
	for _, s := range c {
		n += s.width()
	}
	return n
}

// line is one line of output before it meets the terminal's width.
type line struct {
	spans cell
	hang  int // indent of the continuations when the line has to be broken
}

const gap = "  "

// table aligns the columns of rows; each line starts with indent.
func table(indent string, rows [][]cell) []line {
	var widths []int
	for _, row := range rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], c.width())
		}
	}
	lines := make([]line, 0, len(rows))
	for _, row := range rows {
		lines = append(lines, tableLine(indent, row, widths))
	}
	return lines
}

func tableLine(indent string, row []cell, widths []int) line {
	spans := cell{{indent, plain}}
	for i, c := range row {
		spans = append(spans, c...)
		if i < len(row)-1 {
			spans = append(spans, span{strings.Repeat(" ", widths[i]-c.width()) + gap, plain})
		}
	}
	return line{spans: spans, hang: len(indent) + len(detailIndent)}
}

// clean makes text from other machines harmless for a terminal: no control characters, no invisible direction marks, bounded length.
func clean(s string) string {
	const most = 1000
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "?") + "..."
	}
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
}

// paint writes the lines.
func paint(w io.Writer, lines []line, o Options) error {
	var b strings.Builder
	for _, l := range lines {
		for _, spans := range l.fit(o) {
			paintSpans(&b, spans, o.Color)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func paintSpans(b *strings.Builder, spans cell, color bool) {
	for _, s := range trimRight(spans) {
		if color && s.style != plain && s.text != "" {
			b.WriteString(escapes[s.style] + s.text + escapeEnd)
		} else {
			b.WriteString(s.text)
		}
	}
	b.WriteByte('\n')
}

// trimRight returns spans without blanks at the end.
func trimRight(spans cell) cell {
	for n := len(spans) - 1; n >= 0; n-- {
		if text := strings.TrimRight(spans[n].text, " "); text != "" {
			return append(spans[:n:n], span{text, spans[n].style})
		}
	}
	return nil
}

// fit breaks the line where it is longer than the width. Nothing is ever cut off: half a status is not the truth.
func (l line) fit(o Options) []cell {
	if o.Width <= 2*l.hang || l.spans.width() <= o.Width {
		return []cell{l.spans}
	}
	return l.wrap(o.Width)
}

// wrap breaks at spaces. Words longer than a line are left to the terminal.
func (l line) wrap(width int) []cell {
	var out []cell
	row, used, afterSpace := cell{}, 0, true
	for _, s := range l.spans {
		for _, word := range strings.SplitAfter(s.text, " ") {
			if word == "" {
				continue
			}
			if afterSpace && used > l.hang && used+utf8.RuneCountInString(strings.TrimRight(word, " ")) > width {
				out = append(out, row)
				row, used = cell{{strings.Repeat(" ", l.hang), plain}}, l.hang
			}
			row = append(row, span{word, s.style})
			used += utf8.RuneCountInString(word)
			afterSpace = strings.HasSuffix(word, " ")
		}
	}
	return append(out, row)
}
