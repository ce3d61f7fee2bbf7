package meta

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"mars/internal/lamport"
)

// Conditions that callers branch on.
var (
	// ErrClosed says that the store was closed.
	ErrClosed = errors.New("metadata store is closed")
	// ErrFailed says that an earlier write to disk failed. Nothing more is written: a failed sync cannot be repeated. Restart the daemon.
	ErrFailed = errors.New("metadata store has failed")
	// ErrSuperseded says that a change lost against a newer one.
	ErrSuperseded = errors.New("superseded by a newer change")
)

// Options configures a Store. Node and Now are required, other zero values mean the defaults.
type Options struct {
	// Node is the id that goes into the stamps of local changes.
	Node string
	// Now is the wall clock.
	Now func() time.Time
	// Log gets what no caller can be told.
	Log *slog.Logger
	// Existing says that the file must be there: it is an error, ErrDamaged, when it is not, and not an empty store.
	Existing bool
	// Bounds limits the whole tree.
	Bounds Bounds
	// FlushEvery is how long a volatile or received change may stay in memory only; default 2 s.
	FlushEvery time.Duration
	// TombstoneAge is how long deletions are remembered; default 30 days. A node that was away for longer may bring deleted keys back.
	TombstoneAge time.Duration
	// Final names keys that are never used again once they are deleted: that is remembered for ever, and no value wins against it. Default none.
	Final func(key string) bool
	// TrustClock tells whether the wall clock is believed to be right, so that what is old by it may be forgotten for ever; default always.
	TrustClock func() bool
	// Notifier is signalled after each change; default one that only Watch uses.
	Notifier *Notifier

	openFile func(string, int, os.FileMode) (*os.File, error) // nil: os.OpenFile
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.FlushEvery == 0 {
		o.FlushEvery = 2 * time.Second
	}
	if o.TombstoneAge == 0 {
		o.TombstoneAge = 30 * 24 * time.Hour
	}
	if o.Final == nil {
		o.Final = func(string) bool { return false }
	}
	if o.TrustClock == nil {
		o.TrustClock = func() bool { return true }
	}
	if o.Notifier == nil {
		o.Notifier = &Notifier{}
	}
	return o
}

// Store is a Tree that survives. It is safe for concurrent use.
//
// Two ways in: durable changes (Put, Delete, PutAfter, Batch, Import) are on disk before anybody - a reader here or another node - can see
// them; volatile ones (PutVolatile, and all that comes from other nodes by Merge, who have it on disk themselves) are visible at once and
// reach the disk within FlushEvery, with the next durable change, or by Flush, whichever is first. So whatever a durable change was based
// on is on disk with it.
type Store struct {
	opts  Options
	clock *lamport.Clock
	disk  *disk

	commits chan *commit
	stop    context.CancelCauseFunc
	ended   context.Context // done when Close began or writing failed; the cause says which
	wg      sync.WaitGroup

	// mu is never held across IO.
	mu struct {
		sync.Mutex
		tree  *Tree
		dirty map[string]struct{} // keys whose newest version is in memory only
	}
}

// Change is a new value of Key, or its deletion.
type Change struct {
	Key    string
	Value  []byte
	Delete bool
}

// Open opens or creates the store in the file path. It fails if another process has it open.
func Open(path string, opts Options) (*Store, error) {
	opts = opts.withDefaults()
	d, err := openDisk(path, opts)
	if err != nil {
		return nil, err
	}
	s := &Store{opts: opts, disk: d, commits: make(chan *commit, 64)}
	s.mu.tree = NewTree(opts.Bounds, opts.Final)
	s.mu.dirty = map[string]struct{}{}
	floor, err := d.load(s.mu.tree)
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	s.clock = lamport.New(opts.Node, opts.Now, floor)
	s.ended, s.stop = context.WithCancelCause(context.Background())
	s.wg.Go(s.run) // ends when Close is called or a write fails
	return s, nil
}

// Close writes what is in memory only and closes the file.
func (s *Store) Close() error {
	s.stop(ErrClosed)
	s.wg.Wait()
	err := s.disk.close()
	if cause := context.Cause(s.ended); !errors.Is(cause, ErrClosed) {
		return errors.Join(cause, err)
	}
	return err
}

