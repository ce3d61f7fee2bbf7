package config

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

// world is a machine with directories for a configuration.
type world struct {
	env
	t *testing.T
}

func newWorld(t *testing.T) world {
	dir := t.TempDir()
	w := world{t: t, env: env{hostname: "node-a.example.org", marsDir: filepath.Join(dir, "mars"), systemFile: filepath.Join(dir, "etc", FileName)}}
	for _, d := range []string{w.marsDir, filepath.Dir(w.systemFile)} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w world) write(file, text string) string {
	w.t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return file
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c, err := load(w.env, Source{})
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Dir: w.marsDir, Name: "node-a", Listen: "0.0.0.0:7777", Device: DeviceAuto, DevDir: filepath.Join(w.marsDir, "dev"),
		LogReserveBytes: 256 << 20, SegmentBytes: 64 << 20, WritebackLimitBytes: 4 << 30, WriteCache: true,
		LogLevel: slog.LevelInfo, PrimaryWait: 5 * time.Second, StallTimeout: 10 * time.Second,
	}
	if c != want {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
	w.root = true
	if c, err := load(w.env, Source{}); err != nil || c.DevDir != "/dev/mars" {
		t.Errorf("as root: %q, %v", c.DevDir, err)
	}
}

func TestFlagsWinOverFileWinsOverDefaults(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	file := w.write(filepath.Join(w.marsDir, FileName), `
name = "from-file"
listen = "[::]:7800"
log_limit = "64GiB"
segment_size = 33554432
write_cache = "off"
log_level = "debug"
`)
	w.write(w.systemFile, `name = "from-etc"`)
	c, err := load(w.env, Source{Set: map[string]string{"listen": "127.0.0.1:0", "write_cache": "on"}})
	if err != nil {
		t.Fatal(err)
	}
	if c.File != file || c.Name != "from-file" || c.Listen != "127.0.0.1:0" || c.LogLimitBytes != 64<<30 || c.SegmentBytes != 32<<20 || !c.WriteCache ||
		c.LogLevel != slog.LevelDebug {
		t.Errorf("got %+v", c)
	}
}

func TestWhichFileIsRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write(w.systemFile, "name = \"etc\"\ndir = \"/srv/mars\"")
	other := w.write(filepath.Join(w.marsDir, "other.toml"), `name = "other"`)
	dir := t.TempDir()
	w.write(filepath.Join(dir, FileName), `name = "dir"`)
	for _, tc := range []struct {
		src       Source
		name, dir string
	}{
		{Source{}, "etc", "/srv/mars"},
		{Source{File: other}, "other", w.marsDir},
		{Source{Set: map[string]string{"dir": dir}}, "dir", dir},
		{Source{File: other, Set: map[string]string{"dir": dir}}, "other", dir},
	} {
		c, err := load(w.env, tc.src)
		if err != nil || c.Name != tc.name || c.Dir != tc.dir {
			t.Errorf("%+v: name %q, dir %q, %v; want %q, %q", tc.src, c.Name, c.Dir, err, tc.name, tc.dir)
		}
	}
	if _, err := load(w.env, Source{File: filepath.Join(dir, "missing.toml")}); err == nil || !strings.Contains(err.Error(), "missing.toml") {
		t.Errorf("a missing --config: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"frobnicate = 1":                       `line 1: unknown key "frobnicate"`,
		"name = \"a\"\n\nwrite-cache = \"on\"": `line 3: unknown key "write-cache" (meant: write_cache?)`,
		"name = \"a\"\n[network]\nport = 1":    `line 2: unknown key "network"`,
		"b = 1\na = 2":                         `line 1: unknown key "b"; line 2: unknown key "a"`,
		"log_limit = \"10GB\"":                 "write GiB",
		"log_limit = \"100MiB\"":               "fewer than 4 segments",
		"log_limit = 1.5":                      "the value is 1.5: it must be a size",
		"\nlog_limit = true":                   "line 2: log_limit: the value is true",
		"segment_size = \"1K\"":                "1MiB to 64GiB are allowed",
		"writeback_limit = -1":                 "writeback_limit",
		"primary_wait = 5":                     "must be a string",
		"primary_wait = \"5\"":                 "not a time with a unit",
		"primary_wait = \"-5s\"":               "0s to 1h0m0s are allowed",
		"write_cache = true":                   "must be a string",
		"write_cache = \"yes\"":                `"on" or "off"`,
		"device = \"tape\"":                    "[auto ublk nbd loop none]",
		"log_level = \"loud\"":                 "[debug info warn error]",
		"listen = \"7777\"":                    "HOST:PORT",
		"listen = \"[::]:http\"":               "from 0 to 65535",
		"listen = [\"a:1\"]":                   "a list",
		"advertise = \"0.0.0.0:7777\"":         "cannot connect",
		"advertise = \":7777\"":                "cannot connect",
		"name = \"../x\"":                      "starts with",
		"dir = \"elsewhere\"":                  "not an absolute path",
		"dir = \"/elsewhere\"":                 "leads away",
		"nbd_listen = \"0.0.0.0:10809\"":       "offers the devices to the network",
		"nbd_tls_cert = \"/c\"":                "belong together",
		"nbd_tls_cert = \"/c\"\nnbd_tls_key = \"/k\"\nnbd_tls_ca = \"/a\"": "nbd_listen is not",
		"name = \"a\"\nname = \"b\"":                                       "line 2",
		"name = \"a":                                                       "line 1",
		"name = \x00":                                                      "line 1",
	} {
		w := newWorld(t)
		file := w.write(filepath.Join(w.marsDir, FileName), text)
		_, err := load(w.env, Source{})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: error %v, want one line with %q", text, err, want)
		} else if strings.Contains(want, "line ") && !strings.HasPrefix(err.Error(), file) {
			t.Errorf("%q: %v does not start with the file's name", text, err)
		}
	}
}

