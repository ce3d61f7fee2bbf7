package nbd

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"mars/internal/block"
)

func TestRequestErrors(t *testing.T) {
	t.Parallel()
	const past = testSize - 512
	tests := []struct {
		name string
		h    header
		want errno
	}{
		{"read", header{cmd: cmdRead, length: 512}, 0},
		{"read to the end", header{cmd: cmdRead, off: past, length: 512}, 0},
		{"read with FUA", header{cmd: cmdRead, flags: cmdFlagFUA, length: 512}, 0},
		{"read with DF", header{cmd: cmdRead, flags: cmdFlagDF, length: 4096}, 0},
		{"read at an odd offset", header{cmd: cmdRead, off: 1, length: 512}, errnoInvalid},
		{"read of an odd length", header{cmd: cmdRead, length: 511}, errnoInvalid},
		{"read of nothing", header{cmd: cmdRead}, errnoInvalid},
		{"read past the end", header{cmd: cmdRead, off: past, length: 1024}, errnoInvalid},
		{"read from 2^63", header{cmd: cmdRead, off: 1 << 63, length: 512}, errnoInvalid},
		{"read that wraps around", header{cmd: cmdRead, off: 1<<64 - 512, length: 1024}, errnoInvalid},
		{"read too large", header{cmd: cmdRead, length: block.MaxRequest + 512}, errnoInvalid},
		{"read too large with DF", header{cmd: cmdRead, flags: cmdFlagDF, length: block.MaxRequest + 512}, errnoOverflow},
		{"read with a wrong flag", header{cmd: cmdRead, flags: cmdFlagNoHole, length: 512}, errnoInvalid},
		{"write", header{cmd: cmdWrite, length: 512}, 0},
		{"write with FUA", header{cmd: cmdWrite, flags: cmdFlagFUA, length: 512}, 0},
		{"write at an odd offset", header{cmd: cmdWrite, off: 1, length: 512}, errnoInvalid},
		{"write of an odd length", header{cmd: cmdWrite, length: 1000}, errnoInvalid},
		{"write of nothing", header{cmd: cmdWrite}, errnoInvalid},
		{"write past the end", header{cmd: cmdWrite, off: past, length: 1024}, errnoNoSpace},
		{"write to 2^63", header{cmd: cmdWrite, off: 1 << 63, length: 512}, errnoNoSpace},
		{"write with a wrong flag", header{cmd: cmdWrite, flags: 1 << 9, length: 512}, errnoInvalid},
		{"write too large", header{cmd: cmdWrite, length: block.MaxRequest + 512}, errnoInvalid},
		{"flush", header{cmd: cmdFlush}, 0},
		{"flush of a range", header{cmd: cmdFlush, length: 512}, errnoInvalid},
		{"flush at an offset", header{cmd: cmdFlush, off: 512}, errnoInvalid},
		{"trim", header{cmd: cmdTrim, length: testSize}, 0},
		{"trim past the end", header{cmd: cmdTrim, length: testSize + 512}, errnoNoSpace},
		{"trim of an odd length", header{cmd: cmdTrim, length: 1}, errnoInvalid},
		{"trim of nothing", header{cmd: cmdTrim}, errnoInvalid},
		{"zeroes", header{cmd: cmdWriteZeroes, flags: cmdFlagNoHole | cmdFlagFastZero | cmdFlagFUA, length: testSize}, 0},
		{"zeroes past the end", header{cmd: cmdWriteZeroes, off: past, length: 1 << 31}, errnoNoSpace},
		{"status past the end", header{cmd: cmdBlockStatus, length: testSize + 512}, errnoInvalid},
		{"cache", header{cmd: 5, length: 512}, errnoInvalid},
		{"unknown", header{cmd: 8}, errnoInvalid},
		{"unknown, the last", header{cmd: 0xffff, flags: 0xffff, off: 1<<64 - 1, length: 1<<32 - 1}, errnoInvalid},
	}
	for _, structured := range []bool{false, true} {
		_, path := serve(t, Config{Dev: newBatchDevice(testSize)})
		c := open(t, path, structured)
		for _, tt := range tests {
			var payload []byte
			if tt.h.cmd == cmdWrite {
				payload = make([]byte, tt.h.length)
			}
			if a := c.do(tt.h, payload); a.errno != tt.want {
				t.Errorf("structured=%v %s: error %d, want %d", structured, tt.name, a.errno, tt.want)
			}
		}
	}
}

