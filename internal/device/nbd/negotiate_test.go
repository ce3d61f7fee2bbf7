package nbd

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

const testSize = 1 << 20

func TestOptionReplies(t *testing.T) {
	t.Parallel()
	_, path := serve(t, Config{Export: "vol", Dev: newBatchDevice(testSize)})
	tests := []struct {
		name       string
		structured bool
		opt        uint32
		data       []byte
		want       uint32
	}{
		{"unknown", false, 4711, nil, repErrUnsup},
		{"unknown with data", false, 4711, make([]byte, maxOptionLen), repErrUnsup},
		{"peek is withdrawn", false, 4, nil, repErrUnsup},
		{"extended headers", false, 11, nil, repErrUnsup},
		{"TLS without configuration", false, optStartTLS, nil, repErrUnsup},
		{"list with data", false, optList, []byte{1}, repErrInvalid},
		{"structured reply with data", false, optStructuredReply, []byte{1}, repErrInvalid},
		{"structured reply", false, optStructuredReply, nil, repAck},
		{"info of another export", false, optInfo, infoData("other"), repErrUnknown},
		{"go to another export", false, optGo, infoData("other"), repErrUnknown},
		{"info without data", false, optInfo, nil, repErrInvalid},
		{"info with half a name", false, optInfo, infoData("vol")[:5], repErrInvalid},
		{"info with a name that claims 4 GiB", false, optInfo, []byte{255, 255, 255, 255, 'v', 0, 0}, repErrInvalid},
		{"info with too few kinds", false, optInfo, []byte{0, 0, 0, 0, 255, 255, 0, 1}, repErrInvalid},
		{"info with a tail", false, optInfo, append(infoData("vol"), 0), repErrInvalid},
		{"set context without structured replies", false, optSetMetaContext, metaData("vol", allocationContext), repErrInvalid},
		{"list contexts without structured replies", false, optListMetaContext, metaData("vol"), repErrInvalid},
		{"list contexts of another export", true, optListMetaContext, metaData("other"), repErrUnknown},
		{"list contexts with 4 G queries", true, optListMetaContext, []byte{0, 0, 0, 0, 255, 255, 255, 255}, repErrInvalid},
		{"list all contexts", true, optListMetaContext, metaData("vol"), repMetaContext},
		{"list a namespace", true, optListMetaContext, metaData("", "base:"), repMetaContext},
		{"list a context", true, optListMetaContext, metaData("", "x:y", allocationContext), repMetaContext},
		{"list another namespace", true, optListMetaContext, metaData("", "qemu:"), repAck},
		{"set a context", true, optSetMetaContext, metaData("vol", allocationContext), repMetaContext},
		{"set a namespace", true, optSetMetaContext, metaData("vol", "base:"), repAck},
		{"set nothing", true, optSetMetaContext, metaData("vol"), repAck},
		{"abort", false, optAbort, nil, repAck},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := connect(t, path)
			c.greet()
			if tt.structured {
				c.expectOption(optStructuredReply, nil, repAck)
			}
			c.expectOption(tt.opt, tt.data, tt.want)
		})
	}
}

func TestNegotiationIsCut(t *testing.T) {
	t.Parallel()
	_, path := serve(t, Config{Export: "vol", Dev: newBatchDevice(testSize)})
	tooLong := binary.BigEndian.AppendUint32(optionBytes(optInfo, nil)[:12], maxOptionLen+1)
	tests := []struct {
		name  string
		flags uint32
		send  []byte
	}{
		{"unknown client flags", 1 << 7, nil},
		{"bad option magic", flagFixedNewstyle, make([]byte, optionHeaderLen)},
		{"option too long", flagFixedNewstyle, tooLong},
		{"old option with another export", flagFixedNewstyle, optionBytes(optExportName, []byte("other"))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := connect(t, path)
			c.greetWith(tt.flags)
			if tt.send != nil {
				c.send(tt.send)
			}
			c.expectClosed()
		})
	}
}

func TestSilentClientIsCutAfterTenSeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Dev: newMemDevice(testSize)})
		ours, theirs := net.Pipe()
		s.start(theirs)
		c := &client{t: t, nc: ours}
		c.greet()
		begin := time.Now()
		c.expectClosed()
		if d := time.Since(begin); d != handshakeTimeout {
			t.Errorf("cut after %v, want %v", d, handshakeTimeout)
		}
		s.Abort()
	})
}

