package cluster

import (
	"context"
	"fmt"
	"testing"
	"time"

	"mars/internal/transport"
)

func TestTwoNodesShareMetadata(t *testing.T) {
	w := newWorld(t)
	all := w.cluster("a", "b")
	a, b := all[0], all[1]
	if a.ID() == "" || a.ID() != b.ID() {
		t.Fatalf("cluster ids %q and %q", a.ID(), b.ID())
	}
	must(t, a.Put("resource/x/size", []byte("1")))
	sees(t, b, "resource/x/size", "1")
	must(t, b.Put("resource/x/size", []byte("2")))
	sees(t, a, "resource/x/size", "2")
	must(t, b.PutVolatile("resource/x/pos", []byte("77")))
	sees(t, a, "resource/x/pos", "77")
	must(t, a.Delete("resource/x/size"))
	sees(t, b, "resource/x/size", "")
}

func TestChangesTravelAtOnce(t *testing.T) {
	all := newWorld(t).cluster("a", "b")
	must(t, all[0].Sync(t.Context()))
	began := time.Now()
	for i := range 20 {
		must(t, all[i%2].Put("k", fmt.Appendf(nil, "%d", i)))
		sees(t, all[1-i%2], "k", fmt.Sprint(i))
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Fatalf("20 round trips took %s", took)
	}
}

func TestDialNodeReachesTheHandler(t *testing.T) {
	all := newWorld(t).cluster("a", "b")
	a, b := all[0], all[1]
	b.Handle(transport.Log, func(_ context.Context, conn *transport.Conn, peer NodeInfo) {
		_, payload, err := conn.ReadFrame(nil)
		if err == nil && conn.WriteFrame(9, []byte(peer.Name+" said "), payload) == nil {
			_ = conn.Flush()
		}
	})
	conn, err := a.DialNode(t.Context(), transport.Log, b.Self().ID)
	must(t, err)
	defer conn.Close()
	must(t, conn.WriteFrame(1, []byte("hello")))
	must(t, conn.Flush())
	kind, payload, err := conn.ReadFrame(nil)
	must(t, err)
	if kind != 9 || string(payload) != "a said hello" {
		t.Fatalf("frame %d %q", kind, payload)
	}
	_, err = a.DialNode(t.Context(), transport.Log, "nobody")
	wantErr(t, err, ErrNoNode)
}
