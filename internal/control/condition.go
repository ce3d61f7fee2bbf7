package control

import "strings"

// Conditions that wait-resource waits for, about the local member unless said otherwise.
const (
	CondUpToDate      = "uptodate"       // the disk state is UpToDate (at the primary also WriteBack)
	CondConsistent    = "consistent"     // the member claims Consistent
	CondPrimary       = "primary"        // this node is the actual primary
	CondSecondary     = "secondary"      // this node has no active device and is not about to get one
	CondDeviceOn      = "device-on"      // the device is shown
	CondDeviceOff     = "device-off"     // the device is gone
	CondAttachOn      = "attach-on"      // the disk is open
	CondAttachOff     = "attach-off"     // the disk is closed
	CondFetchOn       = "fetch-on"       // fetch runs, or would if there were something to fetch
	CondFetchOff      = "fetch-off"      // fetch has stopped
	CondFetchReached  = "fetch-reached"  // all log of the primary that is known here is here and durable
	CondReplayOn      = "replay-on"      // replay runs, or would if there were something to replay
	CondReplayOff     = "replay-off"     // replay has stopped
	CondReplayReached = "replay-reached" // all log of the primary that is known here is on the disk and flushed
	CondSyncOn        = "sync-on"        // a sync runs
	CondSyncOff       = "sync-off"       // no sync runs and none is needed
)

var conditions = []string{
	CondUpToDate, CondConsistent, CondPrimary, CondSecondary, CondDeviceOn, CondDeviceOff, CondAttachOn, CondAttachOff,
	CondFetchOn, CondFetchOff, CondFetchReached, CondReplayOn, CondReplayOff, CondReplayReached, CondSyncOn, CondSyncOff,
}

// Conditions returns all conditions.
func Conditions() []string { return append([]string(nil), conditions...) }

// ParseCondition returns the condition that s means. Also accepted are the original's spellings: an "is-" in front, a bare "device", "attach",
// "fetch", "replay" or "sync" for "...-on", and "primary-on", "primary-off".
func ParseCondition(s string) (string, error) {
	c := strings.TrimPrefix(strings.ToLower(s), "is-")
	switch c {
	case "device", "attach", "fetch", "replay", "sync":
		c += "-on"
	case "primary-on", "secondary-off":
		c = CondPrimary
	case "primary-off", "secondary-on":
		c = CondSecondary
	}
	return c, checkCondition(c)
}
