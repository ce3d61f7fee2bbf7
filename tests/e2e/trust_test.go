package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mars/internal/control"
	"mars/tests/stamp"
)

// TestTokens: only a fresh token of the right cluster lets a node in, and only once.
func TestTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	a, b, c := w.nodes[0], w.nodes[1], w.nodes[2]
	a.do("create-cluster")
	c.do("create-cluster")

	a.refuses([]string{"cluster"}, "create-cluster")
	b.refuses([]string{"token"}, "join-cluster", a.via, "--token", "rubbish")
	good, foreign := a.do("join-token"), c.do("join-token")
	broken := good[:len(good)/2] + flip(good[len(good)/2:])
	b.refuses([]string{"join"}, "join-cluster", a.via, "--token", broken)
	b.refuses([]string{"join"}, "join-cluster", a.via, "--token", foreign)
	brief := a.do("join-token", "--ttl", "1s")
	issued := time.Now()
	until(t, "the token has expired", func() bool { return time.Since(issued) > 2*time.Second })
	b.refuses([]string{"expired"}, "join-cluster", a.via, "--token", brief)
	c.refuses([]string{"already"}, "join-cluster", a.via, "--token", good)
	if st, err := b.tryStatus(); err != nil || st.Cluster != "" {
		t.Fatalf("beta got in without a right: %v\n%s", err, show(st))
	}
	b.do("join-cluster", a.via, "--token", good)
	d := w.addNode("delta")
	d.refuses([]string{"used"}, "join-cluster", a.via, "--token", good)
	a.kill()
	a.start()
	d.refuses([]string{"used"}, "join-cluster", a.via, "--token", good) // it has not forgotten that
	d.do("join-cluster", b.via, "--token", b.do("join-token"))          // any member can let somebody in
}

// flip changes the first letter of a text to another one.
func flip(s string) string {
	if s[0] == 'A' {
		return "B" + s[1:]
	}
	return "A" + s[1:]
}

// TestNodeNameTaken: two nodes of one name cannot be told apart by operators.
func TestNodeNameTaken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	a := w.nodes[0]
	a.do("create-cluster")
	twin := w.addNode("beta", "--name", "alpha")
	twin.refuses([]string{"taken"}, "join-cluster", a.via, "--token", a.do("join-token"))
}

// TestForeignCluster: two clusters that meet at each other's addresses exchange nothing.
func TestForeignCluster(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	a, b, c := w.nodes[0], w.nodes[1], w.nodes[2]
	a.do("create-cluster")
	b.joins(a)
	j := &stamp.Journal{}
	a.creates(res)
	b.gets(res)
	b.stop()
	c.do("create-cluster") // of its own, and where beta was
	c.stop()
	listen, via := b.listen, b.via
	c.listen, c.via = listen, via
	c.start()
	a.writeOnce(res, j)
	a.awaitSight(b, false)
	st := c.await("it runs", func(control.Status) bool { return true })
	if len(st.Nodes) != 1 || len(st.Resources) != 0 {
		t.Errorf("a foreign cluster has learnt something:\n%s", show(st))
	}
	c.stop()
	b.start()
	settle(res, a, b)
	checkEqual(t, res, a, b)
}

// TestSameNameOnTwoSides: while the network is cut, two operators create different resources under one name. Neither is lost or mixed with the
// other: both are shown, with a message, and can be deleted by their ids.
func TestSameNameOnTwoSides(t *testing.T) {
	t.Parallel()
	w := newCluster(t, 2)
	a, b := w.nodes[0], w.nodes[1]
	w.net.Isolate(b.name)
	a.creates(res)
	b.creates(res)
	j := &stamp.Journal{}
	a.writeOnce(res, j)
	w.net.Rejoin(b.name)
	var older, younger string
	for _, x := range []*node{a, b} {
		st := x.await("both are known", func(st control.Status) bool { return len(st.Resources) == 2 && len(st.Messages) > 0 })
		if st.Messages[0].Key != "name-collision" {
			t.Errorf("the collision is not shown:\n%s", show(st))
		}
		for _, r := range st.Resources {
			if r.Members[0].Node == a.name {
				older = r.ID
			} else {
				younger = r.ID
			}
		}
	}
	a.checkDevice(res, j, j.Now())
	if older == "" || younger == "" {
		t.Fatal("not both resources are shown")
	}
	b.do("secondary", younger)
	b.do("delete-resource", younger)
	a.await("the younger one is gone", func(st control.Status) bool { return len(st.Resources) == 1 && len(st.Messages) == 0 })
	b.gets(res + "") // the disk's old name is free again
	settle(res, a, b)
	checkEqual(t, res, a, b)
	a.refuses([]string{"exists already"}, "create-resource", res, makeDisk(t, filepath.Join(w.root, "other.img"), mib))
}

// TestDaemonRefusals: what marsd must not start with, and who must not talk to it.
func TestDaemonRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	a := w.nodes[0]
	t.Run("second daemon", func(t *testing.T) {
		second := &node{w: w, name: "alpha", dir: a.dir, listen: freeAddr(t), via: "127.0.0.1:1", flags: a.flags}
		checkStart(t, second, 1, a.dir, "another marsd")
	})
	t.Run("unknown key", func(t *testing.T) {
		x := &node{w: w, name: "omega", dir: filepath.Join(w.root, "omega"), listen: freeAddr(t), via: "127.0.0.1:1"}
		if err := os.MkdirAll(x.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(x.dir, "marsd.toml"), []byte("log_limt = \"1GiB\"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		checkStart(t, x, 2, "log_limt", "marsd.toml")
	})
	t.Run("stranger at the socket", func(t *testing.T) {
		info, err := os.Stat(filepath.Join(a.dir, control.SocketName))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm()&0o007 != 0 {
			t.Errorf("everybody may talk to marsd: mode %v", info.Mode())
		}
		if os.Geteuid() != 0 {
			require(t, "not root: cannot become somebody else")
		}
		cmd := exec.Command(bin.marsadm, "--dir", a.dir, "view")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if err := os.Chmod(w.root, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(bin.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "not allowed") {
			t.Errorf("nobody ran marsadm: %v\n%s", err, out)
		}
		if err := errors.Join(os.Chmod(a.dir, 0o755), os.Chmod(filepath.Join(a.dir, control.SocketName), 0o666)); err != nil {
			t.Fatal(err)
		}
		again := exec.Command(bin.marsadm, "--dir", a.dir, "create-cluster") // now only who is calling stands in the way
		again.SysProcAttr = cmd.SysProcAttr
		if out, err := again.CombinedOutput(); err == nil || !strings.Contains(string(out), "permission denied: marsd serves only root") {
			t.Errorf("nobody ran marsadm at an open socket: %v\n%s", err, out)
		}
	})
	t.Run("usage", func(t *testing.T) {
		for _, args := range [][]string{{"no-such-command"}, {"primary"}, {"create-resource", "bad/name", "/x"}, {"join-token", "--ttl", "-1s"}} {
			if got := a.adm(args...); got.code != 2 || strings.Count(got.err, "\n") != 0 {
				t.Errorf("marsadm %v: exit status %d, want 2\n%s", args, got.code, got.err)
			}
		}
	})
}

// checkStart runs a marsd that must refuse to start and say why.
func checkStart(t *testing.T, x *node, code int, words ...string) {
	t.Helper()
	cmd := x.command()
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != code {
		t.Errorf("marsd ended with %v, want status %d\n%s", err, code, out)
	}
	for _, word := range words {
		if !strings.Contains(string(out), word) {
			t.Errorf("marsd does not mention %q:\n%s", word, out)
		}
	}
}
