package ublk

import (
	"encoding/hex"
	"testing"
)

// The numbers are those that the kernel's own headers give (a C program that includes linux/ublk_cmd.h prints them).
func TestCommandNumbers(t *testing.T) {
	for got, want := range map[uint32]uint32{
		ctlGetInfo:       0x80207502,
		ctlAdd:           0xc0207504,
		ctlDelete:        0xc0207505,
		ctlStart:         0xc0207506,
		ctlStop:          0xc0207507,
		ctlSetParams:     0xc0207508,
		ctlGetParams:     0x80207509,
		ctlStartRecovery: 0xc0207510,
		ctlEndRecovery:   0xc0207511,
		ctlGetFeatures:   0x80207513,
		ctlDeleteAsync:   0x80207514,
		ctlUpdateSize:    0xc0207515,
		ioFetch:          0xc0107520,
		ioCommit:         0xc0107521,
	} {
		if got != want {
			t.Errorf("%#x, want %#x", got, want)
		}
	}
}

// Golden bytes of a little-endian machine.
func TestEncoding(t *testing.T) {
	if native.Uint16([]byte{1, 0}) != 1 {
		t.Skip("SKIPPED: big-endian")
	}
	ctl := make([]byte, ctlCmdSize)
	(&ctlCmd{device: 7, addr: 0x1122334455667788, len: 64, data: 4711}).encode(ctl)
	io := make([]byte, ioCmdSize)
	encodeIO(io, 5, -5)
	for name, x := range map[string]struct {
		got  []byte
		want string
	}{
		"control": {ctl, "07000000" + "ffff" + "4000" + "8877665544332211" + "6712000000000000" + "0000000000000000"},
		"io":      {io, "0000" + "0500" + "fbffffff" + "0000000000000000"},
		"info": {(&info{queues: 1, depth: 128, state: 2, maxRequest: 512 << 10, device: 3, pid: 99, features: features, cookie: 0xabcdef}).encode(),
			"0100" + "8000" + "0200" + "0000" + "00000800" + "03000000" + "63000000" + "00000000" + "d800000000000000" + "efcdab0000000000" +
				"0000000000000000" + "0000000000000000" + "0000000000000000"},
		"geometry": {geometry{size: 1 << 30, blockSize: 512}.encode(),
			"3c000000" + "03000000" + "0c000000" + "090c0c0c" + "00040000" + "00000000" + "0000200000000000" + "0000000000000000" +
				"00000000" + "00100000" + "00002000" + "00002000" + "0100" + "0000"},
	} {
		if got := hex.EncodeToString(x.got); got != x.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, x.want)
		}
	}
}

func TestDecoding(t *testing.T) {
	i := info{queues: 1, depth: 128, state: stateQuiesced, maxRequest: 512 << 10, device: 3, pid: -1, features: 1 << 40, cookie: 1 << 63}
	if got := decodeInfo(i.encode()); got != i {
		t.Errorf("got %+v, want %+v", got, i)
	}
	for _, g := range []geometry{{1 << 40, 4096}, {512, 512}} {
		if got := decodeGeometry(g.encode()); got != g {
			t.Errorf("got %+v, want %+v", got, g)
		}
	}
	b := make([]byte, descSize)
	native.PutUint32(b, opWrite|flagFUA)
	native.PutUint32(b[4:], 8)
	native.PutUint64(b[8:], 1<<33)
	if got, want := decodeDesc(b), (desc{op: opWrite | flagFUA, off: 1 << 42, bytes: 4096}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got, want := dataOf(3), int64(0x80000000+3*32<<20); got != want {
		t.Errorf("data at %#x, want %#x", got, want)
	}
}
