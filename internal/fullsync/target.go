package fullsync

import (
	"mars/internal/block"
	"mars/internal/history"
)

// Target is the asking side of a session. Not for concurrent use. It is a loop around Session that waits for the answers.
type Target struct {
	*Session
	conn Conn
	buf  []byte
}

// Open begins a session. A *Refusal is the source's no.
func Open(c Conn, req OpenRequest) (*Target, OpenReply, error) {
	s, err := Begin(c, req)
	if err != nil {
		return nil, OpenReply{}, err
	}
	t := &Target{Session: s, conn: c, buf: make([]byte, chunkSize+4096)}
	if err := t.await(); err != nil {
		return nil, OpenReply{}, err
	}
	return t, s.reply, nil
}

// await hands frames to the session until what was asked is answered.
func (t *Target) await() error {
	for t.Waiting() {
		kind, payload, err := t.conn.ReadFrame(t.buf)
		if err != nil {
			return err
		}
		if err := t.Frame(kind, payload); err != nil {
			return err
		}
	}
	return nil
}

// Copy makes the range of disk equal to the source's. All questions of a call are under way at once, so it should be large (tens of MiB).
func (t *Target) Copy(disk block.Device, r Range) error {
	if err := t.StartCopy(disk, r); err != nil {
		return err
	}
	return t.await()
}

// Finish asks for the position that the copy may contain; to be called after the last Copy.
func (t *Target) Finish() (history.Position, error) {
	if err := t.StartFinish(); err != nil {
		return history.Position{}, err
	}
	err := t.await()
	return t.until, err
}
