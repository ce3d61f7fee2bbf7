package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"mars/internal/control"
)

// TestEveryCommandLineBecomesItsCommand also makes sure that no verb lacks a command.
func TestEveryCommandLineBecomesItsCommand(t *testing.T) {
	t.Parallel()
	s := newSession(t, &daemon{})
	s.in = "secret-token\n"
	lines := map[string]control.Command{
		"create-cluster":                                {Verb: control.VerbCreateCluster},
		"join-token":                                    {Verb: control.VerbJoinToken, TTL: time.Hour},
		"join-token --ttl 10m":                          {Verb: control.VerbJoinToken, TTL: 10 * time.Minute},
		"join-cluster a:7777 --token T":                 {Verb: control.VerbJoinCluster, Peer: "a:7777", Token: "T"},
		"join-cluster --token=- [::1]:7777":             {Verb: control.VerbJoinCluster, Peer: "[::1]:7777", Token: "secret-token"},
		"leave-cluster":                                 {Verb: control.VerbLeaveCluster},
		"leave-cluster --force":                         {Verb: control.VerbLeaveCluster, Force: true},
		"leave-cluster --host dead --force":             {Verb: control.VerbLeaveCluster, Host: "dead", Force: true},
		"create-resource r /dev/vg/r":                   {Verb: control.VerbCreateResource, Resource: "r", Disk: "/dev/vg/r"},
		"create-resource r /dev/vg/../vg/r --size 1.5G": {Verb: control.VerbCreateResource, Resource: "r", Disk: "/dev/vg/r", Size: 3 << 29},
		"join-resource r /dev/vg/r":                     {Verb: control.VerbJoinResource, Resource: "r", Disk: "/dev/vg/r"},
		"leave-resource r":                              {Verb: control.VerbLeaveResource, Resource: "r"},
		"leave-resource r --host dead --force":          {Verb: control.VerbLeaveResource, Resource: "r", Host: "dead", Force: true},
		"delete-resource --force r":                     {Verb: control.VerbDeleteResource, Resource: "r", Force: true},
		"attach r":                                      {Verb: control.VerbAttach, Resource: "r"},
		"detach r":                                      {Verb: control.VerbDetach, Resource: "r"},
		"up r":                                          {Verb: control.VerbUp, Resource: "r"},
		"down r":                                        {Verb: control.VerbDown, Resource: "r"},
		"pause-fetch r":                                 {Verb: control.VerbPauseFetch, Resource: "r"},
		"disconnect r":                                  {Verb: control.VerbPauseFetch, Resource: "r"},
		"resume-fetch r":                                {Verb: control.VerbResumeFetch, Resource: "r"},
		"connect r":                                     {Verb: control.VerbResumeFetch, Resource: "r"},
		"pause-replay r":                                {Verb: control.VerbPauseReplay, Resource: "r"},
		"resume-replay r":                               {Verb: control.VerbResumeReplay, Resource: "r"},
		"pause-sync r":                                  {Verb: control.VerbPauseSync, Resource: "r"},
		"resume-sync r":                                 {Verb: control.VerbResumeSync, Resource: "r"},
		"primary r":                                     {Verb: control.VerbPrimary, Resource: "r"},
		"primary r --force":                             {Verb: control.VerbPrimary, Resource: "r", Force: true},
		"secondary r":                                   {Verb: control.VerbSecondary, Resource: "r"},
		"invalidate r":                                  {Verb: control.VerbInvalidate, Resource: "r"},
		"wait-cluster":                                  {Verb: control.VerbWaitCluster},
		"wait-resource r uptodate":                      {Verb: control.VerbWaitResource, Resource: "r", Condition: control.CondUpToDate},
		"wait-resource r is-primary-on":                 {Verb: control.VerbWaitResource, Resource: "r", Condition: control.CondPrimary},
		"wait-umount r":                                 {Verb: control.VerbWaitUmount, Resource: "r"},
		"log-rotate r":                                  {Verb: control.VerbLogRotate, Resource: "r"},
		"resize r":                                      {Verb: control.VerbResize, Resource: "r"},
		"resize r --size=2TiB":                          {Verb: control.VerbResize, Resource: "r", Size: 2 << 40},
	}
	for line, want := range lines {
		before := len(s.commands())
		if code := s.run(line); code != exitDone || s.out.Len()+s.err.Len() > 0 {
			t.Errorf("%s: exit %d, out %q, err %q", line, code, &s.out, &s.err)
			continue
		}
		if got := s.commands()[before:]; len(got) != 1 || got[0] != want {
			t.Errorf("%s: sent %+v, want %+v", line, got, want)
		}
	}
	for _, verb := range control.Verbs() {
		found := false
		for _, c := range lines {
			found = found || c.Verb == verb
		}
		if !found {
			t.Errorf("no command line for verb %s is tested", verb)
		}
	}
}

