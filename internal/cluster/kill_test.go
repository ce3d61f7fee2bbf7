package cluster

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const victimEnv = "MARS_CLUSTER_TEST_VICTIM"

// TestMain becomes the victim of TestKill when told so.
func TestMain(m *testing.M) {
	if dir := os.Getenv(victimEnv); dir != "" {
		fmt.Println("victim ended:", victim(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// victim makes or continues a cluster in dir and puts values, telling each one that is acknowledged, until it is killed.
func victim(dir string) error {
	c, err := Open(Config{Dir: dir, NodeName: "victim", Listen: "127.0.0.1:0"})
	if err != nil {
		return err
	}
	if c.ID() == "" {
		if err := c.Create(context.Background()); err != nil {
			return err
		}
	}
	fmt.Println("id", c.Self().ID)
	run := time.Now().UnixNano()
	for i := 0; ; i++ {
		key := fmt.Sprintf("acked/%d/%d", run, i)
		if err := c.PutVolatile("basis/"+key, []byte("x")); err != nil {
			return err
		}
		if err := c.Put(key, []byte("x")); err != nil {
			return err
		}
		fmt.Println("acked", key)
	}
}

// What was acknowledged before a kill -9 is there afterwards, and what it was based on, too; and the node is the same one.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	var acked []string
	ids := map[string]bool{}
	for round := range 3 {
		keys, id := killAfter(t, dir, 20+10*round)
		acked = append(acked, keys...)
		ids[id] = true
	}
	c := newWorld(t).open(Config{Dir: dir, NodeName: "victim", Listen: "127.0.0.1:0"})
	if !ids[c.Self().ID] || len(ids) != 1 {
		t.Fatalf("ids %v, now %s", ids, c.Self().ID)
	}
	for _, key := range acked {
		for _, k := range []string{key, "basis/" + key} {
			if _, _, ok := c.Get(k); !ok {
				t.Errorf("%s is lost", k)
			}
		}
	}
}

// killAfter runs a victim and kills it after some acknowledgements.
func killAfter(t *testing.T, dir string, acks int) (keys []string, id string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), victimEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		what, value, _ := strings.Cut(lines.Text(), " ")
		switch what {
		case "id":
			id = value
		case "acked":
			keys = append(keys, value)
		default:
			t.Fatal(lines.Text())
		}
		if len(keys) == acks {
			must(t, cmd.Process.Kill())
		}
	}
	_ = cmd.Wait() // says that it was killed
	if len(keys) < acks {
		t.Fatalf("only %d acknowledgements", len(keys))
	}
	return keys, id
}
