package ublk

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestRecords(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ublk")
	if got, err := records(dir); len(got) != 0 || err != nil {
		t.Errorf("%v, %v in a directory that is not there", got, err)
	}
	want := []record{
		{Cookie: 1<<63 + 1, Resource: "ab", Tenure: "8000000000000003", Link: "/dev/mars/v"}, // more than a float holds
		{Cookie: 7, Resource: "cd", Tenure: "1", Link: "/dev/mars/w"},
	}
	for _, r := range want {
		if err := r.save(dir); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"not one of ours.json", "ef.json.new"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := records(dir); err != nil || !slices.Equal(got, want) {
		t.Errorf("records: %v, %v", got, err)
	}
	for range 2 {
		if err := want[0].remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range []string{"", `{"cookie":12`, `{"resource":"cd"}`, `{"cookie":1,"resource":"ab"}`} {
		if err := os.WriteFile(want[1].file(dir), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := records(dir); len(got) != 0 || err == nil {
			t.Errorf("%q gives %v, %v", bad, got, err)
		}
	}
}

func TestConfigCheck(t *testing.T) {
	good := Config{Resource: "ab", Dev: &memDev{}, Dir: "/d", Link: "/dev/mars/v", Tenure: "1", Continues: func(string) bool { return true }}
	if err := good.check(); err != nil || good.BlockSize != 512 || good.Log == nil {
		t.Errorf("%+v: %v", good, err)
	}
	for name, spoil := range map[string]func(*Config){
		"no id":                func(c *Config) { c.Resource = "" },
		"an id that is a path": func(c *Config) { c.Resource = "../ab" },
		"no device":            func(c *Config) { c.Dev = nil },
		"no directory":         func(c *Config) { c.Dir = "" },
		"no tenure":            func(c *Config) { c.Tenure = "" },
		"relative link":        func(c *Config) { c.Link = "v" },
		"odd block size":       func(c *Config) { c.BlockSize = 520 },
		"small block size":     func(c *Config) { c.BlockSize = 256 },
		"large block size":     func(c *Config) { c.BlockSize = 8192 },
	} {
		c := good
		spoil(&c)
		if c.check() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Whose users may go on: table of all that is looked at before the driver is asked.
func TestMayResume(t *testing.T) {
	f := &FrontEnd{cfg: Config{Dev: &memDev{data: make([]byte, 8192)}, BlockSize: 512, Continues: func(tenure string) bool { return tenure == "2" || tenure == "3" }}}
	fits := info{queues: 1, depth: depth, maxRequest: maxRequest, state: stateQuiesced, features: features | featUpdateSize}
	shape := geometry{size: 8192, blockSize: 512}
	for name, x := range map[string]struct {
		tenure string
		i      func(*info)
		g      func(*geometry)
		want   bool
	}{
		"the last tenure":            {tenure: "3", want: true},
		"one before":                 {tenure: "2", want: true},
		"somebody wrote in between":  {tenure: "1"},
		"the volume has grown":       {tenure: "3", g: func(g *geometry) { g.size = 4096 }, want: true},
		"the volume is smaller":      {tenure: "3", g: func(g *geometry) { g.size = 16384 }},
		"another block size":         {tenure: "3", g: func(g *geometry) { g.blockSize = 4096 }},
		"never started":              {tenure: "3", i: func(i *info) { i.state = stateDead }},
		"another number of requests": {tenure: "3", i: func(i *info) { i.depth = 64 }},
		"without recovery":           {tenure: "3", i: func(i *info) { i.features &^= featReissue }},
	} {
		i, g := fits, shape
		if x.i != nil {
			x.i(&i)
		}
		if x.g != nil {
			x.g(&g)
		}
		if err := f.mayResume(&Paused{rec: record{Tenure: x.tenure}, info: i}, g); (err == nil) != x.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}