func TestUsageErrorsNeverReachTheDaemon(t *testing.T) {
	t.Parallel()
	d := &daemon{status: func() (control.Status, error) { return control.Status{}, nil }}
	s := newSession(t, d)
	asked := false
	d.status = func() (control.Status, error) { asked = true; return control.Status{}, nil }
	for line, want := range map[string]string{
		"":                                     "no command",
		"frobnicate":                           `unknown command "frobnicate"`,
		"primry x":                             "meant: primary?",
		"help frobnicate":                      "unknown command",
		"version now":                          `unexpected argument "now"`,
		"primary":                              "NAME is missing",
		"create-resource r":                    "DISK is missing",
		"create-resource":                      "NAME DISK is missing",
		"primary r extra":                      `unexpected argument "extra"`,
		"primary r --frob":                     "--frob",
		"view --frob":                          "--frob",
		"view r -x":                            "'x'",
		"secondary r --force":                  "--force",
		"primary r,s":                          "forbidden character",
		"primary ../r":                         "starts with",
		"primary all":                          "reserved",
		"view a/b":                             "forbidden character",
		"up a,,b":                              "empty name",
		"up a,all":                             "stands alone",
		"up good,../bad":                       "starts with",
		"up " + strings.Repeat("x", 4096):      "at most 63",
		"up ünïcode":                           "forbidden character",
		"wait-resource all happy":              "unknown condition",
		"wait-resource r":                      "CONDITION is missing",
		"join-cluster a:1":                     "token",
		"join-cluster a --token T":             "HOST:PORT",
		"join-token --ttl 0":                   "--ttl",
		"join-token --ttl -5s":                 "not more than 0",
		"join-token --ttl 8761h":               "out of range",
		"create-resource r /dev/r --size 0":    "is nothing",
		"create-resource r /dev/r --size 10GB": "write GiB",
		"create-resource r /dev/r --size -1":   "--size",
		"leave-resource r --host dead":         "--force",
		"leave-resource r --host ../x --force": "node name",
		"view --timeout -1s":                   "--timeout",
		"view --timeout soon":                  "--timeout",
		"view --json=perhaps":                  "--json",
	} {
		if code := s.run(line); code != exitUsage || s.out.Len() > 0 {
			t.Errorf("%.60s: exit %d, out %q", line, code, &s.out)
		}
		s.wantLines(&s.err, want)
	}
	if len(s.commands()) > 0 || asked {
		t.Errorf("the daemon was asked: %+v", s.commands())
	}
}

func TestRefusalIsTheDaemonsOwnLine(t *testing.T) {
	t.Parallel()
	s := newSession(t, &daemon{do: func(context.Context, control.Command) (control.Result, error) {
		return control.Result{}, errors.New("primary alpha: refused: mounted on /srv at node-b:\numount it\x1b[31m, then try again")
	}})
	if code := s.run("primary alpha"); code != exitFailed || s.out.Len() > 0 {
		t.Errorf("exit %d, out %q", code, &s.out)
	}
	if want := "marsadm: primary alpha: refused: mounted on /srv at node-b: umount it?[31m, then try again\n"; s.err.String() != want {
		t.Errorf("got %q, want %q", &s.err, want)
	}
}

func TestDaemonNotRunning(t *testing.T) {
	t.Parallel()
	s := newSession(t, nil)
	for _, line := range []string{"view", "view --watch", "primary r", "up all", "wait-cluster"} {
		if code := s.run(line); code != exitFailed || s.out.Len() > 0 {
			t.Errorf("%s: exit %d, out %q", line, code, &s.out)
		}
		s.wantLines(&s.err, "marsd is not running (no answer on "+s.dir+"/marsd.sock: no such file or directory): start it with `marsd --dir "+s.dir+"`, or pass --dir")
	}
	if code := s.run("version"); code != exitDone {
		t.Errorf("version: exit %d, err %q", code, &s.err)
	}
}

