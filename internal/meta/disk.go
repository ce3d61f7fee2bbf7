package meta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// The file is a bbolt database with two buckets:
//
//	entries   key -> encoding of the entry (Entry.Append)
//	clock     "floor" -> the newest time of the Lamport clock, 8 bytes little-endian
//	          "sum"   -> Sum over all entries and the floor; missing in files of older versions
//
// bbolt writes the pages of a transaction to places that are free, syncs, writes the new root to one of two places, and syncs: after a crash the
// file holds the state before or after the transaction. Only its roots have checksums; the sum tells damage anywhere else.
var (
	entriesBucket = []byte("entries")
	clockBucket   = []byte("clock")
	floorKey      = []byte("floor")
	sumKey        = []byte("sum")
)

// ErrDamaged says that the file is not what was written to it: it is missing, shorter, or other bytes.
var ErrDamaged = errors.New("the metadata are damaged")

const damagedHint = "restore the file from a backup; if there is none, remove this node at another one (leave-cluster --host NAME --force), move the " +
	"directory of the file away, and join the cluster again: what the others have comes back from them"

// lockWait is how long to wait for another process to let go of the file.
const lockWait = time.Second

// disk is used by one goroutine.
type disk struct {
	db  *bolt.DB
	sum Sum // of what is in the file
}

// guarded runs f. What bbolt does not expect in a file makes it panic, or read beyond the end of the file.
func guarded(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, p)
		}
	}()
	return f()
}

// openDisk opens the file, or makes it unless it must exist.
func openDisk(path string, opts Options) (d *disk, err error) {
	if opts.Existing {
		if i, err := os.Stat(path); err != nil || i.Size() == 0 {
			return nil, fmt.Errorf("open metadata %s: %w: the file is missing or empty: %s", path, errors.Join(ErrDamaged, err), damagedHint)
		}
	}
	err = guarded(func() error {
		d, err = openFile(path, opts)
		return err
	})
	if errors.Is(err, ErrDamaged) {
		return nil, fmt.Errorf("open metadata %s: %w: %s", path, err, damagedHint)
	}
	return d, err
}

func openFile(path string, opts Options) (*disk, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: lockWait, FreelistType: bolt.FreelistMapType, OpenFile: opts.openFile})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("open metadata %s: in use by another process: is marsd running already?", path)
	}
	var number syscall.Errno
	if err != nil && !errors.As(err, &number) { // not the operating system's
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open metadata %s: %w", path, err)
	}
	if !opts.Existing {
		err = prepare(db)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare metadata %s: %w", path, err), db.Close())
	}
	return &disk{db: db}, nil
}

// prepare makes the buckets of a new file.
func prepare(db *bolt.DB) error {
	return db.Update(func(tx *bolt.Tx) error {
		_, err1 := tx.CreateBucketIfNotExists(entriesBucket)
		_, err2 := tx.CreateBucketIfNotExists(clockBucket)
		return errors.Join(err1, err2)
	})
}

// load fills tree and returns the floor of the clock.
func (d *disk) load(tree *Tree) (floor int64, err error) {
	err = guarded(func() error {
		return d.db.View(func(tx *bolt.Tx) error {
			floor, err = d.read(tx, tree)
			return err
		})
	})
	if err != nil {
		return 0, fmt.Errorf("read metadata %s: %w: %s", d.db.Path(), err, damagedHint)
	}
	return floor, nil
}

func (d *disk) read(tx *bolt.Tx, tree *Tree) (floor int64, err error) {
	clock, entries := tx.Bucket(clockBucket), tx.Bucket(entriesBucket)
	if clock == nil || entries == nil {
		return 0, fmt.Errorf("%w: a part is missing", ErrDamaged)
	}
	if b := clock.Get(floorKey); len(b) == 8 {
		d.sum.xor(sumBytes(b))
		floor = int64(binary.LittleEndian.Uint64(b))
	}
	err = entries.ForEach(func(k, v []byte) error {
		e, rest, err := Decode(v)
		if err == nil && (len(rest) > 0 || e.Key != string(k)) {
			err = ErrInvalid
		}
		if err != nil {
			return errors.Join(ErrDamaged, err)
		}
		d.sum.xor(sumBytes(v))
		floor = max(floor, e.Stamp.Time)
		_, err = tree.Apply(e)
		return err
	})
	if want := clock.Get(sumKey); err == nil && want != nil && string(want) != string(d.sum[:]) {
		err = fmt.Errorf("%w: entries are not those that were written", ErrDamaged)
	}
	return floor, err
}

// change is a new value of a key in the file, or its removal (nil).
type change struct {
	bucket, key, value []byte
}

// update makes changes, later ones over earlier ones of the same key, in one durable transaction.
func (d *disk) update(changes []change) error {
	sum := d.sum
	err := guarded(func() error {
		return d.db.Update(func(tx *bolt.Tx) error {
			for _, c := range changes {
				if err := c.make(tx.Bucket(c.bucket), &sum); err != nil {
					return err
				}
			}
			return tx.Bucket(clockBucket).Put(sumKey, sum[:])
		})
	})
	if err != nil {
		return fmt.Errorf("write metadata %s: %w", d.db.Path(), err)
	}
	d.sum = sum
	return nil
}

func (c *change) make(b *bolt.Bucket, sum *Sum) error {
	if old := b.Get(c.key); old != nil {
		sum.xor(sumBytes(old))
	}
	if c.value == nil {
		return b.Delete(c.key)
	}
	sum.xor(sumBytes(c.value))
	return b.Put(c.key, c.value)
}

// write stores the entries, later ones over earlier ones of the same key, and the floor, in one durable transaction.
func (d *disk) write(entries []Entry, floor int64) error {
	changes := make([]change, 0, len(entries)+1)
	for _, e := range entries {
		changes = append(changes, change{entriesBucket, []byte(e.Key), e.Append(nil)})
	}
	return d.update(append(changes, change{clockBucket, floorKey, binary.LittleEndian.AppendUint64(nil, uint64(floor))}))
}

func (d *disk) remove(keys []string) error {
	var changes []change
	for _, key := range keys {
		changes = append(changes, change{bucket: entriesBucket, key: []byte(key)})
	}
	return d.update(changes)
}

func (d *disk) close() error { return d.db.Close() }
