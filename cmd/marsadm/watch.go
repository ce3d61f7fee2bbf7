package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"regexp"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// screen is the terminal that stdout may be.
type screen interface {
	size() (size, bool) // false: not a terminal
}

type size struct{ columns, rows int }

type stdoutScreen struct{}

func (stdoutScreen) size() (size, bool) {
	ws, err := unix.IoctlGetWinsize(int(os.Stdout.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return size{}, false
	}
	return size{columns: int(ws.Col), rows: int(ws.Row)}, true
}

func everySecond() (<-chan time.Time, func()) {
	ticker := time.NewTicker(time.Second)
	return ticker.C, ticker.Stop
}

// watch shows the status again and again until ctx ends, which is not a failure. It fails only if it cannot begin: once it runs, a daemon
// that is away is something to watch.
func (a *app) watch(ctx context.Context, names []string) error {
	if _, err := a.selected(ctx, names); err != nil && ctx.Err() == nil {
		return err
	}
	ticks, stop := a.ticks()
	defer stop()
	f := &frames{app: a}
	for ctx.Err() == nil {
		if err := a.watchOnce(ctx, names, f); err != nil {
			return err
		}
		select {
		case <-ticks:
		case <-ctx.Done():
		}
	}
	return nil
}

func (a *app) watchOnce(ctx context.Context, names []string, f *frames) error {
	st, err := a.selected(ctx, names)
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil && a.json:
		a.complain(err)
		return nil
	case err != nil:
		return f.draw(fmt.Appendf(nil, "marsadm: %v\n", err))
	case a.json:
		return a.show(st, names)
	}
	return f.draw(a.render(st))
}

// frames draws one text over the other on a terminal, below the other elsewhere.
type frames struct {
	app   *app
	drawn int // rows of the last frame that the cursor is below of
	begun bool
}

// Escape sequences of every terminal since the VT100.
const (
	cursorUp   = "\x1b[%dA\r"
	eraseRight = "\x1b[K"
	eraseBelow = "\x1b[J"
)

func (f *frames) draw(text []byte) error {
	screen, ok := f.app.screen.size()
	if !ok || f.app.getenv("TERM") == "dumb" {
		return f.below(text)
	}
	lines := bytes.Split(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))
	lines = fitHeight(lines, screen)
	var b bytes.Buffer
	if f.drawn > 0 {
		fmt.Fprintf(&b, cursorUp, f.drawn)
	}
	f.drawn = 0
	for _, l := range lines {
		b.Write(l)
		b.WriteString(eraseRight + "\n")
		f.drawn += rowsOf(l, screen.columns)
	}
	b.WriteString(eraseBelow)
	return f.app.write(b.Bytes())
}

// fitHeight keeps the frame on the screen: what has scrolled away cannot be drawn over.
func fitHeight(lines [][]byte, s size) [][]byte {
	rows := 0
	for i, l := range lines {
		rows += rowsOf(l, s.columns)
		if s.rows > 2 && rows > s.rows-2 && i < len(lines)-1 {
			more := fmt.Appendf(nil, "... %d more lines: make the window higher, or name a resource", len(lines)-i)
			return append(lines[:i:i], more)
		}
	}
	return lines
}

// rowsOf counts the rows that a line takes on a terminal that breaks it.
func rowsOf(line []byte, columns int) int {
	visible := utf8.RuneCount(escapeSequence.ReplaceAll(line, nil))
	if columns <= 0 || visible == 0 {
		return 1
	}
	return (visible + columns - 1) / columns
}

var escapeSequence = regexp.MustCompile("\x1b\\[[0-9;]*[A-Za-z]")

func (f *frames) below(text []byte) error {
	if f.begun {
		text = append([]byte("---\n"), text...)
	}
	f.begun = true
	return f.app.write(text)
}