func TestReadOnly(t *testing.T) {
	t.Parallel()
	_, path := serve(t, Config{Dev: newBatchDevice(testSize), ReadOnly: true})
	c := open(t, path, false)
	for _, cmd := range []uint16{cmdWrite, cmdTrim, cmdWriteZeroes} {
		var payload []byte
		if cmd == cmdWrite {
			payload = make([]byte, 512)
		}
		if a := c.do(header{cmd: cmd, length: 512}, payload); a.errno != errnoPerm {
			t.Errorf("command %d: error %d, want %d", cmd, a.errno, errnoPerm)
		}
	}
	c.must(header{cmd: cmdFlush}, nil)
	c.read(0, 512)
}

func TestDeviceErrors(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err         error
		read, write errno
	}{
		{io.ErrUnexpectedEOF, errnoIO, errnoIO},
		{block.ErrAlign, errnoInvalid, errnoInvalid},
		{block.ErrRange, errnoInvalid, errnoNoSpace},
		{block.ErrNoSpace, errnoNoSpace, errnoNoSpace},
		{block.ErrReadOnly, errnoPerm, errnoPerm},
		{block.ErrClosed, errnoShutdown, errnoShutdown},
		{block.ErrNotFast, errnoNotSup, errnoNotSup},
	} {
		for _, structured := range []bool{false, true} {
			dev := newBatchDevice(testSize)
			_, path := serve(t, Config{Dev: dev})
			c := open(t, path, structured)
			dev.setFailure(fmt.Errorf("wrapped: %w", tt.err))
			if a := c.do(header{cmd: cmdRead, length: 512}, nil); a.errno != tt.read {
				t.Errorf("%v: read error %d, want %d", tt.err, a.errno, tt.read)
			}
			if a := c.do(header{cmd: cmdWrite, length: 512}, make([]byte, 512)); a.errno != tt.write {
				t.Errorf("%v: write error %d, want %d", tt.err, a.errno, tt.write)
			}
			dev.setFailure(nil)
			c.write(0, make([]byte, 512)) // the connection is still good
		}
	}
}

