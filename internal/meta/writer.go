package meta

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	maxCommitsPerBatch = 1024
	purgeEvery         = time.Hour
)

// commit is what one caller waits for.
type commit struct {
	entries []Entry
	done    chan error // buffered: the writer never waits for a caller
	won     int        // how many entries became visible; valid after done
}

// commit hands entries to the writer and waits until they, and all that was visible before, are on disk.
func (s *Store) commit(entries []Entry) (won int, err error) {
	c := &commit{entries: entries, done: make(chan error, 1)}
	select {
	case s.commits <- c:
	case <-s.ended.Done():
		return 0, context.Cause(s.ended)
	}
	select {
	case err = <-c.done:
	case <-s.ended.Done():
		s.wg.Wait() // the writer may still have taken it
		select {
		case err = <-c.done:
		default:
			return 0, context.Cause(s.ended)
		}
	}
	return c.won, err
}

// run is the only writer of the disk. It ends after Close or after the first failed write.
func (s *Store) run() {
	flush := time.NewTicker(s.opts.FlushEvery)
	defer flush.Stop()
	purge := time.NewTicker(purgeEvery)
	defer purge.Stop()
	err := s.purge()
	for err == nil {
		select {
		case c := <-s.commits:
			err = s.write(s.gather(c))
		case <-flush.C:
			err = s.write(nil)
		case <-purge.C:
			err = s.purge()
		case <-s.ended.Done():
			if err := s.write(nil); err != nil {
				s.opts.Log.Error("metadata not saved at exit", "err", err)
			}
			return
		}
	}
	s.stop(fmt.Errorf("%w: %w", ErrFailed, err))
}

// gather adds to the first commit those that wait already.
func (s *Store) gather(first *commit) []*commit {
	batch := []*commit{first}
	for len(batch) < maxCommitsPerBatch {
		select {
		case c := <-s.commits:
			batch = append(batch, c)
		default:
			return batch
		}
	}
	return batch
}

// write makes the batch and all dirty keys durable in one transaction, and only then shows the batch.
func (s *Store) write(batch []*commit) error {
	entries := s.toWrite(batch)
	var err error
	if len(entries) > 0 {
		err = s.disk.write(entries, s.clock.Floor())
	}
	if err == nil {
		s.publish(batch)
	}
	for _, c := range batch {
		c.done <- err
	}
	return err
}

// toWrite collects the dirty versions first, then those of the batch that win against what is visible, so that the last version of a key
// in the list is the newest one.
func (s *Store) toWrite(batch []*commit) (entries []Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	dirty := s.mu.dirty
	s.mu.dirty = map[string]struct{}{}
	for key := range dirty {
		if e, ok := s.mu.tree.Get(key); ok {
			entries = append(entries, e)
		}
	}
	newest := map[string]Entry{}
	for _, c := range batch {
		for _, e := range c.entries {
			old, ok := newest[e.Key]
			if !ok {
				old, ok = s.mu.tree.Get(e.Key)
			}
			if !ok || s.mu.tree.newer(e, old) {
				newest[e.Key] = e
				entries = append(entries, e)
			}
		}
	}
	return entries
}

// publish shows what is on disk now. A volatile change that came in meanwhile may be newer; it stays dirty and reaches the disk next time.
func (s *Store) publish(batch []*commit) {
	changed := false
	s.mu.Lock()
	for _, c := range batch {
		for _, e := range c.entries {
			// The entries passed Check before they came here.
			if ok, err := s.mu.tree.Apply(e); err == nil && ok {
				c.won++
				changed = true
			}
		}
	}
	s.mu.Unlock()
	if changed {
		s.opts.Notifier.Notify()
	}
}

func (s *Store) purge() error {
	if !s.opts.TrustClock() {
		return nil // a clock that is ahead would forget deletions that others have not heard of yet
	}
	s.mu.Lock()
	gone := s.mu.tree.Purge(s.horizon(), s.opts.Final)
	for _, key := range gone {
		delete(s.mu.dirty, key)
	}
	s.mu.Unlock()
	if len(gone) == 0 {
		return nil
	}
	if err := s.disk.remove(gone); err != nil {
		return errors.Join(errors.New("purge tombstones"), err)
	}
	return nil
}
