package knbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"
)

// The bytes of a request, as the kernel's headers describe them, on a machine with any order of bytes.
func TestRequestBytes(t *testing.T) {
	u16, u32, u64 := binary.NativeEndian.AppendUint16, binary.NativeEndian.AppendUint32, binary.NativeEndian.AppendUint64
	attrs := appendSocket(appendString(appendUint64(appendUint32(nil, attrIndex, 7), attrSize, 1<<33), attrBackend, "mars"), 5)
	m := message{kind: 0x1c, seq: 3, cmd: cmdReconfigure, attrs: attrs}

	want := u32(nil, 68)
	want = u16(u16(want, 0x1c), 5)
	want = u32(u32(want, 3), 0)
	want = append(want, 3, 1, 0, 0)
	want = u32(u16(u16(want, 8), 1), 7)
	want = u64(u16(u16(want, 12), 2), 1<<33)
	want = append(u16(u16(want, 9), 10), 'm', 'a', 'r', 's', 0, 0, 0, 0)
	want = u16(u16(want, 16), 0x8007)
	want = u16(u16(want, 12), 0x8001)
	want = u32(u16(u16(want, 8), 1), 5)
	if got := m.append(nil); !bytes.Equal(got, want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
}

func TestAttributesRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		values := map[uint16][]byte{}
		var b []byte
		for range rng.IntN(8) {
			kind := uint16(1 + rng.IntN(20))
			v := make([]byte, rng.IntN(40))
			for i := range v {
				v[i] = byte(rng.Uint32())
			}
			if values[kind] == nil {
				values[kind] = v
			}
			b = appendAttr(b, kind, v)
		}
		for kind := range uint16(22) {
			got, err := findAttr(b, kind)
			if err != nil || !bytes.Equal(got, values[kind]) {
				t.Fatalf("attribute %d: got %x, %v, want %x", kind, got, err, values[kind])
			}
		}
	}
}

// answer makes a message as the kernel sends it.
func answer(kind uint16, seq uint32, body []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(messageHeaderLen+len(body)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, 0)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	return append(b, body...)
}

func ack(seq uint32, errno syscall.Errno) []byte {
	return answer(typeError, seq, append(binary.NativeEndian.AppendUint32(nil, uint32(-int32(errno))), make([]byte, messageHeaderLen)...))
}

func TestAnswers(t *testing.T) {
	reply := answer(0x1c, 1, appendUint32([]byte{cmdConnect, 1, 0, 0}, attrIndex, 42))
	for _, tc := range []struct {
		name  string
		bytes []byte
		done  bool
		err   error
		index uint32
	}{
		{"reply and end in one", append(bytes.Clone(reply), ack(1, 0)...), true, nil, 42},
		{"reply alone", reply, false, nil, 42},
		{"refused", ack(1, syscall.EBUSY), true, syscall.EBUSY, 0},
		{"of an earlier conversation", append(ack(0, syscall.EPERM), ack(1, 0)...), true, nil, 0},
		{"cut in the header", reply[:7], false, errNetlink, 0},
		{"cut in the body", reply[:messageHeaderLen+6], false, errNetlink, 0},
		{"without a generic header", answer(0x1c, 1, []byte{1}), false, errNetlink, 0},
		{"with a length of nothing", make([]byte, messageHeaderLen), false, errNetlink, 0},
	} {
		m, got := message{kind: 0x1c, seq: 1}, message{}
		done, err := m.take(&got, tc.bytes)
		if done != tc.done || !errors.Is(err, tc.err) {
			t.Errorf("%s: done %v, %v", tc.name, done, err)
		}
		if tc.index != 0 {
			if index, err := findUint(got.attrs, attrIndex); err != nil || index != tc.index {
				t.Errorf("%s: index %d, %v", tc.name, index, err)
			}
		}
	}
}

// The decoder takes any bytes: no panic, no endless loop, nothing from outside of what it was given.
func FuzzAnswer(f *testing.F) {
	f.Add(append(answer(0x1c, 1, appendUint32([]byte{1, 1, 0, 0}, attrIndex, 42)), ack(1, 0)...))
	f.Add(ack(1, syscall.EINVAL))
	f.Add(answer(0x1c, 1, append([]byte{1, 1, 0, 0}, appendSocket(nil, 3)...)))
	f.Add(answer(0x1c, 1, []byte{1, 1, 0, 0, 3, 0}))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, got := message{seq: 1}, message{}
		if _, err := m.take(&got, b); err != nil {
			return
		}
		if len(got.attrs) > len(b) {
			t.Errorf("%d bytes of attributes out of %d", len(got.attrs), len(b))
		}
		for kind := range uint16(12) {
			v, err := findAttr(got.attrs, kind)
			if err == nil && len(v) > len(got.attrs) {
				t.Errorf("attribute of %d bytes out of %d", len(v), len(got.attrs))
			}
			_, _ = findUint(got.attrs, kind) // must not panic
		}
	})
}

// The kernel's controller is there on every machine: it must understand us, and we it.
func TestController(t *testing.T) {
	ask := message{kind: typeControl, cmd: controlGetFamily, attrs: appendString(nil, controlFamilyName, "nlctrl")}
	got, err := ask.converse()
	if err != nil {
		t.Fatal(err)
	}
	if id, err := findUint(got.attrs, controlFamilyID); err != nil || id != typeControl {
		t.Errorf("family %d, %v, want %d", id, err, typeControl)
	}
	ask.attrs = appendString(nil, controlFamilyName, "no-such-family")
	if _, err := ask.converse(); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("a family that does not exist: %v", err)
	}
}
