// Package control is the contract between marsadm and its local daemon: commands and status as JSON over HTTP on the Unix socket
// DIR/marsd.sock, with the server that checks who is calling and the client that marsadm uses.
//
// The status structure is stable: fields are added, never renamed or given another meaning. Sizes are bytes, times RFC 3339, durations
// seconds, rates bytes per second. LSNs are byte positions in the resource's log.
package control

import (
	"context"
	"time"
)

// Command is one administrative command. Which fields a verb reads is documented in marsadm's help; a field it does not read must be empty.
type Command struct {
	Verb      string        `json:"verb"` // "create-resource", "primary", ... as typed at marsadm
	Resource  string        `json:"resource,omitempty"`
	Disk      string        `json:"disk,omitempty"`
	Size      int64         `json:"size,omitempty"`
	Host      string        `json:"host,omitempty"` // another node on whose behalf the command acts (leave-resource, leave-cluster --host)
	Force     bool          `json:"force,omitempty"`
	Peer      string        `json:"peer,omitempty"`      // HOST:PORT for join-cluster
	Token     string        `json:"token,omitempty"`     // for join-cluster
	TTL       time.Duration `json:"ttl,omitempty"`       // for join-token
	Condition string        `json:"condition,omitempty"` // for wait-resource
}

// Result is what a successful command says.
type Result struct {
	Message string `json:"message,omitempty"` // one or more lines for a human
	Token   string `json:"token,omitempty"`   // join-token
}

// Backend is implemented by the daemon. Do returns when the command is done or refused, or when ctx ends; the error text is one line: what,
// where, what to do. A command that waits names in its error what it was waiting for when ctx ended.
type Backend interface {
	Do(ctx context.Context, c Command) (Result, error)
	Status(ctx context.Context) (Status, error)
}

// Status is everything the local daemon knows.
type Status struct {
	Version   string     `json:"version"`
	Time      time.Time  `json:"time"`
	Node      string     `json:"node"`
	Cluster   string     `json:"cluster,omitempty"` // cluster id; empty while in no cluster
	Nodes     []Node     `json:"nodes"`
	Resources []Resource `json:"resources"`
	LogStore  LogStore   `json:"log_store"`
	Messages  []Message  `json:"messages,omitempty"`
}

// LogStore is the room for transaction logs on this node.
type LogStore struct {
	Dir        string `json:"dir"`
	UsedBytes  int64  `json:"used_bytes"`
	LimitBytes int64  `json:"limit_bytes,omitempty"` // configured; 0 = none
	FreeBytes  int64  `json:"free_bytes"`
}

// Node is one cluster member as seen from here.
type Node struct {
	Name               string  `json:"name"`
	ID                 string  `json:"id"`
	Addr               string  `json:"addr"`
	Self               bool    `json:"self,omitempty"`
	Alive              bool    `json:"alive"`
	LastContactSeconds float64 `json:"last_contact_seconds"` // -1 = never since this daemon started
}

// Resource is one replicated device.
type Resource struct {
	Name              string   `json:"name"`
	ID                string   `json:"id"`
	SizeBytes         int64    `json:"size_bytes"`
	DesignatedPrimary string   `json:"designated_primary,omitempty"` // node name; empty = (none)
	ActualPrimary     []string `json:"actual_primary,omitempty"`     // more than one: every one of them has an active device
	SplitBrain        string   `json:"split_brain,omitempty"`        // who against whom, from where, how many bytes; empty = none
	Members           []Member `json:"members"`                      // the local node first, then by name
}

// Disk states, most severe first.
const (
	DiskNone         = "NotJoined"
	DiskError        = "DiskError"
	DiskDetached     = "Detached"
	DiskDefectiveLog = "DefectiveLog"
	DiskOrphan       = "Orphan"
	DiskInconsistent = "InConsistent"
	DiskRecovery     = "Recovery"
	DiskOutdated     = "OutDated" // with flags: OutDated[FR], F fetch behind, R replay behind
	DiskWriteBack    = "WriteBack"
	DiskUpToDate     = "UpToDate"
)

// Replication states.
const (
	ReplUnresponsive   = "UnResponsive"
	ReplNotStarted     = "NotStarted"
	ReplReplicating    = "Replicating" // at the primary
	ReplNotYetPrimary  = "NotYetPrimary"
	ReplSplitBrain     = "SplitBrain"
	ReplPausedSync     = "PausedSync"
	ReplSyncing        = "Syncing"
	ReplPausedFetch    = "PausedFetch"
	ReplPausedReplay   = "PausedReplay"
	ReplNoPrimary      = "NoPrimaryDesignated"
	ReplPrimaryUnreach = "PrimaryUnreachable"
	ReplReplaying      = "Replaying"
)

// Roles.
const (
	RoleSecondary      = "Secondary"
	RolePrimary        = "Primary"
	RoleNotYetPrimary  = "NotYetPrimary"
	RoleRemainsPrimary = "RemainsPrimary"
)

// Switches are what the operator wants to run on a member.
type Switches struct {
	Attach bool `json:"attach"`
	Fetch  bool `json:"fetch"`
	Replay bool `json:"replay"`
	Sync   bool `json:"sync"`
}

// Member is one replica of a resource. Facts about remote members are as old as the last contact says.
type Member struct {
	Node               string     `json:"node"`
	Self               bool       `json:"self,omitempty"`
	Alive              bool       `json:"alive"`
	LastContactSeconds float64    `json:"last_contact_seconds"`
	Disk               string     `json:"disk"` // path on that node
	DiskState          string     `json:"disk_state"`
	ReplState          string     `json:"repl_state"`
	Role               string     `json:"role"`
	Consistent         bool       `json:"consistent"`
	Switches           Switches   `json:"switches"`
	Device             string     `json:"device,omitempty"` // path of the device while it is shown
	Users              []string   `json:"users,omitempty"`  // who has the device open
	Timeline           string     `json:"timeline,omitempty"`
	EndLSN             int64      `json:"end_lsn"`     // end of the local log
	DurableLSN         int64      `json:"durable_lsn"` // all up to here is on stable storage there
	AppliedLSN         int64      `json:"applied_lsn"` // all up to here is on the disk there and flushed
	LagBytes           int64      `json:"lag_bytes"`   // log bytes of the primary not yet applied (secondary) or written back (primary)
	LagSeconds         float64    `json:"lag_seconds"` // age of the oldest write of the primary not yet applied here, 0 = none
	Progress           []Progress `json:"progress,omitempty"`
	WaitsFor           string     `json:"waits_for,omitempty"` // what, and since when
	Messages           []Message  `json:"messages,omitempty"`
}

// Kinds of Progress.
const (
	ProgressSync      = "sync"
	ProgressFetch     = "fetch"
	ProgressReplay    = "replay"
	ProgressWriteBack = "writeback"
)

// Progress is something that goes on.
type Progress struct {
	Kind             string  `json:"kind"`
	DoneBytes        int64   `json:"done_bytes"`
	TotalBytes       int64   `json:"total_bytes"`
	Rate             float64 `json:"rate"`
	RemainingSeconds float64 `json:"remaining_seconds"` // -1 = unknown
}

// Message severities.
const (
	LevelInfo = "inf"
	LevelWarn = "wrn"
	LevelErr  = "err"
)

// Message is a keyed slot: a condition with a beginning, not a log line. It goes away when the condition does.
type Message struct {
	Level string    `json:"level"`
	Key   string    `json:"key"` // stable, e.g. "split-brain", "defective-log", "log-space"
	Text  string    `json:"text"`
	Since time.Time `json:"since"`
}
