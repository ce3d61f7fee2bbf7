// Pace is an application that would like to write so many blocks of 4 KiB per second, at random places of a device, with a bound on those in flight.
// What it cannot write in time it does not make up for. It prints every second the time, since 1970, and how many it has completed.
//
//	pace -rate 400 -depth 16 -for 60s DEVICE
package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	block = 4096
	tick  = 10 * time.Millisecond
)

func main() {
	rate := flag.Int("rate", 400, "writes per second")
	depth := flag.Int("depth", 16, "writes in flight, at most")
	span := flag.Int64("span", 256<<20, "bytes of the device to write to")
	length := flag.Duration("for", time.Minute, "how long")
	flag.Parse()
	f, err := os.OpenFile(flag.Arg(0), os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, "pace:", err)
		os.Exit(1)
	}
	p := &pace{f: f, places: make(chan int64, *depth)}
	for range *depth {
		go p.work() // ends with the process: a write may hang for longer than this application lives
	}
	p.run(*rate, *span, *length)
}

type pace struct {
	f      *os.File
	places chan int64   // offsets to write to; has room for as many as there are workers
	free   atomic.Int64 // workers
	done   atomic.Int64 // writes
}

func (p *pace) work() {
	buf := make([]byte, 2*block)
	skip := -int(uintptr(unsafe.Pointer(&buf[0]))) & (block - 1)
	buf = buf[skip : skip+block]
	p.free.Add(1)
	for off := range p.places {
		for i := range 64 { // not compressible, not the same twice
			buf[i] = byte(rand.Uint32())
		}
		if _, err := p.f.WriteAt(buf, off); err != nil {
			fmt.Fprintln(os.Stderr, "pace:", err)
			os.Exit(1)
		}
		p.done.Add(1)
		p.free.Add(1)
	}
}

// run asks for writes at the moments when they are due, and drops those for which nobody is free.
func (p *pace) run(rate int, span int64, length time.Duration) {
	rng := rand.New(rand.NewPCG(1, 1))
	ticker := time.NewTicker(tick)
	start := time.Now()
	asked, said := 0, start
	for now := range ticker.C {
		due := int(now.Sub(start).Seconds() * float64(rate))
		for ; asked < due; asked++ {
			if p.free.Load() > 0 {
				p.free.Add(-1)
				p.places <- rng.Int64N(span/block) * block
			}
		}
		if now.Sub(said) >= time.Second {
			said = now
			fmt.Printf("%d.%06d %d\n", now.Unix(), now.Nanosecond()/1000, p.done.Load())
		}
		if now.Sub(start) >= length {
			return
		}
	}
}