// TestRepliesByteForByte keeps the encoding right, which the test client shares with the server.
func TestRepliesByteForByte(t *testing.T) {
	t.Parallel()
	const cookie = "0123456789abcdef"
	tests := []struct {
		name       string
		structured bool
		h          header
		want       string
	}{
		{"simple read error", false, header{cmd: cmdRead, off: 1, length: 512}, "67446698" + "00000016" + cookie},
		{"flush", true, header{cmd: cmdFlush}, "67446698" + "00000000" + cookie},
		{"structured read error", true, header{cmd: cmdRead, off: 1, length: 512},
			"668e33ef" + "0001" + "8001" + cookie + "00000006" + "00000016" + "0000"},
		{"structured read", true, header{cmd: cmdRead, off: 512, length: 512},
			"668e33ef" + "0001" + "0001" + cookie + "00000208" + "0000000000000200" + "aabb"},
		{"simple read", false, header{cmd: cmdRead, off: 512, length: 512}, "67446698" + "00000000" + cookie + "aabb"},
		{"block status", true, header{cmd: cmdBlockStatus, off: 0, length: 12288},
			"668e33ef" + "0001" + "0005" + cookie + "00000014" + "00000001" + "00001000" + "00000000" + "00002000" + "00000003"},
		{"block status of one", true, header{cmd: cmdBlockStatus, flags: cmdFlagReqOne, off: 4096, length: 4096},
			"668e33ef" + "0001" + "0005" + cookie + "0000000c" + "00000001" + "00001000" + "00000003"},
	}
	dev := newBatchDevice(testSize)
	dev.data[512], dev.data[513] = 0xaa, 0xbb
	_, path := serve(t, Config{Dev: dev})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := open(t, path, tt.structured)
			tt.h.cookie = 0x0123456789abcdef
			c.send(requestBytes(tt.h, nil))
			if got := hex.EncodeToString(c.recv(len(tt.want) / 2)); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestFlagsReachTheDevice(t *testing.T) {
	t.Parallel()
	for _, plain := range []bool{false, true} {
		mem := newBatchDevice(testSize)
		cfg := Config{Dev: mem}
		if plain {
			cfg.Dev = plainDevice{mem}
		}
		_, path := serve(t, cfg)
		c := open(t, path, false)
		c.must(header{cmd: cmdWrite, length: 512}, make([]byte, 512))
		c.must(header{cmd: cmdWrite, flags: cmdFlagFUA, length: 512}, make([]byte, 512))
		c.must(header{cmd: cmdTrim, flags: cmdFlagFUA, length: 512}, nil)
		c.must(header{cmd: cmdWriteZeroes, flags: cmdFlagNoHole, length: 512}, nil)
		c.must(header{cmd: cmdWriteZeroes, flags: cmdFlagFastZero | cmdFlagFUA, length: 512}, nil)
		c.must(header{cmd: cmdFlush}, nil)
		want := []block.Flags{0, block.FUA, block.FUA, block.NoHole, block.FastZero | block.FUA}
		if !slices.Equal(mem.flags, want) || mem.flushes != 1 {
			t.Errorf("plain=%v: flags %v, want %v; %d flushes", plain, mem.flags, want, mem.flushes)
		}
	}
}

func TestRequestsThatArriveTogetherMakeOneBatch(t *testing.T) {
	t.Parallel()
	dev := newBatchDevice(testSize)
	_, path := serve(t, Config{Dev: dev})
	c := open(t, path, false)
	var burst []byte
	for i := range uint64(32) {
		h := header{cmd: cmdWrite, cookie: i, off: i * 512, length: 512}
		burst = append(burst, requestBytes(h, bytes.Repeat([]byte{byte(i + 1)}, 512))...)
	}
	c.send(burst)
	for i := range uint64(32) {
		if a := c.reply(0); a.cookie != i || a.errno != 0 {
			t.Errorf("reply %d: cookie %d, error %d", i, a.cookie, a.errno)
		}
	}
	if !slices.Equal(dev.batches, []int{32}) {
		t.Errorf("batches of %v, want one of 32", dev.batches)
	}
	for i := range 32 {
		if got := dev.data[i*512]; got != byte(i+1) {
			t.Errorf("sector %d holds %d", i, got)
		}
	}
}

// TestRandomRequests runs random requests, many in flight on several connections, against a device of each kind and compares with a model.
// Each connection has its own part of the device, and a request touches a block that no other in flight touches.
func TestRandomRequests(t *testing.T) {
	t.Parallel()
	devices := map[string]func() block.Device{
		"plain":  func() block.Device { return plainDevice{newMemDevice(testSize)} },
		"batch":  func() block.Device { return newBatchDevice(testSize) },
		"nowait": func() block.Device { return nowaitDevice{newBatchDevice(testSize)} },
	}
	for name, newDevice := range devices {
		for _, structured := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/structured=%v", name, structured), func(t *testing.T) {
				t.Parallel()
				_, path := serve(t, Config{Dev: newDevice(), ReadWorkers: 3})
				seed := rand.Uint64()
				t.Logf("seed %d", seed)
				done := make(chan struct{})
				for i := range uint64(2) {
					m := &model{
						c: open(t, path, structured), rng: rand.New(rand.NewPCG(seed, i)),
						base: i * testSize / 2, state: make([]byte, 32),
					}
					go func() {
						defer func() { done <- struct{}{} }()
						m.run(60)
					}()
				}
				<-done
				<-done
			})
		}
	}
}

// model drives one client with rounds of random requests. The device is seen as blocks that are filled with one byte each.
type model struct {
	c     *client
	rng   *rand.Rand
	base  uint64
	state []byte // what each block holds
}

const modelBlock = testSize / 2 / 32

func (m *model) run(rounds int) {
	for range rounds {
		blocks := m.rng.Perm(len(m.state))[:1+m.rng.IntN(len(m.state)-1)]
		var burst []byte
		expect := make(map[uint64]int) // cookie -> length of the data; 0: none
		for _, b := range blocks {
			h, payload := m.request(b)
			burst = append(burst, requestBytes(h, payload)...)
			expect[h.cookie] = 0
			if h.cmd == cmdRead {
				expect[h.cookie] = int(h.length)
			}
		}
		m.c.renew()
		sent := make(chan struct{})
		go func() { // ends when the server has taken the burst
			defer close(sent)
			_, _ = m.c.nc.Write(burst) // a failure shows in the replies
		}()
		m.check(expect)
		<-sent
	}
}

// request makes up a request for block b and notes its effect.
func (m *model) request(b int) (header, []byte) {
	h := header{cookie: uint64(b), off: m.base + uint64(b)*modelBlock, length: modelBlock}
	switch m.rng.IntN(5) {
	case 0:
		h.cmd, m.state[b] = cmdTrim, 0
	case 1:
		h.cmd, m.state[b] = cmdWriteZeroes, 0
	case 2:
		h.cmd, m.state[b] = cmdWrite, byte(m.rng.Uint32())
		h.flags = uint16(m.rng.IntN(2)) * cmdFlagFUA
		return h, bytes.Repeat([]byte{m.state[b]}, modelBlock)
	default:
		h.cmd = cmdRead
	}
	return h, nil
}

