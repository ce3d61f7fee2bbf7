package nbd

import (
	"bytes"
	"testing"
	"time"
)

// burst is a client's round of requests at a queue depth, and how many bytes the replies have.
func burst(cmd uint16, depth int) (requests []byte, replies int) {
	h := header{cmd: cmd, length: 4096}
	for i := range depth {
		h.off, h.cookie = uint64(i)*4096, uint64(i)
		var payload []byte
		replies += simpleHeaderLen
		if cmd == cmdWrite {
			payload = make([]byte, h.length)
		} else {
			replies += int(h.length)
		}
		requests = append(requests, requestBytes(h, payload)...)
	}
	return requests, replies
}

func TestNoAllocationPerRequest(t *testing.T) {
	if raceDetector {
		t.Skip("SKIPPED: under the race detector sync.Pool drops things on purpose")
	}
	for name, cmd := range map[string]uint16{"write": cmdWrite, "read": cmdRead} {
		t.Run(name, func(t *testing.T) {
			_, path := serve(t, Config{Dev: &fastDevice{data: make([]byte, testSize)}})
			c := open(t, path, false)
			const depth = 32
			requests, n := burst(cmd, depth)
			replies := make([]byte, n)
			round := func() { exchange(c, requests, replies) }
			round()
			if allocs := testing.AllocsPerRun(200, round); allocs > depth/8 {
				t.Errorf("%v allocations for %d requests", allocs, depth)
			}
		})
	}
}

func BenchmarkBurst(b *testing.B) {
	for _, bm := range []struct {
		name  string
		cmd   uint16
		depth int
	}{{"write-1", cmdWrite, 1}, {"write-32", cmdWrite, 32}, {"read-1", cmdRead, 1}, {"read-32", cmdRead, 32}} {
		b.Run(bm.name, func(b *testing.B) {
			_, path := serve(b, Config{Dev: &fastDevice{data: make([]byte, testSize)}})
			c := open(b, path, false)
			if err := c.nc.SetDeadline(time.Time{}); err != nil {
				b.Fatal(err)
			}
			requests, n := burst(bm.cmd, bm.depth)
			replies := make([]byte, n)
			b.SetBytes(int64(max(len(requests), n)))
			b.ReportAllocs()
			for b.Loop() {
				exchange(c, requests, replies)
			}
		})
	}
}

// exchange sends requests and waits for all replies.
func exchange(c *client, requests, replies []byte) {
	c.t.Helper()
	c.send(requests)
	for rest := replies; len(rest) > 0; {
		n, err := c.nc.Read(rest)
		if err != nil {
			c.t.Fatal(err)
		}
		rest = rest[n:]
	}
	if !bytes.Equal(replies[4:8], []byte{0, 0, 0, 0}) {
		c.t.Fatalf("reply %x", replies[:simpleHeaderLen])
	}
}
