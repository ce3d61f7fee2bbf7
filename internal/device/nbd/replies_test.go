package nbd

import (
	"bytes"
	"testing"
	"time"
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
