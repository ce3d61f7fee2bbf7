// Writer writes to a block device in a virtual machine what it is told on its standard input, and says what is done; who tells it keeps the
// journal, outside of the machine. Every sector says which write it comes from (package stamp).
//
//	writer DEVICE          reads lines, answers each, in the order of completion, with its number, or its number and an error
//	    NUMBER w OFF LEN   write
//	    NUMBER f OFF LEN   write with FUA
//	    NUMBER s           sync: flush the device
//	writer -image DEVICE   prints the number of the write that each sector comes from: uint64, little endian, gzip
package main

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"mars/tests/stamp"

	"golang.org/x/sys/unix"
)

func main() {
	image := flag.Bool("image", false, "print the image of the device")
	flag.Parse()
	do := serve
	if *image {
		do = show
	}
	if err := do(flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "writer:", err)
		os.Exit(1)
	}
}

// show reads past the page cache: what is there may have been written below it.
func show(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		return err
	}
	img, err := stamp.ReadImage(aligned{f}, size)
	if err != nil {
		return err
	}
	z := gzip.NewWriter(os.Stdout)
	return errors.Join(binary.Write(z, binary.LittleEndian, img), z.Close())
}

// aligned reads into memory that the kernel accepts for direct IO.
type aligned struct{ *os.File }

func (a aligned) ReadAt(p []byte, off int64) (int, error) {
	buf := buffer(len(p))
	n, err := a.File.ReadAt(buf, off)
	return copy(p, buf[:n]), err
}

// buffer returns n bytes at a page boundary.
func buffer(n int) []byte {
	const page = 4096
	b := make([]byte, n+page)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (page - 1)
	return b[skip : skip+n]
}

type order struct {
	seq    uint64
	what   string
	off, n int64
}

// serve works on several orders at the same time, as many as are waiting.
func serve(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var o order
		n, err := fmt.Sscan(in.Text(), &o.seq, &o.what, &o.off, &o.n)
		if n < 2 {
			return fmt.Errorf("%q: %w", in.Text(), err)
		}
		wg.Go(func() { answer(o, o.do(f)) })
	}
	return in.Err()
}

func answer(o order, err error) {
	line := fmt.Sprintln(o.seq)
	if err != nil {
		line = fmt.Sprintln(o.seq, err)
	}
	os.Stdout.WriteString(line) // one write, so lines stay whole
}

func (o order) do(f *os.File) error {
	if o.what == "s" {
		return f.Sync()
	}
	p := buffer(int(o.n))
	stamp.Fill(p, o.off, o.seq)
	flags := 0
	if o.what == "f" {
		flags = unix.RWF_DSYNC
	}
	n, err := unix.Pwritev2(int(f.Fd()), [][]byte{p}, o.off, flags)
	if err == nil && n != len(p) {
		err = fmt.Errorf("%d of %d bytes written", n, len(p))
	}
	return err
}
