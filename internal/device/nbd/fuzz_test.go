package nbd

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"
	"time"
)

// script is a net.Conn whose peer sends a given stream and takes everything.
type script struct{ *bytes.Reader }

func (script) Write(p []byte) (int, error)      { return len(p), nil }
func (script) Close() error                     { return nil }
func (script) LocalAddr() net.Addr              { return &net.UnixAddr{Name: "server", Net: "unix"} }
func (script) RemoteAddr() net.Addr             { return &net.UnixAddr{Name: "client", Net: "unix"} }
func (script) SetDeadline(time.Time) error      { return nil }
func (script) SetReadDeadline(time.Time) error  { return nil }
func (script) SetWriteDeadline(time.Time) error { return nil }

// FuzzSession sends anything to a server: it must not panic nor hang, must not exceed its memory, and must have given all of it back.
func FuzzSession(f *testing.F) {
	flags := binary.BigEndian.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes)
	seed := func(parts ...[]byte) { f.Add(bytes.Join(append([][]byte{flags}, parts...), nil)) }
	structured := optionBytes(optStructuredReply, nil)
	context := optionBytes(optSetMetaContext, metaData("vol", allocationContext, "a:b"))
	start := optionBytes(optGo, infoData("vol", infoName, infoBlockSize))
	read := requestBytes(header{cmd: cmdRead, cookie: 1, length: 4096}, nil)
	write := requestBytes(header{cmd: cmdWrite, flags: cmdFlagFUA, cookie: 2, length: 512}, make([]byte, 512))

	seed(optionBytes(optList, nil), optionBytes(optAbort, nil))
	seed(optionBytes(optInfo, infoData("vol", infoName)), optionBytes(99, []byte("x")))
	seed(optionBytes(optExportName, []byte("vol")), write, read)
	seed(structured, optionBytes(optListMetaContext, metaData("vol")), context, start,
		requestBytes(header{cmd: cmdBlockStatus, flags: cmdFlagReqOne, length: testSize}, nil), read)
	seed(start, write, write, read, requestBytes(header{cmd: cmdFlush}, nil), requestBytes(header{cmd: cmdDisc}, nil))
	seed(start, requestBytes(header{cmd: cmdTrim, length: 4096}, nil), requestBytes(header{cmd: cmdWriteZeroes, length: 512}, nil))
	seed(start, requestBytes(header{cmd: cmdWrite, length: 1000}, make([]byte, 1000)), write[:100])
	seed(start, requestBytes(header{cmd: cmdWrite, length: 1 << 31}, nil))

	f.Fuzz(func(t *testing.T, stream []byte) {
		dev := nowaitDevice{newBatchDevice(64 << 10)}
		s := New(Config{Export: "vol", Dev: dev, MaxMemory: 1 << 20})
		c := newConn(s, script{bytes.NewReader(stream)})
		_ = c.run() // however it ends
		s.Abort()
		if s.inUse() != 0 || c.share.held != 0 {
			t.Errorf("%d bytes of payload memory are still in use", s.inUse())
		}
		dev.wg.Wait()
	})
}
