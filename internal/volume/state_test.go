package volume

import (
	"encoding/json"
	"errors"
	"hash/crc32"
	"reflect"
	"testing"

	"mars/internal/history"
	"mars/internal/vfs/crashfs"
)

func seal(body []byte) []byte {
	b, _ := json.Marshal(envelope{CRC32C: crc32.Checksum(body, castagnoli), State: body})
	return b
}

// TestStateRoundTrip: what is saved is loaded.
func TestStateRoundTrip(t *testing.T) {
	cfg := Config{FS: crashfs.New(), Dir: "."}
	tl := history.Timeline{ID: 1 << 63, No: 1, Origin: "n<&>ö", Digest: history.Digest{1}}
	pos := history.Position{Timeline: 1 << 63, LSN: 96, Digest: history.Digest{2}}
	st := state{Version: stateVersion, Size: 512, Applied: history.Path{Timelines: []history.Timeline{tl}, End: 96, EndDigest: pos.Digest},
		AppliedStamp: 4, Dirty: pos, Durable: 6, Tenure: 7, Sync: &SyncState{Done: 512, Copied: true, Until: &pos, Seen: []history.Position{pos}}}
	must(t, st.save(cfg))
	got, err := loadState(cfg)
	if err != nil || !reflect.DeepEqual(got, st) {
		t.Fatalf("%+v, want %+v (%v)", got, st, err)
	}
}

// TestStateDamage: every changed byte is noticed.
func TestStateDamage(t *testing.T) {
	good := seal([]byte(`{"version":1,"size":512,"applied":{"timelines":null,"end":0,"end_digest":"00000000000000000000000000000000","last_data":0}}`))
	if _, err := decodeState(good); err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := append([]byte(nil), good...)
		bad[i] ^= 1
		if st, err := decodeState(bad); err == nil {
			want, _ := decodeState(good)
			if !reflect.DeepEqual(st, want) {
				t.Errorf("byte %d changed unnoticed: %s", i, bad)
			}
		}
	}
	for _, body := range []string{`{}`, `{"version":2}`, `{"version":1,"size":-512}`, `{"version":1,"size":511}`,
		`{"version":1,"applied":{"end":5}}`, `{"version":1,"sync":{"copied":true}}`, `{"version":1,"sync":{"done":-1}}`, `null`, `[]`} {
		if st, err := decodeState(seal([]byte(body))); err == nil {
			t.Errorf("%s: %+v", body, st)
		}
	}
}

// FuzzState: whatever the file holds, it is refused or can be used.
func FuzzState(f *testing.F) {
	f.Add([]byte(`{"version":1,"size":512,"sync":{"done":512,"copied":true,"until":{"lsn":7}}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if !json.Valid(body) {
			decodeState(body)
			return
		}
		st, err := decodeState(seal(body))
		if err != nil {
			return
		}
		st.recoverable(&st.Applied)
		if st.Sync != nil && st.Sync.Copied {
			st.Sync.reached(&st.Applied)
			st.Sync.strange(&st.Applied)
		}
		st.clone()
	})
}

// TestStateIsDurableBeforeItIsUsed: a process is killed anywhere, the next one opens what it finds and deletes the log below its checkpoint,
// then the power is cut. What the second one has found is still there.
func TestStateIsDurableBeforeItIsUsed(t *testing.T) {
	for k := 0; ; k++ {
		a := newApp(1)
		a.stopAt(k)
		err := a.create()
		for range 12 {
			if err == nil {
				err = errors.Join(a.modify(), a.drain())
			}
		}
		a.end(killed, nil)
		v, openErr := Open(a.cfg)
		if errors.Is(openErr, ErrNoReplica) && a.acked == 0 {
			continue
		}
		must(t, openErr)
		_, deleteErr := v.Log().DeleteBelow(v.Checkpointed())
		must(t, deleteErr)
		a.durable = a.acked // Open has made the log durable
		a.end(powerLosingAll, nil)
		if err := a.recoverAndCheck(powerLosingAll); err != nil {
			t.Fatalf("killed at operation %d: %v", k, err)
		}
		if err == nil {
			return
		}
	}
}
