package knbd

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"mars/internal/device/blockdev"
	"mars/internal/vfs"
)

// record is what a later process must know of a device. It is durable before the device is made, and removed when the kernel has forgotten the
// device; so no device of ours is ever without a record, whenever the process dies. Device and record are tied by the backend identifier,
// which nobody can guess and only the kernel keeps: after a reboot there is no device to the record.
type record struct {
	Backend   string `json:"backend"`
	Name      string `json:"name"`
	Resource  string `json:"resource"`
	Tenure    string `json:"tenure"`
	Link      string `json:"link"`
	Abandoned bool   `json:"abandoned"` // it must never be served again
	// Disconnected: it cannot be served again, but is not forgotten by the kernel because somebody has it open.
	Disconnected bool `json:"disconnected"`
}

const (
	recordSuffix = ".json"
	maxRecord    = 4 << 10
	backendMark  = "mars:"
)

func newRecord(cfg *Config) record {
	var nonce [16]byte
	rand.Read(nonce[:])
	return record{Backend: backendMark + cfg.Name + ":" + hex.EncodeToString(nonce[:]), Name: cfg.Name, Resource: cfg.Resource, Tenure: cfg.Tenure, Link: cfg.Link}
}

// making is held while a record has no device yet: who tidies up records without a device must not find it.
var making sync.Mutex

// make records a device and has connect make it.
func (r *record) make(dir string, connect func() (index uint32, err error)) (uint32, error) {
	making.Lock()
	defer making.Unlock()
	if err := r.save(dir); err != nil {
		return 0, err
	}
	index, err := connect()
	if err != nil {
		return 0, errors.Join(err, r.abandon(dir))
	}
	return index, nil
}

// file is where the record of a device is.
func (r *record) file(dir string) string {
	return filepath.Join(dir, r.Backend[strings.LastIndexByte(r.Backend, ':')+1:]+recordSuffix)
}

func (r *record) save(dir string) error {
	b, err := json.Marshal(r)
	if err == nil {
		err = vfs.WriteFileAtomic(vfs.OS(), r.file(dir), b)
	}
	if err != nil {
		return fmt.Errorf("record nbd device of %s: %w", r.Name, err)
	}
	return nil
}

func (r *record) remove(dir string) error { return blockdev.Remove(r.file(dir)) }

// records returns all records in dir. What cannot be read is reported, and left alone.
func records(dir string) ([]record, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("records of nbd devices: %w", err)
	}
	var out []record
	var errs []error
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), recordSuffix) {
			continue // a half-written one, or not ours
		}
		r, err := readRecord(dir, e.Name())
		if err != nil {
			errs = append(errs, fmt.Errorf("record of an nbd device: %w", err))
			continue
		}
		out = append(out, r)
	}
	return out, errors.Join(errs...)
}

func readRecord(dir, name string) (r record, err error) {
	file := filepath.Join(dir, name)
	b, err := vfs.ReadFile(vfs.OS(), file, maxRecord)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%s: %w", file, err)
	}
	if r.file(dir) != file {
		return r, fmt.Errorf("%s is the record of backend %q", file, r.Backend)
	}
	return r, nil
}
