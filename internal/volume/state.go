package volume

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path"

	"mars/internal/history"
	"mars/internal/vfs"
)

const (
	stateVersion = 1
	maxState     = 1 << 20
)

// state is what the replica must remember; see the package comment of translog for what a position is.
type state struct {
	Version      int          `json:"version"`
	Size         int64        `json:"size"`    // of the volume at Applied
	Applied      history.Path `json:"applied"` // all up to its end is on the disk and flushed
	AppliedStamp int64        `json:"applied_stamp"`
	// DirtyEnd: changes up to here may be on the disk. The disk alone is consistent when it equals Applied.End.
	DirtyEnd history.LSN `json:"dirty_end"`
	// Durable is a lower bound of what has been durable in the log.
	Durable history.LSN `json:"durable"`
	Sync    *SyncState  `json:"sync,omitempty"`
}

// SyncState says how far a full sync has come. The replica is inconsistent while it exists.
type SyncState struct {
	Done   int64             `json:"done"`   // bytes of the disk that are copied, from the start
	Copied bool              `json:"copied"` // all of them; consistent once Until is applied
	Until  *history.Position `json:"until,omitempty"`
}

// envelope guards the file against damage: the file system may return anything after a crash that ate its journal.
type envelope struct {
	CRC32C uint32          `json:"crc32c"`
	State  json.RawMessage `json:"state"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func stateFile(cfg Config) string { return path.Join(cfg.Dir, "state.json") }

func (st *state) save(cfg Config) error {
	body, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("encode replica state: %w", err)
	}
	data, err := json.Marshal(envelope{CRC32C: crc32.Checksum(body, castagnoli), State: body})
	if err != nil {
		return fmt.Errorf("encode replica state: %w", err)
	}
	return vfs.WriteFileAtomic(cfg.FS, stateFile(cfg), data)
}

// ErrNoReplica: there is no state file; the replica was never created or is wiped.
var ErrNoReplica = errors.New("no replica here")

func loadState(cfg Config) (state, error) {
	data, err := vfs.ReadFile(cfg.FS, stateFile(cfg), maxState)
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, fmt.Errorf("%s: %w", cfg.Dir, ErrNoReplica)
	}
	if err != nil {
		return state{}, fmt.Errorf("read replica state: %w", err)
	}
	st, err := decodeState(data)
	if err != nil {
		return state{}, fmt.Errorf("replica state %s: %w", stateFile(cfg), err)
	}
	return st, nil
}

func decodeState(data []byte) (state, error) {
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return state{}, fmt.Errorf("damaged: %w", err)
	}
	if crc32.Checksum(e.State, castagnoli) != e.CRC32C {
		return state{}, errors.New("damaged: checksum does not fit")
	}
	var st state
	if err := json.Unmarshal(e.State, &st); err != nil {
		return state{}, fmt.Errorf("damaged: %w", err)
	}
	if st.Version != stateVersion {
		return state{}, fmt.Errorf("version %d is not known here", st.Version)
	}
	if st.Size < 0 || st.Applied.End < 0 || st.DirtyEnd < st.Applied.End {
		return state{}, errors.New("damaged: impossible values")
	}
	return st, nil
}

func removeState(cfg Config) error {
	err := cfg.FS.Remove(stateFile(cfg))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove replica state: %w", err)
	}
	if err := cfg.FS.SyncDir(cfg.Dir); err != nil {
		return fmt.Errorf("sync replica directory: %w", err)
	}
	return nil
}
