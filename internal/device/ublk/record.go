package ublk

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"mars/internal/device/blockdev"
	"mars/internal/vfs"
)

// record is what a later process must know of a device: Dir/RESOURCE.json. It is there before the device is made, and is removed after the device;
// so no device of ours is ever without a record, whenever the process dies. After a reboot there is no device to the record.
type record struct {
	// Cookie is random, and also kept by the driver: a device without it is not ours.
	Cookie   uint64 `json:"cookie"`
	Resource string `json:"resource"`
	Tenure   string `json:"tenure"` // whose content its users have seen
	Link     string `json:"link"`
}

const (
	recordSuffix = ".json"
	maxRecord    = 4 << 10
)

// isID tells whether a name is one of a resource, and can be one of a file.
func isID(s string) bool {
	_, err := hex.DecodeString(s)
	return s != "" && err == nil
}

func (r *record) file(dir string) string { return filepath.Join(dir, r.Resource+recordSuffix) }

func (r *record) save(dir string) error {
	b, err := json.Marshal(r)
	if err == nil {
		err = errors.Join(os.MkdirAll(dir, 0o700), vfs.WriteFileAtomic(vfs.OS(), r.file(dir), b))
	}
	if err != nil {
		return fmt.Errorf("record of the ublk device of %s: %w", r.Resource, err)
	}
	return nil
}

func (r *record) remove(dir string) error {
	if err := blockdev.Remove(r.file(dir)); err != nil {
		return fmt.Errorf("record of the ublk device of %s: %w", r.Resource, err)
	}
	return nil
}

// records returns all records in dir. What cannot be read is reported, and left alone.
func records(dir string) ([]record, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("records of ublk devices: %w", err)
	}
	var out []record
	var errs []error
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), recordSuffix)
		if !ok || !isID(id) {
			continue // a half-written one, or not ours
		}
		r, err := readRecord(dir, id)
		if err != nil {
			errs = append(errs, fmt.Errorf("record of the ublk device of %s: %w", id, err))
			continue
		}
		out = append(out, r)
	}
	return out, errors.Join(errs...)
}

func readRecord(dir, id string) (record, error) {
	r := record{Resource: id}
	b, err := vfs.ReadFile(vfs.OS(), r.file(dir), maxRecord)
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err == nil && (r.Cookie == 0 || r.Resource != id) {
		err = fmt.Errorf("it is not what it should be: %s", b)
	}
	return r, err
}