func TestNBDOverTCP(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, text := range []string{
		`nbd_listen = "127.0.0.1:10809"`,
		`nbd_listen = "[::1]:10809"`,
		"nbd_listen = \"0.0.0.0:10809\"\nnbd_tls_cert = \"/c\"\nnbd_tls_key = \"/k\"\nnbd_tls_ca = \"/a\"",
	} {
		w.write(filepath.Join(w.marsDir, FileName), text)
		if _, err := load(w.env, Source{}); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestFileMustBeAnOrdinaryFile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if err := os.Mkdir(filepath.Join(w.marsDir, FileName), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := load(w.env, Source{}); err == nil || !strings.Contains(err.Error(), "regular file") {
		t.Errorf("a directory: %v", err)
	}
	if _, err := load(w.env, Source{File: "/dev/zero"}); err == nil || !strings.Contains(err.Error(), "regular file") {
		t.Errorf("/dev/zero: %v", err)
	}
}

func TestHostNameThatCannotBeANodeName(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.hostname = "-bad-"
	if _, err := load(w.env, Source{}); err == nil || !strings.Contains(err.Error(), "--name") {
		t.Errorf("error %v, want one that says how to choose another", err)
	}
	if _, err := load(w.env, Source{Set: map[string]string{"name": "good"}}); err != nil {
		t.Error(err)
	}
}

func TestFlags(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(EnvDir, dir)
	set := pflag.NewFlagSet("marsd", pflag.ContinueOnError)
	flags := AddFlags(set)
	if err := set.Parse([]string{"--name", "n1", "--log-limit", "1GiB", "--device=none", "--listen", "127.0.0.1:0"}); err != nil {
		t.Fatal(err)
	}
	c, err := flags.Load()
	if err != nil || c.Dir != dir || c.Name != "n1" || c.LogLimitBytes != 1<<30 || c.Device != DeviceNone {
		t.Errorf("got %+v, %v", c, err)
	}
	for _, bad := range []string{"--device=tape", "--log-limit=10GB", "--name=a/b", "--frobnicate", "--primary-wait=5"} {
		set := pflag.NewFlagSet("marsd", pflag.ContinueOnError)
		set.SetOutput(new(strings.Builder))
		AddFlags(set)
		if err := set.Parse([]string{bad}); err == nil {
			t.Errorf("%s accepted", bad)
		}
	}
}

// TestExampleIsComplete: uncommented, the example is a valid file that changes nothing.
func TestExampleIsComplete(t *testing.T) {
	var b strings.Builder
	for line := range strings.Lines(Example()) {
		if strings.Contains(line, " = ") && !strings.HasSuffix(line, "= \"\"\n") {
			b.WriteString(strings.TrimPrefix(line, "# "))
		}
	}
	e, err := realEnv()
	if err != nil {
		t.Fatal(err)
	}
	e.systemFile = "/nonexistent"
	c := defaults(e)
	if err := c.applyFile([]byte(b.String())); err != nil {
		t.Fatalf("%v in\n%s", err, b.String())
	}
	if c != defaults(e) {
		t.Errorf("got %+v\nwant %+v", c, defaults(e))
	}
	for _, s := range settings {
		if !strings.Contains(Example(), "\n# "+s.key+" = ") {
			t.Errorf("%s is missing", s.key)
		}
	}
}

func FuzzFile(f *testing.F) {
	for _, s := range []string{Example(), "name = \"a\"", "log_limit = 17", "[x]\ny=1", "a.b.c = 1", "x = [", "\"na me\" = 1", "name = '''\nx\n'''", "= 1"} {
		f.Add([]byte(s))
	}
	e := env{hostname: "fuzz", marsDir: "/mars", systemFile: "/nonexistent"}
	f.Fuzz(func(t *testing.T, data []byte) {
		c := defaults(e)
		if err := c.applyFile(data); err != nil {
			if strings.Contains(err.Error(), "\n") || len(err.Error()) > 4096 {
				t.Fatalf("error is not one short line: %q", err)
			}
			return
		}
		for _, s := range settings { // what was read is valid, and can be written and read again
			text := s.show(c)
			if text == "" {
				continue
			}
			again := c
			if err := s.set(&again, text); err != nil || again != c {
				t.Fatalf("%s = %q: %v", s.key, text, err)
			}
		}
	})
}
