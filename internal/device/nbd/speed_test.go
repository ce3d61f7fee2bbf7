package nbd

import (
	"bytes"
	"testing"
)

// load is a client's round of requests: depth of them, of size bytes each.
type load struct {
	name        string
	cmd         uint16
	size, depth int
}

// burst returns the requests and how many bytes the replies have.
func (l *load) burst() (requests []byte, replies int) {
	h := header{cmd: l.cmd, length: uint32(l.size)}
	for i := range l.depth {
		h.off, h.cookie = uint64(i*l.size), uint64(i)
		var payload []byte
		replies += simpleHeaderLen
		if l.cmd == cmdWrite {
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
	for _, l := range []load{{"write", cmdWrite, 4096, 32}, {"read", cmdRead, 4096, 32}} {
		t.Run(l.name, func(t *testing.T) {
			_, path := serve(t, Config{Dev: &fastDevice{data: make([]byte, testSize)}})
			c := open(t, path, false)
			requests, n := l.burst()
			replies := make([]byte, n)
			round := func() { exchange(c, requests, replies) }
			round()
			if allocs := testing.AllocsPerRun(200, round); allocs > 4 {
				t.Errorf("%v allocations for %d requests", allocs, l.depth)
			}
		})
	}
}

func BenchmarkBurst(b *testing.B) {
	for _, l := range []load{
		{"write-4k-1", cmdWrite, 4096, 1},
		{"write-4k-32", cmdWrite, 4096, 32},
		{"write-128k-8", cmdWrite, 128 << 10, 8},
		{"read-4k-1", cmdRead, 4096, 1},
		{"read-4k-32", cmdRead, 4096, 32},
		{"read-128k-8", cmdRead, 128 << 10, 8},
	} {
		b.Run(l.name, func(b *testing.B) {
			_, path := serve(b, Config{Dev: &fastDevice{data: make([]byte, testSize)}})
			c := open(b, path, false)
			requests, n := l.burst()
			replies := make([]byte, n)
			b.SetBytes(int64(max(len(requests), n)))
			b.ReportAllocs()
			for b.Loop() {
				exchange(c, requests, replies)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*l.depth), "ns/request")
		})
	}
}

// exchange sends requests and waits for all replies.
func exchange(c *client, requests, replies []byte) {
	c.t.Helper()
	c.renew()
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
