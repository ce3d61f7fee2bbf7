// Package config holds the settings of marsd: defaults, overlaid by a TOML file, overlaid by the command line.
//
// The file is the one given with --config, else DIR/marsd.toml, else /etc/mars/marsd.toml; at most one is read. Its keys are those of the
// table in settings.go; the flags are the same words with dashes. Whatever is unknown, of the wrong type or out of range is fatal and
// named: a typing error in a setting must not be found out in a disaster.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"mars/internal/name"
)

// Places where a configuration is looked for.
const (
	FileName   = "marsd.toml"
	SystemFile = "/etc/mars/marsd.toml"
	EnvDir     = "MARS_DIR"
	DefaultDir = "/mars"
)

// maxFileBytes bounds the file: a hundred times what all settings need.
const maxFileBytes = 1 << 20

// DeviceMode says how a primary shows its devices.
type DeviceMode string

// Device modes. The NBD socket DIR/dev/NAME.sock is there in every mode.
const (
	DeviceAuto DeviceMode = "auto" // the best that the machine allows: ublk, nbd, loop, none
	DeviceUblk DeviceMode = "ublk" // a real block device through the kernel's ublk driver; outlives a restart of marsd
	DeviceNBD  DeviceMode = "nbd"  // a real block device through the kernel's nbd driver; outlives a restart of marsd
	DeviceLoop DeviceMode = "loop" // a real block device through a loop device; failing to make one is an error
	DeviceNone DeviceMode = "none" // only NBD
)

// Config is all settings of one marsd, complete and checked.
type Config struct {
	File string // where the settings came from; empty = no file

	Dir       string // absolute; everything that marsd stores
	Name      string // of this node, for ever
	Listen    string // HOST:PORT for peers
	Advertise string // HOST:PORT that peers shall use; empty = found out from Listen and the network

	Device DeviceMode
	DevDir string // absolute; where the device links go

	LogLimitBytes       int64 // of the log store; 0 = all the space but the reserve
	LogReserveBytes     int64 // stays free on the file system of Dir
	SegmentBytes        int64 // of one log file
	WritebackLimitBytes int64 // log not yet written back, from which on writers are slowed
	WriteCache          bool  // writes are answered before they are durable (flush and FUA excepted)

	NBDListen  string // HOST:PORT; empty = no NBD over TCP
	NBDTLSCert string // files in PEM
	NBDTLSKey  string
	NBDTLSCA   string

	LogLevel     slog.Level
	PrimaryWait  time.Duration // a restarted primary listens that long for its peers before it takes the role
	StallTimeout time.Duration // without space for log, writes wait that long before they fail
}

// env is what the defaults depend on.
type env struct {
	hostname   string
	root       bool
	marsDir    string // $MARS_DIR
	systemFile string
}

func realEnv() (env, error) {
	host, err := os.Hostname()
	if err != nil {
		return env{}, fmt.Errorf("find the host's name: %w", err)
	}
	return env{hostname: host, root: os.Geteuid() == 0, marsDir: os.Getenv(EnvDir), systemFile: SystemFile}, nil
}

// Source is where settings come from besides the defaults.
type Source struct {
	File string            // --config; empty = look in the usual places
	Set  map[string]string // key -> value from the command line
}

// Load puts the settings together.
func Load(src Source) (Config, error) {
	e, err := realEnv()
	if err != nil {
		return Config{}, err
	}
	return load(e, src)
}

func load(e env, src Source) (Config, error) {
	c := defaults(e)
	if err := setDir(&c, src.Set); err != nil {
		return Config{}, err
	}
	file, data, err := findFile(e, src, c.Dir)
	if err != nil {
		return Config{}, err
	}
	c.File = file
	searched := c.Dir
	if err := c.applyFile(data); err != nil {
		return Config{}, fmt.Errorf("%s: %w", file, err)
	}
	if err := c.applyFlags(src.Set); err != nil {
		return Config{}, err
	}
	if c.Dir != searched && file == filepath.Join(searched, FileName) {
		return Config{}, fmt.Errorf("%s: dir = %q leads away from the directory of this file: start with --dir, or use %s", file, c.Dir, SystemFile)
	}
	if err := c.complete(e); err != nil {
		return Config{}, err
	}
	return c, nil
}