// Get returns the value of key and its stamp; ok is false if there is none. The value must not be modified.
func (s *Store) Get(key string) (value []byte, stamp lamport.Stamp, ok bool) {
	e, ok := s.Entry(key)
	if !ok || e.Deleted {
		return nil, e.Stamp, false
	}
	return e.Value, e.Stamp, true
}

// Entry returns the newest version of key, which may be a tombstone.
func (s *Store) Entry(key string) (Entry, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.tree.Get(key)
}

// List returns the entries whose keys begin with prefix, sorted by key. Their values must not be modified.
func (s *Store) List(prefix string) []Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.tree.List(prefix)
}

// Seq is the number of the latest change in this life of the store.
func (s *Store) Seq() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.tree.Seq()
}

// Since returns what changed after the change number seq, tombstones included, and the number to ask with next time.
func (s *Store) Since(seq uint64) (changed []Entry, next uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.tree.Since(seq), s.mu.tree.Seq()
}

// Digest summarises the present content.
func (s *Store) Digest() Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.tree.Digest()
}

// Differing returns what a store with the digest other may lack, and the number of the latest change contained in that.
func (s *Store) Differing(other Digest) (entries []Entry, seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.tree.Differing(other), s.mu.tree.Seq()
}

// Watch signals changes, see Notifier.Watch.
func (s *Store) Watch() (<-chan struct{}, func()) { return s.opts.Notifier.Watch() }

// Put sets key to value. When it returns nil the change is on disk. A newer change from elsewhere may have won meanwhile; that is no error.
func (s *Store) Put(key string, value []byte) error {
	return s.Batch([]Change{{Key: key, Value: value}})
}

// Delete deletes key. When it returns nil the deletion is on disk. Deleting what is not there does nothing.
func (s *Store) Delete(key string) error {
	return s.Batch([]Change{{Key: key, Delete: true}})
}

// Batch makes several changes: all or none of them are on disk after a crash, and all are when it returns nil.
func (s *Store) Batch(changes []Change) error {
	entries := make([]Entry, 0, len(changes))
	for _, c := range changes {
		if c.Delete && !s.known(c.Key) {
			continue
		}
		e, err := s.stamped(c)
		if err != nil {
			return err
		}
		entries = append(entries, e)
	}
	_, err := s.commit(entries)
	return err
}

func (s *Store) known(key string) bool {
	e, ok := s.Entry(key)
	return ok && !e.Deleted
}

// PutAfter sets key to value as the immediate successor of the version with the stamp old: any change made concurrently by others with the
// real time wins against it. It is durable like Put. ErrSuperseded says that it has lost already.
func (s *Store) PutAfter(key string, value []byte, old lamport.Stamp) error {
	e := Entry{Key: key, Value: bytes.Clone(value), Stamp: lamport.Stamp{Time: old.Time + 1, Node: s.opts.Node}}
	if err := s.admit(e); err != nil {
		return err
	}
	won, err := s.commit([]Entry{e})
	if err == nil && won == 0 {
		return fmt.Errorf("write %s: %w", key, ErrSuperseded)
	}
	return err
}

// PutVolatile sets key to value: visible at once, on disk soon.
func (s *Store) PutVolatile(key string, value []byte) error {
	if s.ended.Err() != nil {
		return context.Cause(s.ended)
	}
	e, err := s.stamped(Change{Key: key, Value: value})
	if err != nil {
		return err
	}
	s.mu.Lock()
	_, err = s.applyVolatile(e)
	s.mu.Unlock()
	s.opts.Notifier.Notify()
	return err
}

// Merge takes entries that came from another node and returns how many of them were news. Those that cannot be taken - stamped too far in
// the future, invalid, no room - are left out and explained in refused; the others are visible at once, and on disk soon.
func (s *Store) Merge(entries []Entry) (news int, refused []error) {
	s.mu.Lock()
	for _, e := range entries {
		changed, err := s.mergeOne(e)
		if err != nil {
			refused = append(refused, fmt.Errorf("received %q: %w", e.Key, err))
		}
		if changed {
			news++
		}
	}
	s.mu.Unlock()
	if news > 0 {
		s.opts.Notifier.Notify()
	}
	return news, refused
}

