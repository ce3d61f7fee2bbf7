package main

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestConditions(t *testing.T) {
	t.Parallel()
	m := func(rest string) string { return `{"resources":[{"members":[{` + rest + `}]}]}` }
	for _, x := range []struct {
		s    system
		line string
		want Condition
	}{
		{drbd{}, "cs:Connected ro:Secondary/Primary ds:UpToDate/UpToDate A r-----", Follows},
		{drbd{}, "cs:WFConnection ro:Secondary/Unknown ds:UpToDate/DUnknown A r-----", Behind},
		{drbd{}, "cs:Behind ro:Secondary/Primary ds:Outdated/UpToDate A r-----", Behind},
		{drbd{}, "cs:SyncTarget ro:Secondary/Primary ds:Inconsistent/UpToDate A r-----", Inconsistent},
		{mars{}, m(`"consistent":true,"disk_state":"UpToDate","repl_state":"Replaying"`), Follows},
		{mars{}, m(`"consistent":true,"disk_state":"OutDated[F]","repl_state":"Replaying"`), Behind},
		{mars{}, m(`"consistent":true,"disk_state":"UpToDate","repl_state":"PrimaryUnreachable"`), Behind},
		{mars{}, m(`"consistent":false,"disk_state":"InConsistent","repl_state":"Syncing"`), Inconsistent},
		{mars{}, "", Inconsistent},
	} {
		if got := x.s.condition(x.line); got != x.want {
			t.Errorf("%q is %q, want %q", x.line, got, x.want)
		}
	}
}

func TestLinesAreTakenWhole(t *testing.T) {
	t.Parallel()
	var got []string
	l := &lines{take: func(at float64, rest string) {
		if at == 12.5 {
			got = append(got, rest)
		}
	}}
	for _, part := range []string{"12.5 a", " b\n12.", "5 c\nnonsense\n12.5 d"} {
		l.Write([]byte(part))
	}
	if s := strings.Join(got, "|"); s != "a b|c" {
		t.Errorf("took %q", s)
	}
}

func TestPictureIsXMLAndShowsEveryState(t *testing.T) {
	t.Parallel()
	r := &Results{}
	r.add(Run{System: "a <b>", App: []Rate{{1, 400}, {2, 0}}, States: []State{{0, Follows, ""}, {1, Behind, ""}, {2, Inconsistent, ""}}, Events: []Event{{1, "link broken"}}})
	r.add(Run{System: "c"})
	r.add(Run{System: "c", HandoverSeconds: 4.25})
	if len(r.Runs) != 2 {
		t.Fatalf("%d runs, want 2: the new one takes the place of the old one", len(r.Runs))
	}
	svg := draw(r)
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"a &lt;b&gt;", "link broken", "handover 4.25 s", barColors[Follows], barColors[Behind], barColors[Inconsistent]} {
		if !strings.Contains(svg, want) {
			t.Errorf("no %q in the picture", want)
		}
	}
}