func (c *Config) applyFlags(given map[string]string) error {
	for key := range given {
		if settingOf(key) == nil {
			return fmt.Errorf("unknown setting %q", key)
		}
	}
	for _, s := range settings {
		text, ok := given[s.key]
		if !ok {
			continue
		}
		if err := s.set(c, text); err != nil {
			return fmt.Errorf("--%s: %w", s.flag(), err)
		}
	}
	return nil
}

// setDir decides where DIR is as far as the search for the file depends on it.
func setDir(c *Config, set map[string]string) error {
	if dir, ok := set["dir"]; ok {
		if err := settingOf("dir").set(c, dir); err != nil {
			return fmt.Errorf("--dir: %w", err)
		}
	}
	return nil
}

func defaults(e env) Config {
	dir := DefaultDir
	if e.marsDir != "" {
		dir = e.marsDir
	}
	short, _, _ := strings.Cut(e.hostname, ".")
	return Config{
		Dir:                 absolute(dir),
		Name:                short,
		Listen:              "0.0.0.0:7777",
		Device:              DeviceAuto,
		LogReserveBytes:     256 << 20,
		SegmentBytes:        64 << 20,
		WritebackLimitBytes: 4 << 30,
		WriteCache:          true,
		LogLevel:            slog.LevelInfo,
		PrimaryWait:         5 * time.Second,
		StallTimeout:        10 * time.Second,
	}
}

// findFile reads the file that applies. A file that was asked for must be there; the others may be missing, but not unreadable.
func findFile(e env, src Source, dir string) (file string, data []byte, err error) {
	if src.File != "" {
		data, err = readFile(src.File)
		return src.File, data, err
	}
	for _, file := range []string{filepath.Join(dir, FileName), e.systemFile} {
		data, err := readFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return file, data, err
	}
	return "", nil, nil
}

func readFile(file string) ([]byte, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxFileBytes {
		return nil, fmt.Errorf("read configuration: %s is not a regular file of at most %d bytes", file, maxFileBytes)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return data, nil
}

// complete fills in the defaults that depend on other settings and checks what concerns several of them.
func (c *Config) complete(e env) error {
	if err := name.CheckNode(c.Name); err != nil {
		return fmt.Errorf("%w: set another with --name or name = \"...\"", err)
	}
	if c.DevDir == "" {
		c.DevDir = filepath.Join(c.Dir, "dev")
		if e.root {
			c.DevDir = "/dev/mars"
		}
	}
	if c.LogLimitBytes != 0 && c.LogLimitBytes < minSegments*c.SegmentBytes {
		return fmt.Errorf("log_limit has room for fewer than %d segments of segment_size: raise the one or lower the other", minSegments)
	}
	return c.checkNBD()
}

// minSegments is what a log needs to turn over: one that is written, one that is shipped, one that is deleted, one to spare.
const minSegments = 4

// checkNBD keeps strangers out: beyond this machine NBD is served only to clients with a certificate.
func (c *Config) checkNBD() error {
	given := 0
	for _, file := range []string{c.NBDTLSCert, c.NBDTLSKey, c.NBDTLSCA} {
		if file != "" {
			given++
		}
	}
	switch {
	case given != 0 && given != 3:
		return errors.New("nbd_tls_cert, nbd_tls_key and nbd_tls_ca belong together: set all three or none")
	case given != 0 && c.NBDListen == "":
		return errors.New("nbd_tls_* is set, but nbd_listen is not: nothing would use it")
	case given == 0 && c.NBDListen != "" && !isLoopback(c.NBDListen):
		return fmt.Errorf("nbd_listen = %q offers the devices to the network: set nbd_tls_cert, nbd_tls_key and nbd_tls_ca, or listen on 127.0.0.1", c.NBDListen)
	}
	return nil
}

// absolute makes a path independent of the working directory, which a daemon changes. Without a working directory the path stays as it is
// and fails where it is used.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}