func TestEstablishedClientMayBeSilent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Dev: newMemDevice(testSize)})
		ours, theirs := net.Pipe()
		s.start(theirs)
		c := &client{t: t, nc: ours}
		c.greet()
		c.start("")
		<-time.After(24 * time.Hour) // of the bubble's time
		if got := c.read(0, 512); len(got) != 512 {
			t.Errorf("read %d bytes", len(got))
		}
		s.Abort()
	})
}

func TestExportName(t *testing.T) {
	t.Parallel()
	_, path := serve(t, Config{Export: "vol", Dev: newBatchDevice(testSize)})
	for _, tt := range []struct {
		name    string
		flags   uint32
		replies int
	}{
		{"with zeroes", flagFixedNewstyle, 134},
		{"without zeroes", flagFixedNewstyle | flagNoZeroes, 10},
		{"not even fixed", 0, 134},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := connect(t, path)
			c.greetWith(tt.flags)
			c.option(optExportName, []byte("vol"))
			b := c.recv(tt.replies)
			if size := binary.BigEndian.Uint64(b); size != testSize {
				t.Errorf("size is %d", size)
			}
			c.write(4096, bytes.Repeat([]byte{7}, 512))
		})
	}
}

func TestInfo(t *testing.T) {
	t.Parallel()
	_, path := serve(t, Config{Export: "vol", Dev: newBatchDevice(testSize + 100)})
	c := connect(t, path)
	c.greet()
	c.option(optInfo, infoData("", infoName, infoBlockSize, 99))
	want := [][]byte{
		{0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0x09, 0x6d}, // whole sectors; flags
		{0, 1, 'v', 'o', 'l'},                         // the real name
		{0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 2, 0, 0, 0}, // 512, 4096, 32 MiB
		nil,
	}
	for i, w := range want {
		kind, data := c.optionReply()
		if !bytes.Equal(data, w) || (kind == repAck) != (w == nil) {
			t.Errorf("reply %d: %#x %x, want %x", i, kind, data, w)
		}
	}
}

func TestExportFlags(t *testing.T) {
	t.Parallel()
	const always = flagHasFlags | flagFlush | flagFUA | flagTrim | flagWriteZeroes | flagFastZero | flagCanMultiConn
	for _, tt := range []struct {
		name       string
		readOnly   bool
		structured bool
		want       uint16
	}{
		{"simple", false, false, always},
		{"structured", false, true, always | flagDF},
		{"read only", true, false, always | flagReadOnly},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, path := serve(t, Config{Export: "vol", Dev: newBatchDevice(testSize), ReadOnly: tt.readOnly})
			c := connect(t, path)
			c.greet()
			if tt.structured {
				c.expectOption(optStructuredReply, nil, repAck)
			}
			if size, flags := c.start("vol"); size != testSize || flags != tt.want {
				t.Errorf("size %d, flags %#x, want %#x", size, flags, tt.want)
			}
		})
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	_, path := serve(t, Config{Export: "vol", Dev: newBatchDevice(testSize)})
	c := connect(t, path)
	c.greet()
	c.option(optList, nil)
	if kind, data := c.optionReply(); kind != repServer || string(data) != "\x00\x00\x00\x03vol" {
		t.Errorf("reply %#x %q", kind, data)
	}
	if kind, _ := c.optionReply(); kind != repAck {
		t.Errorf("reply %#x", kind)
	}
}

func TestNoContextWithoutExtentMapper(t *testing.T) {
	t.Parallel()
	_, path := serve(t, Config{Dev: plainDevice{newMemDevice(testSize)}})
	c := connect(t, path)
	c.greet()
	c.expectOption(optStructuredReply, nil, repAck)
	c.expectOption(optListMetaContext, metaData(""), repAck)
	c.expectOption(optSetMetaContext, metaData("", allocationContext), repAck)
}

func TestAFailedSelectionReplacesTheOneBefore(t *testing.T) {
	t.Parallel()
	_, path := serve(t, Config{Dev: newMemDevice(testSize)})
	c := connect(t, path)
	c.greet()
	c.expectOption(optStructuredReply, nil, repAck)
	c.structured = true
	c.option(optSetMetaContext, metaData("", allocationContext))
	c.optionReply()
	c.optionReply()
	c.expectOption(optSetMetaContext, metaData("other", allocationContext), repErrUnknown)
	c.start("")
	if a := c.do(header{cmd: cmdBlockStatus, length: 4096}, nil); a.errno != errnoInvalid {
		t.Errorf("block status: error %d, want %d", a.errno, errnoInvalid)
	}
}