func TestListsGoOnAfterFailures(t *testing.T) {
	t.Parallel()
	s := newSession(t, &daemon{do: func(_ context.Context, c control.Command) (control.Result, error) {
		switch c.Resource {
		case "bad":
			return control.Result{}, errors.New("no such disk: create it")
		case "worse":
			return control.Result{}, errors.New("up worse: disk is gone")
		}
		return control.Result{Message: c.Resource + " is up"}, nil
	}})
	if code := s.run("up good,bad,worse,good,fine"); code != exitFailed {
		t.Errorf("exit %d", code)
	}
	s.wantLines(&s.out, "good is up", "fine is up")
	s.wantLines(&s.err, "marsadm: bad: no such disk: create it", "marsadm: up worse: disk is gone")
	if got := len(s.commands()); got != 4 {
		t.Errorf("%d commands, want 4", got)
	}
}

func TestAllIsWhatHasAReplicaHere(t *testing.T) {
	t.Parallel()
	s := newSession(t, &daemon{})
	for _, line := range []string{"up all", "log-rotate all", "wait-resource all uptodate"} {
		before := len(s.commands())
		if code := s.run(line); code != exitDone {
			t.Errorf("%s: exit %d, %s", line, code, &s.err)
		}
		got := s.commands()[before:]
		if len(got) != 2 || got[0].Resource != "alpha" || got[1].Resource != "beta" {
			t.Errorf("%s: sent %+v", line, got)
		}
	}
	s.status = func() (control.Status, error) { return control.Status{}, nil }
	if code := s.run("up all"); code != exitDone {
		t.Errorf("with no resource: exit %d, %s", code, &s.err)
	}
}

func TestJSON(t *testing.T) {
	t.Parallel()
	s := newSession(t, &daemon{do: func(_ context.Context, c control.Command) (control.Result, error) {
		if c.Verb == control.VerbJoinToken {
			return control.Result{Message: "valid for an hour", Token: "tok"}, nil
		}
		return control.Result{Message: "<done>"}, nil
	}})
	decode := func(line string, into ...any) {
		t.Helper()
		if code := s.run(line); code != exitDone || s.err.Len() > 0 {
			t.Errorf("%s: exit %d, err %q", line, code, &s.err)
		}
		dec := json.NewDecoder(&s.out)
		for _, v := range into {
			if err := dec.Decode(v); err != nil {
				t.Errorf("%s: %v", line, err)
			}
		}
		if dec.More() {
			t.Errorf("%s: more than %d values", line, len(into))
		}
	}
	var st control.Status
	decode("view --json", &st)
	if len(st.Resources) != 3 || st.Cluster != "c1" {
		t.Errorf("status %+v", st)
	}
	var a, b control.Resource
	decode("--json view gamma,alpha", &a, &b)
	if a.Name != "gamma" || b.Name != "alpha" {
		t.Errorf("resources %s, %s", a.Name, b.Name)
	}
	var up struct{ Resource, Message string }
	decode("up alpha --json", &up)
	if up.Resource != "alpha" || up.Message != "<done>" {
		t.Errorf("up %+v", up)
	}
	var token control.Result
	decode("join-token --json", &token)
	if token.Token != "tok" {
		t.Errorf("token %+v", token)
	}
	var v map[string]string
	decode("version --json", &v)
	if v["marsd"] != "1.2.3" || v["marsadm"] == "" {
		t.Errorf("version %v", v)
	}
	if s.run("join-token"); s.out.String() != "tok\n" || s.err.String() != "valid for an hour\n" {
		t.Errorf("out %q, err %q", &s.out, &s.err)
	}
}

