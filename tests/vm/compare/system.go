package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"mars/internal/control"
	"mars/tests/vm/lab"
)

// system is what is compared: something that replicates /dev/lab/disk of n1 to that of n2, and has /dev/lab/store beside it.
type system interface {
	// name is how the picture calls it.
	name() string
	// files are what it needs in /host.
	files(ctx context.Context, dir string) (map[string]string, error)
	// setUp leaves n1 as the primary and n2 in sync.
	setUp(ctx context.Context, n1, n2 *lab.Machine) error
	// device is what the application writes to.
	device() string
	// state is a script that prints one line about the secondary, where it runs; condition says what that means.
	state() string
	condition(line string) Condition
	// handover are the scripts that make n2 the primary, the first at n1 and then the second at n2.
	handover() (atN1, atN2 string)
}

func systemOf(name, front string) (system, error) {
	switch name {
	case "mars":
		return mars{front}, nil
	case "drbd-c":
		return drbd{"DRBD 8.4, protocol C", "protocol C;"}, nil
	case "drbd-a":
		return drbd{"DRBD 8.4, protocol A", "protocol A;"}, nil
	case "drbd-pull-ahead":
		return drbd{"DRBD 8.4, protocol A with pull-ahead", "protocol A; on-congestion pull-ahead; congestion-fill 1M; congestion-extents 500; sndbuf-size 4M;"}, nil
	}
	return nil, fmt.Errorf("there is no system %q; there are mars, drbd-c, drbd-a and drbd-pull-ahead", name)
}

// mars has its log on the second disk.
type mars struct{ front string }

func (s mars) name() string { return "MARS" }

func (s mars) device() string { return "/dev/mars/data" }

func (s mars) files(ctx context.Context, dir string) (map[string]string, error) {
	files := map[string]string{}
	for _, pkg := range []string{"mars/cmd/marsd", "mars/cmd/marsadm"} {
		file, err := lab.Build(ctx, dir, pkg)
		if err != nil {
			return nil, err
		}
		files["bin/"+filepath.Base(pkg)] = file
	}
	return files, nil
}

const marsUp = `modprobe -aq loop nbd ublk_drv
mkfs.ext4 -q /dev/lab/store; mkdir -p /mars; mount /dev/lab/store /mars
nohup setsid marsd --listen n$NODE:7777 --device %s </dev/null >/marsd.log 2>&1 &
until marsadm view >/dev/null 2>&1; do sleep 0.1; done
`

func (s mars) setUp(ctx context.Context, n1, n2 *lab.Machine) error {
	up := fmt.Sprintf(marsUp, s.front)
	if err := try(ctx, n1, up+"marsadm create-cluster; marsadm create-resource data /dev/lab/disk; marsadm wait-resource data primary"); err != nil {
		return err
	}
	token, err := n1.Run(ctx, "marsadm join-token")
	if err != nil {
		return err
	}
	return try(ctx, n2, up+"marsadm join-cluster n1:7777 --token "+strings.TrimSpace(token)+`
until [ "$(marsadm view)" ]; do sleep 0.1; done
marsadm join-resource data /dev/lab/disk; marsadm wait-resource data uptodate`)
}

func (s mars) state() string { return `marsadm view --json --timeout 5s | tr -d "\n"` }

func (s mars) condition(line string) Condition {
	var st control.Status
	if json.Unmarshal([]byte(line), &st) != nil || len(st.Resources) == 0 || len(st.Resources[0].Members) == 0 {
		return Inconsistent // it does not say that it is not
	}
	switch m := st.Resources[0].Members[0]; { // the local one is first
	case !m.Consistent:
		return Inconsistent
	case m.DiskState == control.DiskUpToDate && m.ReplState == control.ReplReplaying:
		return Follows
	}
	return Behind
}

func (s mars) handover() (string, string) { return ":", "marsadm primary data" }

// drbd has its metadata on the second disk.
type drbd struct{ title, net string }

func (s drbd) name() string { return s.title }

func (s drbd) device() string { return "/dev/drbd0" }

func (s drbd) files(context.Context, string) (map[string]string, error) { return nil, nil }

const drbdConf = `global { usage-count no; }
resource r0 {
	net { %s }
	device /dev/drbd0; disk /dev/lab/disk; meta-disk /dev/lab/store;
	on n1 { address 10.77.0.1:7789; }
	on n2 { address 10.77.0.2:7789; }
}`

func (s drbd) setUp(ctx context.Context, n1, n2 *lab.Machine) error {
	up := "modprobe drbd; cat >/etc/drbd.conf <<'E'\n" + fmt.Sprintf(drbdConf, s.net) + "\nE\ndrbdadm create-md --force r0 </dev/null >/dev/null 2>&1; drbdadm up r0\n"
	for _, m := range []*lab.Machine{n1, n2} {
		if err := try(ctx, m, up); err != nil {
			return err
		}
	}
	// Both disks are empty, so there is nothing to copy.
	return try(ctx, n1, `until grep -q cs:Connected /proc/drbd; do sleep 0.1; done
drbdadm -- --clear-bitmap new-current-uuid r0; drbdadm primary r0
until grep -q ds:UpToDate/UpToDate /proc/drbd; do sleep 0.1; done`)
}

func (s drbd) state() string { return `tr "\n" " " </proc/drbd | sed "s/.* 0: //"` }

func (s drbd) condition(line string) Condition {
	switch {
	case strings.Contains(line, "ds:UpToDate/UpToDate") && strings.HasPrefix(line, "cs:Connected"):
		return Follows
	case strings.Contains(line, "ds:UpToDate/"), strings.Contains(line, "ds:Outdated/"), strings.Contains(line, "ds:Consistent/"):
		return Behind
	}
	return Inconsistent
}

func (s drbd) handover() (string, string) { return "drbdadm secondary r0", "drbdadm primary r0" }

func try(ctx context.Context, m *lab.Machine, script string) error {
	_, err := m.Run(ctx, "set -euo pipefail\n"+script)
	return err
}
