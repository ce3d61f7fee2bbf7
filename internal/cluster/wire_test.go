package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"mars/internal/identity"
	"mars/internal/lamport"
	"mars/internal/meta"
)

func entriesOf(n int) []meta.Entry {
	out := make([]meta.Entry, n)
	for i := range out {
		out[i] = meta.Entry{Key: "key/" + strings.Repeat("x", i%50+1), Value: bytes.Repeat([]byte{1}, i*7%3000), Stamp: lamport.Stamp{Time: int64(i), Node: "n"}}
	}
	return out
}

func TestEntriesAreCutIntoFrames(t *testing.T) {
	all := entriesOf(1000)
	var got []meta.Entry
	frames := 0
	for rest := all; len(rest) > 0; frames++ {
		var payload []byte
		payload, rest = encodeEntries(rest)
		if len(payload) > chunk+meta.MaxEntry {
			t.Fatalf("frame of %d bytes", len(payload))
		}
		entries, err := decodeEntries(payload)
		must(t, err)
		got = append(got, entries...)
	}
	if len(got) != len(all) || frames < 2 || got[999].Key != all[999].Key {
		t.Fatalf("%d entries in %d frames", len(got), frames)
	}
}

func TestRepliesCarryProblems(t *testing.T) {
	for _, problem := range []error{nil, errors.New("disk is full"), errors.New(strings.Repeat("x", maxProblem+1))} {
		nonce, got, err := decodeReply(encodeReply(7, problem))
		if err != nil || nonce != 7 || (got == nil) != (problem == nil) {
			t.Fatalf("%d %v %v", nonce, got, err)
		}
	}
}

func FuzzFrames(f *testing.F) {
	payload, _ := encodeEntries(entriesOf(3))
	f.Add(kindEntries, payload)
	f.Add(kindEntries, []byte{255, 255, 255, 255, 1, 0, 'k'})
	f.Add(kindHello, encodeHello())
	f.Add(kindDigest, encodeDigest(meta.Digest{}))
	f.Add(kindRequest, encodeRequest(1, requestLeave))
	f.Add(kindPing, encodePing(time.Unix(1, 2)))
	f.Add(kindReply, encodeReply(1, errors.New("x")))
	f.Fuzz(func(t *testing.T, kind byte, b []byte) {
		var again []byte
		var err error
		switch kind {
		case kindEntries:
			var entries []meta.Entry
			if entries, err = decodeEntries(b); err == nil {
				again, _ = encodeEntries(entries)
				if len(b) >= chunk {
					again = b // would be cut into several frames
				}
			}
		case kindDigest:
			var d meta.Digest
			if d, err = decodeDigest(b); err == nil {
				again = encodeDigest(d)
			}
		case kindRequest:
			var nonce uint64
			var what requestKind
			if nonce, what, err = decodeRequest(b); err == nil {
				again = encodeRequest(nonce, what)
			}
		case kindPing:
			var shown time.Time
			if shown, err = decodePing(b); err == nil {
				again = encodePing(shown)
			}
		case kindReply:
			_, _, err = decodeReply(b)
			again = b
		case kindHello:
			_, err = decodeHello(b)
			again = b
		default:
			return
		}
		switch {
		case err != nil && !errors.Is(err, errProtocol):
			t.Fatalf("error of the wrong kind: %v", err)
		case err == nil && !bytes.Equal(again, b):
			t.Fatalf("frame %d encodes differently: % x", kind, again)
		}
	})
}

func FuzzJoinFrames(f *testing.F) {
	ask, err := json.Marshal(joinAsk{Proto: 1, Secret: []byte("s"), Name: "n", Addr: "h:1", CSR: []byte("c")})
	must(f, err)
	grant, err := json.Marshal(identity.Grant{Cert: []byte("c")})
	must(f, err)
	f.Add(joinRequest, ask)
	f.Add(joinGrant, grant)
	f.Add(joinRefuse, []byte(`{"code":"token-used","text":"x"}`))
	f.Fuzz(func(_ *testing.T, kind byte, b []byte) {
		if ask, err := decodeAsk(kind, b); err == nil {
			_, _ = identity.SecretOf(ask.Secret)
			_, _ = identity.Requester(ask.CSR)
			_ = record{Name: ask.Name, Addr: ask.Addr}.check()
		}
		if g, err := decodeGrant(kind, b); err == nil {
			if req, err := identity.NewRequest(); err == nil {
				_, _ = req.Complete(g)
			}
		}
	})
}

func FuzzNodeRecord(f *testing.F) {
	f.Add(record{Name: "host-1", Addr: "10.0.0.1:7777", Pending: true}.encode())
	f.Add([]byte(`{"name":"x","addr":"[::1]:1","future":[1,2]}`))
	f.Add([]byte(`{"name":"../x","addr":"x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			return
		}
		again, err := decodeRecord(r.encode())
		if err != nil || again != r {
			t.Fatalf("%+v became %+v, %v", r, again, err)
		}
	})
}