func TestTimeoutReachesTheDaemonAndItsReasonComesBack(t *testing.T) {
	t.Parallel()
	s := newSession(t, &daemon{do: func(ctx context.Context, c control.Command) (control.Result, error) {
		deadline, ok := ctx.Deadline()
		switch left := time.Until(deadline); {
		case c.Resource == "forever" && ok:
			return control.Result{}, fmt.Errorf("forever has a deadline in %v", left)
		case c.Resource == "minutes" && (left < 80*time.Second || left > 90*time.Second):
			return control.Result{}, fmt.Errorf("minutes has %v left", left)
		case c.Resource == "usual" && (left < 590*time.Second || left > 600*time.Second):
			return control.Result{}, fmt.Errorf("usual has %v left", left)
		case c.Resource == "short":
			<-ctx.Done()
			return control.Result{}, errors.New("wait-umount short: still mounted on /srv at node-b")
		}
		return control.Result{}, nil
	}})
	for _, line := range []string{"up forever --timeout 0", "up minutes --timeout 90", "up minutes --timeout 1m30s", "up usual"} {
		if code := s.run(line); code != exitDone {
			t.Errorf("%s: exit %d, %s", line, code, &s.err)
		}
	}
	if code := s.run("wait-umount short --timeout 20ms"); code != exitFailed {
		t.Errorf("exit %d", code)
	}
	s.wantLines(&s.err, "marsadm: wait-umount short: still mounted on /srv at node-b")
}

func TestInterrupt(t *testing.T) {
	t.Parallel()
	ctx, interrupt := context.WithCancel(t.Context())
	gone := make(chan struct{})
	s := newSession(t, &daemon{do: func(ctx context.Context, _ control.Command) (control.Result, error) {
		interrupt()
		<-ctx.Done()
		close(gone)
		return control.Result{}, ctx.Err()
	}})
	if code := s.runCtx(ctx, "wait-resource alpha,beta uptodate"); code != exitFailed {
		t.Errorf("exit %d", code)
	}
	s.wantLines(&s.err, "wait-resource alpha: interrupted")
	<-gone
	if n := len(s.commands()); n != 1 {
		t.Errorf("%d commands, want 1: an interrupt ends the whole list", n)
	}
}

// fullDisk is a stdout that takes nothing.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

func TestOutputThatCannotBeWrittenIsAFailure(t *testing.T) {
	t.Parallel()
	s := newSession(t, &daemon{do: func(context.Context, control.Command) (control.Result, error) {
		return control.Result{Message: "m", Token: "t"}, nil
	}})
	for _, line := range []string{"view", "view --json", "join-token", "up alpha", "version"} {
		a := s.app()
		a.out = fullDisk{}
		s.err.Reset()
		if code := a.run(t.Context(), append([]string{"--dir", s.dir}, strings.Fields(line)...)); code != exitFailed {
			t.Errorf("%s: exit %d", line, code)
		}
		s.wantLines(&s.err, "no space left on device")
	}
}

// TestHelp: whoever asks gets an answer without a daemon, and every command explains itself.
func TestHelp(t *testing.T) {
	t.Parallel()
	s := newSession(t, nil)
	for _, line := range []string{"--help", "help", "help primary", "primary --help", "completion bash"} {
		if code := s.run(line); code != exitDone || s.out.Len() == 0 {
			t.Errorf("%s: exit %d, out %q, err %q", line, code, &s.out, &s.err)
		}
	}
	for _, cmd := range s.app().root().Commands() {
		if cmd.Name() == "help" || cmd.Name() == "completion" {
			continue
		}
		if cmd.Short == "" || cmd.Long == "" || cmd.Example == "" || cmd.GroupID == "" {
			t.Errorf("%s does not explain itself", cmd.Name())
		}
	}
}

func TestDirFromEnvironment(t *testing.T) {
	t.Parallel()
	s := newSession(t, &daemon{})
	s.env["MARS_DIR"] = s.dir
	if code := s.app().run(t.Context(), []string{"view"}); code != exitDone {
		t.Errorf("exit %d, err %q", code, &s.err)
	}
	s.env["MARS_DIR"] = "/nonexistent"
	s.err.Reset()
	if code := s.app().run(t.Context(), []string{"view"}); code != exitFailed || !strings.Contains(s.err.String(), "/nonexistent/marsd.sock") {
		t.Errorf("exit %d, err %q", code, &s.err)
	}
}

func TestCompletionKnowsResources(t *testing.T) {
	t.Parallel()
	s := newSession(t, &daemon{})
	if s.run("__complete primary al"); !strings.Contains(s.out.String(), "alpha\n") {
		t.Errorf("out %q", &s.out)
	}
	if s.run("__complete wait-resource alpha up"); !strings.Contains(s.out.String(), "uptodate\n") {
		t.Errorf("out %q", &s.out)
	}
}
