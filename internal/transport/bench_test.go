package transport

import (
	"context"
	"testing"
)

// benchPair is one connection over the loopback whose server counts bytes and confirms each frame of kind 2.
func benchPair(b *testing.B) *Conn {
	id := newIdentity(b)
	other := admit(b, id)
	all := func(Class, string) bool { return true }
	server := New(Config{Identity: id, Members: all, Handler: func(_ context.Context, c *Conn) {
		var buf []byte
		for {
			kind, payload, err := c.ReadFrame(buf)
			if err != nil {
				return
			}
			buf = payload
			if kind == 2 && (c.WriteFrame(2) != nil || c.Flush() != nil) {
				return
			}
		}
	}})
	ln, err := TCP{}.Listen("127.0.0.1:0")
	must(b, err)
	done := make(chan error, 1)
	go func() { done <- server.Serve(ln) }() // ends with the server
	client := New(Config{Identity: other, Members: all})
	c, err := client.Dial(b.Context(), ln.Addr().String(), Target{Class: Log, Node: id.Node()})
	must(b, err)
	b.Cleanup(func() {
		must(b, client.Close())
		must(b, server.Close())
		must(b, <-done)
	})
	return c
}

func BenchmarkBulk(b *testing.B) {
	c := benchPair(b)
	block := make([]byte, 1<<20)
	b.SetBytes(int64(len(block)))
	for b.Loop() {
		must(b, c.WriteFrame(1, block))
	}
	must(b, c.WriteFrame(2))
	must(b, c.Flush())
	_, _, err := c.ReadFrame(nil)
	must(b, err)
}

func BenchmarkPingPong(b *testing.B) {
	c := benchPair(b)
	for b.Loop() {
		must(b, c.WriteFrame(2))
		must(b, c.Flush())
		if _, _, err := c.ReadFrame(nil); err != nil {
			b.Fatal(err)
		}
	}
}
