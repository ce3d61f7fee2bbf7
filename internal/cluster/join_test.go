package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"mars/internal/identity"
	"mars/internal/meta"
	"mars/internal/transport"
)

// inNoCluster checks that nothing of a failed join is left, here and after a restart.
func inNoCluster(t *testing.T, w *world, c *Cluster) {
	t.Helper()
	if c.ID() != "" || len(c.Nodes()) != 0 {
		t.Fatalf("member of cluster %s", c.ID())
	}
	wantErr(t, c.Put("k", nil), ErrNoCluster)
	must(t, c.Close())
	again := w.open(c.cfg)
	if again.ID() != "" {
		t.Fatalf("after a restart: member of cluster %s", again.ID())
	}
	if _, err := os.Stat(filepath.Join(c.cfg.Dir, storeFile)); !os.IsNotExist(err) {
		t.Fatalf("metadata is left: %v", err)
	}
}

func token(t *testing.T, c *Cluster) string {
	t.Helper()
	tok, err := c.IssueToken(time.Hour)
	must(t, err)
	return tok
}

func TestTokenIsGoodForOneNode(t *testing.T) {
	w := newWorld(t)
	a := w.cluster("a")[0]
	tok := token(t, a)
	b, c := w.open(w.config("b")), w.open(w.config("c"))
	must(t, b.Join(t.Context(), "", tok))
	err := c.Join(t.Context(), "", tok)
	wantErr(t, err, identity.ErrTokenUsed)
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("not one line: %q", err)
	}
	w.connected(a, b)
	inNoCluster(t, w, c)
}

func TestExpiredTokenIsRefused(t *testing.T) {
	w := newWorld(t)
	var later atomic.Int64
	cfg := w.config("a")
	cfg.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	a := w.open(cfg)
	must(t, a.Create(t.Context()))
	tok := token(t, a)
	later.Store(int64(2 * time.Hour))
	b := w.open(w.config("b"))
	wantErr(t, b.Join(t.Context(), "", tok), identity.ErrTokenExpired)
	inNoCluster(t, w, b)
}

func TestTokenOfAnotherNodeOrClusterIsRefused(t *testing.T) {
	w := newWorld(t)
	all := w.cluster("a", "b")
	foreign := w.open(w.config("f"))
	must(t, foreign.Create(t.Context()))
	c := w.open(w.config("c"))
	// Issued by another member, whose token store is its own.
	wantErr(t, c.Join(t.Context(), all[1].Self().Addr, token(t, all[0])), identity.ErrTokenUnknown)
	// The pin does not fit: the newcomer does not say its secret.
	tok := token(t, all[0])
	wantErr(t, c.Join(t.Context(), foreign.Self().Addr, tok), identity.ErrForeign)
	wantErr(t, c.Join(t.Context(), "", "nonsense"), identity.ErrBadToken)
	must(t, c.Join(t.Context(), "", tok)) // it was not used up by that
	w.connected(append(all, c)...)
}

func TestNameOfAMemberIsRefused(t *testing.T) {
	w := newWorld(t)
	all := w.cluster("a", "b")
	tok := token(t, all[0])
	second := w.open(w.config("b"))
	err := second.Join(t.Context(), "", tok)
	wantErr(t, err, ErrNameTaken)
	if !strings.Contains(err.Error(), all[1].Self().Addr) {
		t.Errorf("does not say where: %v", err)
	}
	inNoCluster(t, w, second)
	other := w.open(w.config("c")) // the refusal has not used the token up
	must(t, other.Join(t.Context(), "", tok))
}

func TestJoinAndCreateInAClusterAreRefused(t *testing.T) {
	all := newWorld(t).cluster("a", "b")
	wantErr(t, all[0].Create(t.Context()), ErrInCluster)
	wantErr(t, all[0].Join(t.Context(), "", token(t, all[1])), ErrInCluster)
}

