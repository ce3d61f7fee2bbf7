package meta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// The file is a bbolt database with two buckets:
//
//	entries   key -> encoding of the entry (Entry.Append)
//	clock     "floor" -> the newest time of the Lamport clock, 8 bytes little-endian
var (
	entriesBucket = []byte("entries")
	clockBucket   = []byte("clock")
	floorKey      = []byte("floor")
)

// lockWait is how long to wait for another process to let go of the file.
const lockWait = time.Second

type disk struct{ db *bolt.DB }

func openDisk(path string) (*disk, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: lockWait, FreelistType: bolt.FreelistMapType})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("open metadata %s: in use by another process: is marsd running already?", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open metadata %s: %w", path, err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		_, err1 := tx.CreateBucketIfNotExists(entriesBucket)
		_, err2 := tx.CreateBucketIfNotExists(clockBucket)
		return errors.Join(err1, err2)
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare metadata %s: %w", path, err), db.Close())
	}
	return &disk{db}, nil
}

// load fills tree and returns the floor of the clock.
func (d *disk) load(tree *Tree) (floor int64, err error) {
	err = d.db.View(func(tx *bolt.Tx) error {
		if b := tx.Bucket(clockBucket).Get(floorKey); len(b) == 8 {
			floor = int64(binary.LittleEndian.Uint64(b))
		}
		return tx.Bucket(entriesBucket).ForEach(func(_, v []byte) error {
			e, rest, err := Decode(v)
			if err == nil && len(rest) > 0 {
				err = ErrInvalid
			}
			if err != nil {
				return err
			}
			floor = max(floor, e.Stamp.Time)
			_, err = tree.Apply(e)
			return err
		})
	})
	if err != nil {
		return 0, fmt.Errorf("read metadata %s: %w: restore the file, or leave and join the cluster again", d.db.Path(), err)
	}
	return floor, nil
}

// write stores the entries, later ones over earlier ones of the same key, and the floor, in one durable transaction.
func (d *disk) write(entries []Entry, floor int64) error {
	err := d.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(entriesBucket)
		for _, e := range entries {
			if err := b.Put([]byte(e.Key), e.Append(nil)); err != nil {
				return err
			}
		}
		return tx.Bucket(clockBucket).Put(floorKey, binary.LittleEndian.AppendUint64(nil, uint64(floor)))
	})
	if err != nil {
		return fmt.Errorf("write metadata %s: %w", d.db.Path(), err)
	}
	return nil
}

func (d *disk) remove(keys []string) error {
	err := d.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(entriesBucket)
		for _, key := range keys {
			if err := b.Delete([]byte(key)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write metadata %s: %w", d.db.Path(), err)
	}
	return nil
}

func (d *disk) close() error { return d.db.Close() }
