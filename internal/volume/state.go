package volume

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path"
	"slices"

	"mars/internal/block"
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
	// Dirty: changes up to here may be on the disk. The disk alone is consistent when it equals the end of Applied, else the log must be
	// replayed up to here, on this very history.
	Dirty history.Position `json:"dirty"`
	// Durable is a lower bound of what has been durable in the log; never less than Dirty unless the log was cut.
	Durable history.LSN `json:"durable"`
	// Tenure is the last timeline that was written here.
	Tenure history.TimelineID `json:"tenure,omitempty"`
	Sync   *SyncState         `json:"sync,omitempty"`
}

// clone returns a copy that shares nothing that changes.
func (st *state) clone() state {
	c := *st
	if st.Sync != nil {
		s := *st.Sync
		s.Seen = slices.Clone(s.Seen)
		c.Sync = &s
	}
	return c
}

// recoverable reports whether replaying a log with history p makes the disk consistent.
func (st *state) recoverable(p *history.Path) bool {
	return st.Dirty == st.Applied.Position() || p.Contains(st.Dirty)
}

// SyncState says how far a full sync has come. The replica is inconsistent while it exists.
type SyncState struct {
	Done   int64             `json:"done"`   // bytes of the disk that are copied, from the start
	Copied bool              `json:"copied"` // all of them; consistent once Until is applied
	Until  *history.Position `json:"until,omitempty"`
	// Seen are positions up to which the copy made so far may contain changes, one per timeline; see Copy.Saw.
	Seen []history.Position `json:"seen,omitempty"`
}

// saw adds a position to Seen.
func (s *SyncState) saw(pos history.Position) {
	i := slices.IndexFunc(s.Seen, func(x history.Position) bool { return x.Timeline == pos.Timeline })
	switch {
	case i < 0:
		s.Seen = append(s.Seen, pos)
	case pos.LSN > s.Seen[i].LSN:
		s.Seen[i] = pos
	}
}

// reached reports whether a disk on which p is applied has everything that the copy may contain.
func (s *SyncState) reached(p *history.Path) bool {
	behind := func(x history.Position) bool { return p.End < x.LSN }
	return s.Copied && !behind(*s.Until) && !slices.ContainsFunc(s.Seen, behind)
}

// strange returns the first position the copy may contain changes of that is not on the history p; nil if there is none.
func (s *SyncState) strange(p *history.Path) *history.Position {
	for _, x := range append(slices.Clone(s.Seen), *s.Until) {
		if !p.Contains(x) {
			return &x
		}
	}
	return nil
}

func (s *SyncState) valid() bool {
	return s.Done >= 0 && s.Done%block.SectorSize == 0 && (!s.Copied || s.Until != nil)
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
	if st.Size < 0 || st.Size%block.SectorSize != 0 || st.Applied.End < 0 || st.Dirty.LSN < st.Applied.End ||
		st.Sync != nil && !st.Sync.valid() {
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
