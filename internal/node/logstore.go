package node

import (
	"fmt"
	"sync"
	"syscall"
	"time"

	"mars/internal/control"
	"mars/internal/vfs"
)

// logStore bounds the space that all logs of this node take together (invariant I9).
type logStore struct {
	fs      vfs.FS
	dir     string
	limit   int64 // 0 = none
	reserve int64
	used    func() int64
}

// reserveSpace refuses with ENOSPC when another n bytes of log would exceed the limit or eat into the reserve.
func (s *logStore) reserveSpace(n int64) error {
	if used := s.used(); s.limit > 0 && used+n > s.limit {
		return fmt.Errorf("logs take %d bytes, log_limit is %d: %w", used, s.limit, syscall.ENOSPC)
	}
	sp, err := s.fs.Space(s.dir)
	if err != nil {
		return fmt.Errorf("space of %s: %w", s.dir, err)
	}
	if sp.Free-n < s.reserve {
		return fmt.Errorf("%s has %d bytes free, log_reserve is %d: %w", s.dir, sp.Free, s.reserve, syscall.ENOSPC)
	}
	return nil
}

// tight reports whether secondaries should give up log that only others may need.
func (s *logStore) tight() bool {
	sp, err := s.fs.Space(s.dir)
	return (s.limit > 0 && s.used() > s.limit/10*8) || (err == nil && sp.Free < 2*s.reserve)
}

func (s *logStore) status() control.LogStore {
	st := control.LogStore{Dir: s.dir, UsedBytes: s.used(), LimitBytes: s.limit}
	if sp, err := s.fs.Space(s.dir); err == nil {
		st.FreeBytes = sp.Free
	}
	return st
}

// logUsed sums the logs of all replicas.
func (n *Node) logUsed() int64 {
	var sum int64
	for _, r := range n.allRunners() {
		if v := r.volume(); v != nil {
			sum += v.Log().SpaceUsed()
		}
	}
	return sum
}

// stamps gives Lamport times for log records: never behind the wall clock, never twice, never behind what was observed.
type stamps struct {
	mu   sync.Mutex
	last int64
}

func (s *stamps) next() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = max(s.last+1, time.Now().UnixNano())
	return s.last
}

func (s *stamps) observe(t int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = max(s.last, t)
}
