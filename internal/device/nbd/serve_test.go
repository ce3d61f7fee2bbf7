package nbd

import (
	"os"
	"os/signal"
	"runtime/pprof"
	"testing"

	"mars/internal/block"
)

// fastDevice is as fast as memory, without locks: it shows what the server itself costs.
type fastDevice struct {
	data     []byte
	waitRead bool // pretend that reads would have to wait
}

func (d *fastDevice) Size() int64                      { return int64(len(d.data)) }
func (d *fastDevice) ReadAt(p []byte, off int64) error { copy(p, d.data[off:]); return nil }
func (d *fastDevice) Flush() error                     { return nil }
func (d *fastDevice) Discard(off, n int64, _ block.Flags) error {
	clear(d.data[off : off+n])
	return nil
}

func (d *fastDevice) WriteAt(p []byte, off int64, _ block.Flags) error {
	copy(d.data[off:], p)
	return nil
}

func (d *fastDevice) WriteZeroes(off, n int64, _ block.Flags) error {
	clear(d.data[off : off+n])
	return nil
}

func (d *fastDevice) ReadAtNowait(p []byte, off int64) (bool, error) {
	if d.waitRead {
		return false, nil
	}
	return true, d.ReadAt(p, off)
}

func (d *fastDevice) Submit(reqs []*block.Request) {
	for _, r := range reqs {
		switch r.Op {
		case block.OpWrite:
			copy(d.data[r.Off:], r.Data)
		case block.OpDiscard, block.OpWriteZeroes:
			clear(d.data[r.Off : r.Off+r.Len])
		}
		r.Done(nil)
	}
}

// TestServeByHand serves a device in memory at the socket named by MARS_NBD_SERVE until it is interrupted, for measurements:
//
//	MARS_NBD_SERVE=/tmp/s go test -run ServeByHand -timeout 0 ./internal/device/nbd &
//	fio --name=x --ioengine=nbd --uri='nbd+unix:///?socket=/tmp/s' --rw=randwrite --bs=4k --iodepth=32 --time_based --runtime=10
//
// With MARS_NBD_PROFILE a CPU profile is written there, with MARS_NBD_DEVICE=wait reads are made to wait, =plain nothing optional is there.
func TestServeByHand(t *testing.T) {
	path := os.Getenv("MARS_NBD_SERVE")
	if path == "" {
		t.Skip("SKIPPED: MARS_NBD_SERVE is not set; for measurements by hand")
	}
	var dev block.Device = &fastDevice{data: make([]byte, 1<<30), waitRead: os.Getenv("MARS_NBD_DEVICE") == "wait"}
	if os.Getenv("MARS_NBD_DEVICE") == "plain" {
		dev = plainDevice{dev}
	}
	f, err := Show(Config{Dev: dev}, path)
	if err != nil {
		t.Fatal(err)
	}
	if name := os.Getenv("MARS_NBD_PROFILE"); name != "" {
		out, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := pprof.StartCPUProfile(out); err != nil {
			t.Fatal(err)
		}
		defer pprof.StopCPUProfile()
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	<-interrupted
	f.Abort()
}
