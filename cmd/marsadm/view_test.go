package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"mars/internal/control"
)

func TestView(t *testing.T) {
	t.Parallel()
	s := newSession(t, &daemon{})
	if code := s.run("view"); code != exitDone || s.err.Len() > 0 {
		t.Errorf("exit %d, err %q", code, &s.err)
	}
	s.wantLines(&s.out, "alpha  1.00 GiB  [1/1]  UpToDate", "beta", "gamma")
	if code := s.run("view gamma,alpha"); code != exitDone {
		t.Errorf("exit %d", code)
	}
	s.wantLines(&s.out, "gamma", "alpha")
	if code := s.run("view alpha,nosuch"); code != exitFailed || s.out.Len() > 0 {
		t.Errorf("exit %d, out %q", code, &s.out)
	}
	s.wantLines(&s.err, "view nosuch: there is no such resource: there are alpha, beta, gamma")
}

func TestColorsOnlyWhereTheyAreWelcome(t *testing.T) {
	t.Parallel()
	s := newSession(t, &daemon{})
	colored := func() bool {
		t.Helper()
		if code := s.run("view"); code != exitDone {
			t.Errorf("exit %d", code)
		}
		return strings.Contains(s.out.String(), "\x1b[")
	}
	if colored() {
		t.Error("colours into a pipe")
	}
	s.terminal = &size{columns: 120, rows: 40}
	if !colored() {
		t.Error("no colours on a terminal")
	}
	s.env["NO_COLOR"] = "1"
	if colored() {
		t.Error("colours in spite of NO_COLOR")
	}
	s.env["NO_COLOR"], s.env["TERM"] = "", "dumb"
	if colored() {
		t.Error("colours on a dumb terminal")
	}
}

func TestASCIIWithoutUTF8Locale(t *testing.T) {
	t.Parallel()
	st := twoResources()
	st.Resources[0].Members[0].Progress = []control.Progress{{Kind: control.ProgressSync, DoneBytes: 1, TotalBytes: 2}}
	s := newSession(t, &daemon{status: func() (control.Status, error) { return st, nil }})
	for locale, want := range map[string]string{"C.UTF-8": "━", "en_US.utf8": "━", "C": "[===", "": "[==="} {
		s.env["LANG"] = locale
		if s.run("view alpha"); !strings.Contains(s.out.String(), want) {
			t.Errorf("LANG=%s: no %q in\n%s", locale, want, &s.out)
		}
	}
	s.env["LC_ALL"], s.env["LANG"] = "POSIX", "C.UTF-8"
	if s.run("view alpha"); strings.Contains(s.out.String(), "━") {
		t.Error("LC_ALL does not win over LANG")
	}
}

// watching runs "view --watch" and lets the daemon's answers decide: after the last one comes Ctrl-C.
func watching(t *testing.T, line string, prepare func(*session), answers ...any) *session {
	t.Helper()
	ctx, interrupt := context.WithCancel(t.Context())
	d := &daemon{}
	s := newSession(t, d)
	prepare(s)
	calls := 0
	d.status = func() (control.Status, error) { // one call at a time: marsadm asks again only after a tick
		if calls == len(answers) {
			interrupt()
			return control.Status{}, nil
		}
		answer := answers[calls]
		calls++
		if err, ok := answer.(error); ok {
			return control.Status{}, err
		}
		return answer.(control.Status), nil
	}
	go func() { // ends with ctx
		for {
			select {
			case s.ticks <- time.Time{}:
			case <-ctx.Done():
				return
			}
		}
	}()
	if code := s.runCtx(ctx, line); code != exitDone {
		t.Errorf("exit %d, err %q", code, &s.err)
	}
	return s
}

func TestWatchIntoAPipe(t *testing.T) {
	t.Parallel()
	st := twoResources()
	s := watching(t, "view alpha --watch", func(*session) {}, st, st, errors.New("marsd is stopping"), st)
	s.wantLines(&s.out, "alpha", "---", "marsadm: marsd is stopping", "---", "alpha")
}

func TestWatchJSON(t *testing.T) {
	t.Parallel()
	st := twoResources()
	s := watching(t, "view --watch --json", func(*session) {}, st, st, errors.New("marsd is stopping"), st)
	s.wantLines(&s.out, `{"version":"1.2.3"`, `{"version":"1.2.3"`)
	s.wantLines(&s.err, "marsadm: marsd is stopping")
}

func TestWatchDrawsInPlace(t *testing.T) {
	t.Parallel()
	st := twoResources()
	s := watching(t, "view --watch", func(s *session) { s.terminal = &size{columns: 120, rows: 24} }, st, st, st)
	out := s.out.String()
	if strings.Contains(out, "---\n") || strings.Count(out, "\x1b[3A\r") != 1 || strings.Count(out, eraseBelow) != 2 {
		t.Errorf("got %q", out)
	}
}

func TestWatchStaysOnTheScreen(t *testing.T) {
	t.Parallel()
	st := twoResources()
	s := watching(t, "view --watch", func(s *session) { s.terminal = &size{columns: 120, rows: 3} }, st, st)
	if !strings.Contains(s.out.String(), "... 2 more lines") {
		t.Errorf("got %q", &s.out)
	}
	if strings.Contains(s.out.String(), "beta") {
		t.Errorf("the second line is drawn: %q", &s.out)
	}
}

func TestRowsOf(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]int{"": 1, "abc": 1, "abcd": 1, "abcde": 2, "\x1b[31mab━d\x1b[0m": 1} {
		if got := rowsOf([]byte(line), 4); got != want {
			t.Errorf("rowsOf(%q) = %d, want %d", line, got, want)
		}
	}
}
