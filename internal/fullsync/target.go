package fullsync

import (
	"encoding/json"
	"errors"
	"fmt"

	"mars/internal/block"
	"mars/internal/history"
)

// Target is the asking side of a session. Not for concurrent use.
type Target struct {
	conn Conn
	buf  []byte
	// Received counts bytes of content that had to travel.
	Received int64
}

// Open begins a session. A *Refusal is the source's no.
func Open(c Conn, req OpenRequest) (*Target, OpenReply, error) {
	t := &Target{conn: c, buf: make([]byte, chunkSize+4096)}
	var rep OpenReply
	if err := writeJSON(c, frameOpen, req); err != nil {
		return nil, rep, err
	}
	payload, err := t.expect(frameOpenReply)
	if err != nil {
		return nil, rep, err
	}
	if err := json.Unmarshal(payload, &rep); err != nil {
		return nil, rep, fmt.Errorf("sync reply: %w", err)
	}
	if rep.Size < 0 || rep.Size%block.SectorSize != 0 || rep.Start.End < 0 {
		return nil, rep, fmt.Errorf("sync reply with a size of %d bytes and a start at %d", rep.Size, rep.Start.End)
	}
	return t, rep, nil
}

func (t *Target) expect(kind byte) ([]byte, error) {
	k, payload, err := t.conn.ReadFrame(t.buf)
	if err != nil {
		return nil, err
	}
	if k == frameRefusal {
		ref := new(Refusal)
		if err := json.Unmarshal(payload, ref); err != nil {
			return nil, fmt.Errorf("sync refusal frame: %w", err)
		}
		return nil, ref
	}
	if k != kind {
		return nil, fmt.Errorf("sync frame %d instead of %d", k, kind)
	}
	return payload, nil
}

// Range is a part of the volume to be made equal to the source's, and the position that the target has replayed.
type Range struct {
	Off, Len  int64
	Reflected history.LSN
}

// Copy makes the range of disk equal to the source's. All questions of a call are under way at once, so it should be large (tens of MiB).
func (t *Target) Copy(disk block.Device, r Range) error {
	if err := t.ask(disk, r); err != nil {
		return err
	}
	var wants []want
	for off := r.Off; off < r.Off+r.Len; off += chunkSize {
		payload, err := t.expect(frameUnits)
		if err != nil {
			return err
		}
		w, err := t.units(disk, payload, chunk{off, min(chunkSize, r.Off+r.Len-off)})
		if err != nil {
			return err
		}
		wants = append(wants, w...)
	}
	return t.fetchWanted(disk, wants)
}

// ask sends a Compare for every chunk of the range.
func (t *Target) ask(disk block.Device, r Range) error {
	data := make([]byte, chunkSize)
	for off := r.Off; off < r.Off+r.Len; off += chunkSize {
		p := data[:min(chunkSize, r.Off+r.Len-off)]
		c := compare{off: off, n: int64(len(p)), reflected: r.Reflected}
		if err := disk.ReadAt(p, off); err != nil {
			// An unreadable sector is one more thing to repair: it equals nothing.
			clear(p)
			p[0] = 1
		}
		each(p, unitSize, func(_ int, unit []byte) error {
			d := unitSum(unit)
			c.digests = append(c.digests, d[:]...)
			return nil
		})
		if err := errors.Join(t.conn.WriteFrame(frameCompare, c.encode()), t.conn.Flush()); err != nil {
			return err
		}
	}
	return nil
}

type chunk struct{ off, n int64 }

// units applies the answer to a Compare and asks for single blocks where units differ only in parts.
func (t *Target) units(disk block.Device, payload []byte, c chunk) ([]want, error) {
	n := units(c.n)
	if int64(len(payload)) < n {
		return nil, fmt.Errorf("sync answer of %d bytes for %d units", len(payload), n)
	}
	codes, rest := payload[:n], payload[n:]
	var wants []want
	for i, code := range codes {
		off := c.off + int64(i)*unitSize
		size := min(unitSize, c.off+c.n-off)
		need := map[byte]int64{unitData: size, unitDigests: size / blockSize * digestSize}[code]
		if int64(len(rest)) < need || code > unitDigests {
			return nil, fmt.Errorf("sync answer for %d bytes at %d is malformed", size, off)
		}
		w, err := t.unit(disk, code, unitAnswer{off: off, n: size, body: rest[:need]})
		if err != nil {
			return nil, err
		}
		if w != nil {
			wants = append(wants, *w)
		}
		rest = rest[need:]
	}
	return wants, nil
}

type unitAnswer struct {
	off, n int64
	body   []byte
}

func (t *Target) unit(disk block.Device, code byte, a unitAnswer) (*want, error) {
	switch code {
	case unitZero:
		return nil, disk.Discard(a.off, a.n, 0)
	case unitData:
		t.Received += a.n
		return nil, disk.WriteAt(a.body, a.off, 0)
	case unitDigests:
		w, err := differing(disk, a)
		if err != nil || w.bits == 0 {
			return nil, err
		}
		// Flushed at once: the source answers while we go on.
		return &w, errors.Join(t.conn.WriteFrame(frameWant, w.encode()), t.conn.Flush())
	}
	return nil, nil
}

// differing compares a unit block by block.
func differing(disk block.Device, a unitAnswer) (want, error) {
	w := want{off: a.off, n: a.n}
	data := make([]byte, a.n)
	readErr := disk.ReadAt(data, a.off)
	each(data, blockSize, func(i int, b []byte) error {
		if readErr != nil || sum(b) != digest(a.body[i*digestSize:]) {
			w.bits |= 1 << i
		}
		return nil
	})
	return w, nil
}

func (t *Target) fetchWanted(disk block.Device, wants []want) error {
	for _, w := range wants {
		payload, err := t.expect(frameBlocks)
		if err != nil {
			return err
		}
		for i := range unitSize / blockSize {
			if w.bits&(1<<i) == 0 {
				continue
			}
			if len(payload) < blockSize {
				return fmt.Errorf("sync answer for the unit at %d is too short", w.off)
			}
			if err := disk.WriteAt(payload[:blockSize], w.off+int64(i)*blockSize, 0); err != nil {
				return err
			}
			t.Received += blockSize
			payload = payload[blockSize:]
		}
	}
	return nil
}

// Finish asks for the position that the copy may contain; to be called after the last Copy.
func (t *Target) Finish() (history.Position, error) {
	var pos history.Position
	if err := errors.Join(t.conn.WriteFrame(frameFinish), t.conn.Flush()); err != nil {
		return pos, err
	}
	payload, err := t.expect(frameFinished)
	if err != nil {
		return pos, err
	}
	if err := json.Unmarshal(payload, &pos); err != nil {
		return pos, fmt.Errorf("sync finish frame: %w", err)
	}
	return pos, nil
}
