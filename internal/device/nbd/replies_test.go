package nbd

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"mars/internal/block"
)

// TestWhoFlushes: a completion wakes the writer goroutine only when nobody else is about to send its reply.
func TestWhoFlushes(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		state func(q *replies)
		wakes bool
	}{
		{"reader waits", func(*replies) {}, true},
		{"reader works", (*replies).busy, false},
		{"reader has come back", func(q *replies) { q.busy(); q.idle() }, true},
		{"reader is blocked in Submit", func(q *replies) { q.busy(); q.mu.since -= time.Second }, true},
		{"somebody is flushing", func(q *replies) { q.mu.flushing = true }, false},
		{"nobody to reply to", func(q *replies) { q.mu.dead = true }, true}, // a wasted call, but harmless
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newConn(New(Config{Dev: newMemDevice(testSize)}), script{bytes.NewReader(nil)})
			c.replies.out = newOutput(c.nc, &c.sending)
			c.replies.begin()
			tt.state(c.replies)
			newRequest(c, &header{cmd: cmdFlush}).done(nil)
			if wakes := len(c.replies.kick) > 0; wakes != tt.wakes {
				t.Errorf("wakes the writer: %v, want %v", wakes, tt.wakes)
			}
		})
	}
}

// TestKillEndsWaiting: whoever waits for requests in flight must not wait for a device that never answers.
func TestKillEndsWaiting(t *testing.T) {
	t.Parallel()
	c := newConn(New(Config{Dev: newMemDevice(testSize)}), script{bytes.NewReader(nil)})
	c.replies.begin()
	awaited := make(chan bool)
	go func() { awaited <- c.replies.await(1) }() // ends with kill
	c.replies.kill()
	if <-awaited {
		t.Error("await says that nothing is in flight")
	}
}

func TestNeighboursOfTheSameStateAreToldAsOne(t *testing.T) {
	t.Parallel()
	data, hole := func(n int64) block.Extent { return block.Extent{Len: n} }, func(n int64) block.Extent { return block.Extent{Len: n, Hole: true} }
	for _, tt := range []struct {
		name    string
		extents []block.Extent
		rest    int64
		want    []uint32
	}{
		{"none", nil, 512, nil},
		{"one", []block.Extent{data(512)}, 512, []uint32{512, 0}},
		{"different ones", []block.Extent{data(512), hole(1024)}, 4096, []uint32{512, 0, 1024, 3}},
		{"equal ones", []block.Extent{hole(512), hole(512), data(1), data(2), data(3), hole(512)}, 4096, []uint32{1024, 3, 6, 0, 512, 3}},
		{"empty ones", []block.Extent{data(0), hole(512), data(0), hole(512)}, 4096, []uint32{1024, 3}},
		{"more than asked for", []block.Extent{hole(512), hole(512), data(512)}, 700, []uint32{700, 3}},
		{"nearly 4 GiB", []block.Extent{data(1 << 31), data(1 << 40)}, 1<<32 - 512, []uint32{1<<32 - 512, 0}},
	} {
		var want []byte
		for _, w := range tt.want {
			want = binary.BigEndian.AppendUint32(want, w)
		}
		if got := appendExtents(nil, tt.extents, tt.rest); !bytes.Equal(got, want) {
			t.Errorf("%s: %x, want %x", tt.name, got, want)
		}
	}
}