func TestConfigurationIsChecked(t *testing.T) {
	w := newWorld(t)
	bad := func(change func(*Config)) Config {
		cfg := w.config("a")
		change(&cfg)
		return cfg
	}
	for name, cfg := range map[string]Config{
		"no directory": bad(func(c *Config) { c.Dir = "" }), "no name": bad(func(c *Config) { c.NodeName = "" }),
		"name with slash": bad(func(c *Config) { c.NodeName = "a/b" }),
	} {
		if _, err := Open(cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, cfg := range map[string]Config{
		"no listen address": bad(func(c *Config) { c.Listen = "" }), "all addresses": bad(func(c *Config) { c.Listen = ":0" }),
		"bad advertised address": bad(func(c *Config) { c.Advertise = "host" }),
	} {
		if err := w.open(cfg).Create(t.Context()); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := w.open(bad(func(c *Config) { c.Listen, c.Advertise = "0.0.0.0:0", "host.example:7777" }))
	must(t, c.Create(t.Context()))
	if got := c.Self().Addr; got != "host.example:7777" {
		t.Errorf("advertised %s", got)
	}
	if _, err := c.IssueToken(0); !errors.Is(err, ErrConfig) {
		t.Errorf("token without a life: %v", err)
	}
}

func TestOutsideAnyCluster(t *testing.T) {
	w := newWorld(t)
	c := w.open(w.config("a"))
	for name, err := range map[string]error{
		"Put": c.Put("k", nil), "Delete": c.Delete("k"), "Sync": c.Sync(t.Context()), "RemoveNode": c.RemoveNode("x"),
		"Leave": c.Leave(t.Context(), LeaveOptions{}),
	} {
		if !errors.Is(err, ErrNoCluster) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, ok := c.Get("k"); ok || c.List("") != nil || c.Self().Name != "a" || c.Self().ID != "" || c.Evicted() {
		t.Error("pretends to be in a cluster")
	}
	changed, cancel := c.Watch()
	defer cancel()
	must(t, c.Create(t.Context()))
	<-changed // membership is a change, too
}

// The issuer has let a node in that then died before it had stored anything: the name is free for its next attempt.
func TestUnfinishedJoinCanBeRepeated(t *testing.T) {
	w := newWorld(t)
	a := w.cluster("a")[0]
	tok, err := identity.ParseToken(token(t, a))
	must(t, err)
	dying := w.open(w.config("b"))
	conn, err := transport.DialJoin(t.Context(), dying.cfg.Network, tok.Addr, tok.Pin)
	must(t, err)
	_, entries, err := dying.apply(conn, tok, "127.0.0.1:1")
	must(t, err)
	must(t, conn.Close())
	// It may have come as far as this.
	store, err := dying.freshStore(identity.NewID())
	must(t, err)
	must(t, store.Import(entries))
	must(t, store.Close())
	inNoCluster(t, w, dying)
	if n, err := a.Node("b"); err != nil || !n.Pending || n.Alive {
		t.Fatalf("%+v, %v", n, err)
	}

	b := w.open(w.config("b"))
	w.join(b, a)
	w.connected(a, b)
}

// A node that died right after it had stored its identity is a member, and goes on by itself.
func TestJoinThatDiedAfterTheCommitIsComplete(t *testing.T) {
	w := newWorld(t)
	a := w.cluster("a")[0]
	must(t, a.Put("k", []byte("v")))
	tok, err := identity.ParseToken(token(t, a))
	must(t, err)
	dying := w.open(w.config("b"))
	conn, err := transport.DialJoin(t.Context(), dying.cfg.Network, tok.Addr, tok.Pin)
	must(t, err)
	defer conn.Close()
	id, entries, err := dying.apply(conn, tok, "127.0.0.1:1")
	must(t, err)
	store, err := dying.freshStore(id.Node())
	must(t, err)
	must(t, store.Import(entries))
	must(t, store.Close())
	must(t, id.Save(dying.cfg.Dir))
	must(t, dying.Close())

	b := w.open(dying.cfg)
	sees(t, b, "k", "v")
	w.connected(a, b)
}

func TestNewcomerGetsEverything(t *testing.T) {
	w := newWorld(t)
	a := w.cluster("a")[0]
	big := strings.Repeat("x", meta.MaxValue)
	for _, key := range []string{"1", "2", "3", "4", "5", "6"} {
		must(t, a.Put("big/"+key, []byte(big)))
	}
	must(t, a.Delete("big/6"))
	b := w.open(w.config("b"))
	w.join(b, a)
	if n := len(b.List("big/")); n != 5 {
		t.Fatalf("%d values", n)
	}
}
