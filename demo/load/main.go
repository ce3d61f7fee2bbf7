// Load is the application of the demonstration for those who may not mount: it writes numbered blocks over NBD, notes down how many of them
// were flushed, and can tell later whether they are all there.
package main

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"mars/tests/nbdclient"
	"mars/tests/stamp"
)

const (
	blockSize = 16 << 10
	perFlush  = 64 // blocks, all under way at once
	pace      = 40 * time.Millisecond
)

func main() {
	socket := flag.String("socket", "", "NBD socket")
	note := flag.String("note", "", "file that says how many blocks are safe")
	run := flag.String("while", "", "write as long as this file exists; empty: check")
	flag.Parse()
	if err := work(*socket, *note, *run); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func work(socket, note, run string) error {
	c, err := nbdclient.Dial(socket, "mydata")
	if err != nil {
		return err
	}
	defer c.Close()
	d := device{c, uint64(c.Size() / blockSize)}
	safe, err := readNote(note)
	if err != nil {
		return err
	}
	if run == "" {
		return d.check(safe)
	}
	return d.write(safe, note, run)
}

func readNote(file string) (uint64, error) {
	b, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
}

type device struct {
	c      *nbdclient.Client
	blocks uint64
}

// place scatters the blocks over the device; each round of d.blocks numbers meets every place once, if that is a power of two.
func (d device) place(seq uint64) int64 { return int64((seq * 40503) % d.blocks * blockSize) }

func (d device) write(safe uint64, note, run string) error {
	began, first := time.Now(), safe
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for ; exists(run); <-tick.C {
		if err := d.writeSome(safe); err != nil {
			return err
		}
		safe += perFlush
		if err := os.WriteFile(note, []byte(strconv.FormatUint(safe, 10)), 0o600); err != nil {
			return err
		}
	}
	fmt.Printf("   it has written and flushed %d blocks of 16 KiB in %.1f s\n", safe-first, time.Since(began).Seconds())
	return nil
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// writeSome writes the blocks behind safe at once and flushes them.
func (d device) writeSome(safe uint64) error {
	errs := make([]error, perFlush)
	var wg sync.WaitGroup
	for i := range perFlush {
		wg.Go(func() { // ends with the answer
			seq := safe + uint64(i) + 1
			p := make([]byte, blockSize)
			stamp.Fill(p, d.place(seq), seq)
			errs[i] = d.c.Write(d.place(seq), p)
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return d.c.Flush()
}

// check looks for every block that was flushed and not overwritten by a later one.
func (d device) check(safe uint64) error {
	img, err := stamp.ReadImage(d.c, d.c.Size())
	if err != nil {
		return err
	}
	first := uint64(1)
	if safe > d.blocks {
		first = safe - d.blocks + 1
	}
	for seq := first; seq <= safe; seq++ {
		at := d.place(seq) / stamp.SectorSize
		for s := at; s < at+blockSize/stamp.SectorSize; s++ {
			if img[s] < seq {
				return fmt.Errorf("block %d is missing: sector %d has block %d", seq, s, img[s])
			}
		}
	}
	fmt.Printf("all %d blocks that were flushed are there and right\n", safe)
	return nil
}
