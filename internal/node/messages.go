package node

import (
	"fmt"
	"strings"
	"time"

	"mars/internal/bytesize"
	"mars/internal/control"
	"mars/internal/resource"
)

// withNames replaces node ids by their labels.
func (n *Node) withNames(text string, in resource.Input) string {
	if text == "" {
		return ""
	}
	ids := []string{in.Self, in.Local.Path.Holder()}
	for _, p := range in.Peers {
		ids = append(ids, p.Node)
	}
	for _, id := range ids {
		if id != "" {
			text = strings.ReplaceAll(text, id, n.nodeName(id))
		}
	}
	return text
}

// splitAdvice says what ends a split brain, depending on the side on which it is read. One that still writes cannot be given up yet.
func splitAdvice(in *resource.Input, with string) string {
	keep := "to keep this side instead, `marsadm secondary` and then `marsadm invalidate` on node " + with
	switch mine := in.Designated == in.Self; {
	case in.Local.Writable && mine:
		return "this side is kept by `marsadm invalidate` on node " + with
	case in.Local.Writable:
		return "this node is not wanted as primary any more and stops writing as soon as its device is closed; then `marsadm invalidate` here gives this side up; " + keep
	case mine:
		return "`marsadm invalidate` on the side that shall be lost; here that needs another primary first"
	}
	return "`marsadm invalidate` here gives this side up; " + keep
}

// messages lists the conditions of a replica that an operator should know.
func (n *Node) messages(in resource.Input, plan resource.Plan, v resource.View, now time.Time) []control.Message {
	l := &in.Local
	var out []control.Message
	add := func(level, key, format string, args ...any) {
		out = append(out, control.Message{Level: level, Key: key, Text: n.withNames(fmt.Sprintf(format, args...), in), Since: now})
	}
	if l.OpenErr != "" {
		add(control.LevelErr, "attach", "%s", l.OpenErr)
	}
	if l.Paused {
		add(control.LevelWarn, "device", "the device that marsd showed when it ended waits to be continued, and so do its users: %s", strings.Join(l.Users, ", "))
	}
	if s := plan.Split; s != nil {
		add(control.LevelErr, "split-brain", "%s; %s", v.Split, splitAdvice(&in, s.With))
	}
	if l.Defect != nil {
		add(control.LevelErr, "defective-log", "%v; nothing behind it was or will be applied", l.Defect)
	}
	if l.ApplyErr != nil && l.Defect == nil {
		add(control.LevelErr, "disk", "%v", l.ApplyErr)
	}
	if l.LogErr != nil {
		add(control.LevelErr, "log", "%v; detach and attach to open it again", l.LogErr)
	}
	if l.LogFull {
		add(control.LevelErr, "log-space", "the log store is full: writes fail with ENOSPC until there is space")
	}
	if l.Orphan {
		add(control.LevelErr, "orphan", "the log that is needed next no longer exists anywhere; `marsadm invalidate` fills the replica anew")
	}
	if l.FetchErr != "" && !l.Orphan {
		add(control.LevelWarn, "fetch", "%s", l.FetchErr)
	}
	if l.SyncErr != "" {
		add(control.LevelWarn, "sync", "%s", l.SyncErr)
	}
	if l.DiskSize > 0 && l.Size > l.DiskSize {
		add(control.LevelErr, "disk-size", "the disk has %s but the volume %s; enlarge the disk", bytesize.Format(l.DiskSize), bytesize.Format(l.Size))
	}
	return out
}