func (s *Store) mergeOne(e Entry) (changed bool, err error) {
	if err := s.clock.Observe(e.Stamp); err != nil {
		return false, err
	}
	if s.forgotten(e) {
		return false, nil
	}
	if err := s.mu.tree.Room(e); err != nil {
		return false, err
	}
	return s.applyVolatile(e)
}

// forgotten tells whether e is a tombstone that was purged here, or would be soon.
func (s *Store) forgotten(e Entry) bool {
	if !e.Deleted || e.Stamp.Time >= s.horizon() || s.opts.Final(e.Key) {
		return false
	}
	_, known := s.mu.tree.Get(e.Key)
	return !known
}

func (s *Store) horizon() int64 { return s.opts.Now().Add(-s.opts.TombstoneAge).UnixNano() }

func (s *Store) applyVolatile(e Entry) (changed bool, err error) {
	changed, err = s.mu.tree.Apply(e)
	if changed {
		s.mu.dirty[e.Key] = struct{}{}
	}
	return changed, err
}

// AmendTree is what Amend does to the tree and the clock of node; it returns what it has changed.
func AmendTree(t *Tree, c *lamport.Clock, node string, now time.Time) []Entry {
	limit := now.Add(lamport.MaxAhead).UnixNano()
	late, rest := t.After(limit)
	c.PutBack(rest, limit)
	for i, e := range late {
		late[i].Stamp = lamport.Stamp{Time: yields, Node: e.Stamp.Node}
		if e.Stamp.Node == node {
			late[i].Stamp = c.Next()
		}
	}
	t.Restamp(late)
	return late
}

// Import takes the whole content of another node into this store, durably. It is all or nothing.
func (s *Store) Import(entries []Entry) error {
	for _, e := range entries {
		if err := s.clock.Observe(e.Stamp); err != nil {
			return fmt.Errorf("import %q: %w", e.Key, err)
		}
		if err := s.admit(e); err != nil {
			return fmt.Errorf("import: %w", err)
		}
	}
	_, err := s.commit(entries)
	return err
}

// Newest returns a time, in nanoseconds since the epoch, such that no stamp here is newer, and none that was given out.
func (s *Store) Newest() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(s.mu.tree.Newest(), s.clock.Floor())
}

// yields is the time in the stamp of what gives way to every other version.
const yields = 1

// Amend stamps anew what is too far in the future: what this node has changed while its clock was wrong, and what it has taken meanwhile from
// others whose clocks were wrong as well. No node with a right clock takes that, and here it would win against everything for as long as the
// clock was wrong by. Own changes become changes of the present, those of others give way to any other version, for they amend theirs.
//
// The caller must know that the clock is right now; Amend with a clock that is behind makes everything look like it. It returns how many
// changes there were, and they are on disk when the error is nil. If there is a crash before that they have their old stamps again.
func (s *Store) Amend() (amended int, err error) {
	s.mu.Lock()
	late := AmendTree(s.mu.tree, s.clock, s.opts.Node, s.opts.Now())
	for _, e := range late {
		s.mu.dirty[e.Key] = struct{}{}
	}
	s.mu.Unlock()
	if len(late) > 0 {
		s.opts.Notifier.Notify()
	}
	return len(late), s.Flush()
}

// Flush returns when all that was visible before is on disk.
func (s *Store) Flush() error {
	_, err := s.commit(nil)
	return err
}

// stamped makes the entry for a local change.
func (s *Store) stamped(c Change) (Entry, error) {
	e := Entry{Key: c.Key, Value: bytes.Clone(c.Value), Deleted: c.Delete, Stamp: s.clock.Next()}
	if c.Delete {
		e.Value = nil
	}
	return e, s.admit(e)
}

func (s *Store) admit(e Entry) error {
	if err := e.Check(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.tree.Room(e)
}
