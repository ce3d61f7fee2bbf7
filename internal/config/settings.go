package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"mars/internal/bytesize"
	"mars/internal/name"
)

// setting is one line of the table from which keys, flags, checks and help come, so that they cannot differ.
type setting struct {
	key  string
	help string // for --help and the commented example; says what the value is
	set  func(c *Config, text string) error
	show func(c Config) string // the present value, as set would read it
	ints bool                  // the file may hold a bare integer
	path bool                  // the file must hold an absolute path: a daemon's working directory is nobody's business
}

func (s setting) flag() string { return strings.ReplaceAll(s.key, "_", "-") }

var settings = []setting{
	pathSetting("dir", "`DIR` that holds everything: identity, metadata, logs, sockets", func(c *Config) *string { return &c.Dir }),
	stringSetting("name", "`NODE` name of this node, never to be changed (default: the short host name)", func(c *Config) *string { return &c.Name }, name.CheckNode),
	stringSetting("listen", "`HOST:PORT` for connections of the peers", func(c *Config) *string { return &c.Listen }, checkListen),
	stringSetting("advertise", "`HOST:PORT` at which the peers find this node (default: found out)", func(c *Config) *string { return &c.Advertise }, optional(checkAdvertise)),
	{
		key: "device", help: "`MODE` in which a primary shows its devices: auto (the first that works), ublk or nbd (the kernel drivers), loop, none (NBD socket only)",
		set: func(c *Config, text string) error {
			return oneOf(text, &c.Device, DeviceAuto, DeviceUblk, DeviceNBD, DeviceLoop, DeviceNone)
		}, show: func(c Config) string { return string(c.Device) },
	},
	pathSetting("dev_dir", "`DIR` of the links to the devices (default: /dev/mars as root, else DIR/dev)", func(c *Config) *string { return &c.DevDir }),
	sizeSetting("log_limit", "`SIZE` of all logs together (0: all the free space but log_reserve)", func(c *Config) *int64 { return &c.LogLimitBytes }, sizes{0, 1 << 60}),
	sizeSetting("log_reserve", "`SIZE` that stays free on the file system of the logs", func(c *Config) *int64 { return &c.LogReserveBytes }, sizes{0, 1 << 60}),
	sizeSetting("segment_size", "`SIZE` of one log file", func(c *Config) *int64 { return &c.SegmentBytes }, sizes{1 << 20, 64 << 30}),
	sizeSetting("writeback_limit", "`SIZE` of log not yet written back to the disk, from which on writers are slowed", func(c *Config) *int64 { return &c.WritebackLimitBytes }, sizes{8 << 20, 1 << 40}),
	{
		key: "write_cache", help: "`on|off`; off: every write is durable when it is answered, not only after a flush",
		set: func(c *Config, text string) error { return setOnOff(text, &c.WriteCache) }, show: func(c Config) string { return onOff(c.WriteCache) },
	},
	stringSetting("nbd_listen", "`HOST:PORT` for NBD over TCP (default: off); beyond this machine only with TLS", func(c *Config) *string { return &c.NBDListen }, optional(checkListen)),
	pathSetting("nbd_tls_cert", "PEM `FILE` with the certificate of the NBD server", func(c *Config) *string { return &c.NBDTLSCert }),
	pathSetting("nbd_tls_key", "PEM `FILE` with its key", func(c *Config) *string { return &c.NBDTLSKey }),
	pathSetting("nbd_tls_ca", "PEM `FILE` with the authority that signs the clients' certificates", func(c *Config) *string { return &c.NBDTLSCA }),
	{
		key: "log_level", help: "`LEVEL` of marsd's own messages: debug, info, warn or error",
		set: func(c *Config, text string) error { return setLevel(text, &c.LogLevel) }, show: func(c Config) string { return strings.ToLower(c.LogLevel.String()) },
	},
	durationSetting("primary_wait", "`TIME` that a restarted primary listens for its peers before it takes the role", func(c *Config) *time.Duration { return &c.PrimaryWait }, durations{0, time.Hour}),
	durationSetting("stall_timeout", "`TIME` that writes wait for log space before they fail with ENOSPC", func(c *Config) *time.Duration { return &c.StallTimeout }, durations{0, 24 * time.Hour}),
}

func settingOf(key string) *setting {
	for i := range settings {
		if settings[i].key == key {
			return &settings[i]
		}
	}
	return nil
}

type (
	sizes     struct{ least, most int64 }
	durations struct{ least, most time.Duration }
)

func stringSetting(key, help string, at func(*Config) *string, check func(string) error) setting {
	set := func(c *Config, text string) error {
		if err := check(text); err != nil {
			return err
		}
		*at(c) = text
		return nil
	}
	return setting{key: key, help: help, set: set, show: func(c Config) string { return *at(&c) }}
}

func pathSetting(key, help string, at func(*Config) *string) setting {
	set := func(c *Config, text string) error {
		if text == "" || strings.ContainsRune(text, 0) {
			return fmt.Errorf("%q is not a path", text)
		}
		*at(c) = absolute(filepath.Clean(text))
		return nil
	}
	return setting{key: key, help: help, set: set, show: func(c Config) string { return *at(&c) }, path: true}
}

func sizeSetting(key, help string, at func(*Config) *int64, limit sizes) setting {
	set := func(c *Config, text string) error {
		n, err := bytesize.Parse(text)
		if err != nil {
			return err
		}
		if n < limit.least || n > limit.most {
			return fmt.Errorf("%s is out of range: %s to %s are allowed", text, bytesize.Exact(limit.least), bytesize.Exact(limit.most))
		}
		*at(c) = n
		return nil
	}
	return setting{key: key, help: help, set: set, show: func(c Config) string { return bytesize.Exact(*at(&c)) }, ints: true}
}

func durationSetting(key, help string, at func(*Config) *time.Duration, limit durations) setting {
	set := func(c *Config, text string) error {
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("%q is not a time with a unit (like 10s, 1m30s)", text)
		}
		if d < limit.least || d > limit.most {
			return fmt.Errorf("%s is out of range: %v to %v are allowed", text, limit.least, limit.most)
		}
		*at(c) = d
		return nil
	}
	return setting{key: key, help: help, set: set, show: func(c Config) string { return at(&c).String() }}
}

func optional(check func(string) error) func(string) error {
	return func(text string) error {
		if text == "" {
			return nil
		}
		return check(text)
	}
}

func oneOf[T ~string](text string, into *T, allowed ...T) error {
	for _, a := range allowed {
		if text == string(a) {
			*into = a
			return nil
		}
	}
	return fmt.Errorf("%q is not one of %v", text, allowed)
}

func setOnOff(text string, into *bool) error {
	if text != "on" && text != "off" {
		return fmt.Errorf("%q is not \"on\" or \"off\"", text)
	}
	*into = text == "on"
	return nil
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

func setLevel(text string, into *slog.Level) error {
	var word string
	if err := oneOf(text, &word, "debug", "info", "warn", "error"); err != nil {
		return err
	}
	return into.UnmarshalText([]byte(word))
}

// checkListen accepts port 0: tests let the kernel choose.
func checkListen(addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%q is not HOST:PORT (like 0.0.0.0:7777 or [::]:7777)", addr)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q: port %q is not a number from 0 to 65535", addr, port)
	}
	return nil
}

func checkAdvertise(addr string) error {
	if err := checkListen(addr); err != nil {
		return err
	}
	host, port, _ := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() || port == "0" {
		return errors.New("peers cannot connect to " + strconv.Quote(addr) + ": name a host and a port")
	}
	return nil
}

func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