// check receives the replies to a round; reads must show the state before the round, which for their blocks is the state after it.
func (m *model) check(expect map[uint64]int) {
	for len(expect) > 0 {
		a, ok := m.receive(expect)
		if !ok {
			return
		}
		n, known := expect[a.cookie]
		delete(expect, a.cookie)
		if !known || a.errno != 0 || len(a.data) != n {
			m.c.t.Errorf("reply to %d: error %d, %d bytes of data, want %d", a.cookie, a.errno, len(a.data), n)
			return
		}
		if want := bytes.Repeat([]byte{m.state[a.cookie]}, n); !bytes.Equal(a.data, want) {
			m.c.t.Errorf("block %d reads as %x..., want %x", a.cookie, a.data[:8], want[:8])
		}
	}
}

// receive is client.reply for replies in any order: only the cookie tells how much data follows.
func (m *model) receive(expect map[uint64]int) (answer, bool) {
	if m.c.structured {
		return m.c.reply(0), true
	}
	var b [simpleHeaderLen]byte
	if _, err := io.ReadFull(m.c.nc, b[:]); err != nil {
		m.c.t.Errorf("receive: %v", err)
		return answer{}, false
	}
	a := answer{cookie: uint64(b[15]), errno: errno(b[7])}
	a.data = make([]byte, expect[a.cookie])
	_, err := io.ReadFull(m.c.nc, a.data)
	return a, err == nil
}

func TestNewSizeIsUsableAtOnce(t *testing.T) {
	t.Parallel()
	dev := newBatchDevice(testSize)
	_, path := serve(t, Config{Dev: dev})
	c := open(t, path, false)
	if a := c.do(header{cmd: cmdRead, off: testSize, length: 512}, nil); a.errno != errnoInvalid {
		t.Fatalf("error %d before the device has grown", a.errno)
	}
	dev.grow(4096)
	c.write(testSize, bytes.Repeat([]byte{9}, 4096))
	if got := c.read(testSize, 512); got[0] != 9 {
		t.Errorf("read %d", got[0])
	}
	late := connect(t, path)
	late.greet()
	if size, _ := late.start(""); size != testSize+4096 {
		t.Errorf("a new connection sees %d bytes", size)
	}
}

func TestDisconnectWaitsForReplies(t *testing.T) {
	t.Parallel()
	dev := newStuckDevice(testSize)
	s, path := serve(t, Config{Dev: dev})
	c := open(t, path, false)
	c.send(requestBytes(header{cmd: cmdWrite, cookie: 1, length: 512}, make([]byte, 512)))
	c.send(requestBytes(header{cmd: cmdFlush, cookie: 2}, nil))
	c.send(requestBytes(header{cmd: cmdDisc}, nil))
	if got := len(s.Clients()); got != 1 {
		t.Errorf("%d clients while requests are in flight", got)
	}
	close(dev.gate)
	if sum := c.reply(0).cookie + c.reply(0).cookie; sum != 3 {
		t.Errorf("sum of the cookies is %d", sum)
	}
	c.expectClosed()
	waitFor(t, "the client to be gone", func() bool { return len(s.Clients()) == 0 })
}

func TestOneConnectionSeesAndFlushesWhatAnotherWrote(t *testing.T) {
	t.Parallel()
	dev := newBatchDevice(testSize)
	_, path := serve(t, Config{Dev: dev})
	a, b := open(t, path, false), open(t, path, true)
	a.write(8192, bytes.Repeat([]byte{5}, 4096))
	if got := b.read(8192, 4096); got[4095] != 5 {
		t.Errorf("read %d", got[4095])
	}
	b.must(header{cmd: cmdFlush}, nil)
	if dev.flushes != 1 {
		t.Errorf("%d flushes", dev.flushes)
	}
}

func TestBlockStatusIsBounded(t *testing.T) {
	t.Parallel()
	dev := newMemDevice(2 * (maxExtents + 10) * 4096)
	for off := 0; off < len(dev.data); off += 8192 {
		dev.data[off] = 1
	}
	_, path := serve(t, Config{Dev: dev})
	c := open(t, path, true)
	got := c.must(header{cmd: cmdBlockStatus, length: uint32(len(dev.data))}, nil)
	if len(got) != 4+8*maxExtents {
		t.Errorf("%d bytes of extents, want %d", len(got), 4+8*maxExtents)
	}
}
