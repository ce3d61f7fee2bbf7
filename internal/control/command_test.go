package control

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestValidate(t *testing.T) {
	t.Parallel()
	good := []Command{
		{Verb: VerbCreateCluster},
		{Verb: VerbJoinToken},
		{Verb: VerbJoinToken, TTL: time.Hour},
		{Verb: VerbJoinCluster, Peer: "[::1]:7777", Token: "abc.def"},
		{Verb: VerbCreateResource, Resource: "r", Disk: "/dev/vg/r"},
		{Verb: VerbLeaveResource, Resource: "r", Host: "dead", Force: true},
		{Verb: VerbWaitResource, Resource: "r", Condition: CondUpToDate},
		{Verb: VerbResize, Resource: "r", Size: 1 << 30},
	}
	for _, c := range good {
		if err := c.Validate(); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
	bad := map[string]Command{
		"unknown command":  {Verb: "connect"},
		"needs a peer":     {Verb: VerbJoinCluster, Token: "t"},
		"needs --force":    {Verb: VerbLeaveResource, Resource: "r", Host: "dead"},
		"not absolute":     {Verb: VerbJoinResource, Resource: "r", Disk: "dev/vg/r"},
		"control char":     {Verb: VerbJoinResource, Resource: "r", Disk: "/dev/vg\x00r"},
		"at most 4095":     {Verb: VerbJoinResource, Resource: "r", Disk: "/" + strings.Repeat("x", 5000)},
		"negative":         {Verb: VerbResize, Resource: "r", Size: -1},
		"HOST:PORT":        {Verb: VerbJoinCluster, Peer: "node-a", Token: "t"},
		"one line":         {Verb: VerbJoinCluster, Peer: "node-a:1", Token: "a\nb"},
		"out of range":     {Verb: VerbJoinToken, TTL: -time.Second},
		"unknown cond":     {Verb: VerbWaitResource, Resource: "r", Condition: "happy"},
		"takes no force":   {Verb: VerbSecondary, Resource: "r", Force: true},
		"node name \"../x": {Verb: VerbLeaveResource, Resource: "r", Host: "../x", Force: true},
	}
	for want, c := range bad {
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80v: error %v, want %q", c, err, want)
		}
	}
	if err := (Command{Verb: "x"}).Validate(); !errors.Is(err, ErrUnknownVerb) {
		t.Errorf("%v is not ErrUnknownVerb", err)
	}
}

func TestTokenStaysOutOfMessages(t *testing.T) {
	t.Parallel()
	err := Command{Verb: VerbJoinCluster, Peer: "a:1", Token: "topsecret\n"}.Validate()
	if err == nil || strings.Contains(err.Error(), "topsecret") {
		t.Errorf("error %v", err)
	}
}

func TestParseCondition(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"uptodate": CondUpToDate, "UpToDate": CondUpToDate, "is-primary-on": CondPrimary, "primary-off": CondSecondary, "device": CondDeviceOn,
		"is-attach-off": CondAttachOff, "sync": CondSyncOn, "replay-reached": CondReplayReached,
	} {
		if got, err := ParseCondition(in); err != nil || got != want {
			t.Errorf("ParseCondition(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for _, c := range Conditions() {
		if got, err := ParseCondition(c); err != nil || got != c {
			t.Errorf("ParseCondition(%q) = %q, %v", c, got, err)
		}
	}
	if _, err := ParseCondition("drained"); err == nil {
		t.Error("unknown condition accepted")
	}
}

func FuzzDecodeCommand(f *testing.F) {
	f.Add([]byte(`{"verb":"primary","resource":"mydata","force":true}`))
	f.Add([]byte(`{"verb":"join-token","ttl":3600000000000}`))
	f.Add([]byte(`{"verb":"create-resource","resource":"r","disk":"/dev/x","size":1}`))
	f.Add([]byte(`{"verb":"primary","resource":"../x"}`))
	f.Add([]byte(`{"VERB":"up","resource":"a"}{`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := decodeCommand(data)
		if err != nil {
			return
		}
		again, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		back, err := decodeCommand(again)
		if err != nil || back != c {
			t.Fatalf("%s -> %+v, %v; want %+v", again, back, err, c)
		}
		if strings.ContainsAny(c.Resource+c.Host, "/\x00\n ") {
			t.Fatalf("unsafe name in %+v", c)
		}
	})
}
