// Run boots virtual machines, runs a bash script in all of them, prints what it prints, and ends with its exit status. See ../README.md.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"mars/internal/bytesize"
	"mars/tests/vm/lab"
)

type options struct {
	cfg     lab.Config
	limit   time.Duration
	command string
	bin     string
}

func main() {
	o := options{cfg: lab.Config{Files: map[string]string{}}}
	flag.IntVar(&o.cfg.Machines, "n", 1, "`number` of machines; the script runs in all of them, with NODE=1.. and NODES")
	flag.DurationVar(&o.limit, "t", 5*time.Minute, "`time` after which everything ends")
	flag.IntVar(&o.cfg.MemoryMiB, "m", 1024, "`MiB` of memory of each")
	flag.IntVar(&o.cfg.CPUs, "cpus", 1, "processors of each")
	flag.StringVar(&o.cfg.Append, "append", "", "more `words` for the kernel's command line")
	flag.StringVar(&o.command, "c", "", "`script` to run, instead of a file or the standard input")
	flag.StringVar(&o.bin, "bin", "", "`directory` with marsd and marsadm (default: built from this tree)")
	flag.StringVar(&o.cfg.Dir, "keep", "", "`directory` to be made, where disks and consoles stay")
	flag.Func("disk", "`NAME=SIZE` of a disk, /dev/lab/NAME; may be repeated (default a=1G and b=1G); NAME:volatile=SIZE loses its cache in a power cut", o.addDisk)
	flag.Func("file", "`PATH=FILE` of this host, seen as /host/PATH there; may be repeated", o.addFile)
	flag.Parse()
	status, err := o.run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
	}
	os.Exit(status)
}

func (o *options) addDisk(arg string) error {
	name, size, ok := strings.Cut(arg, "=")
	if !ok {
		return errors.New("want NAME=SIZE")
	}
	n, err := bytesize.Parse(size)
	if err != nil {
		return err
	}
	name, volatile := strings.CutSuffix(name, ":volatile")
	o.cfg.Disks = append(o.cfg.Disks, lab.Disk{Name: name, Size: n, Volatile: volatile})
	return nil
}

func (o *options) addFile(arg string) error {
	name, file, ok := strings.Cut(arg, "=")
	if !ok {
		return errors.New("want PATH=FILE")
	}
	o.cfg.Files[name] = file
	return nil
}

// run returns the exit status: the script's, or 125 with an error when there was none.
func (o *options) run() (int, error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, o.limit, fmt.Errorf("not done after %v", o.limit))
	defer cancel()
	script, err := o.script()
	if err != nil {
		return 125, err
	}
	if len(o.cfg.Disks) == 0 {
		o.cfg.Disks = []lab.Disk{{Name: "a", Size: 1 << 30}, {Name: "b", Size: 1 << 30}}
	}
	tmp, err := os.MkdirTemp("", "mars-vm-bin-")
	if err != nil {
		return 125, err
	}
	defer os.RemoveAll(tmp)
	if err := o.programs(ctx, tmp); err != nil {
		return 125, err
	}
	l, err := lab.New(ctx, o.cfg)
	if err != nil {
		return 125, err
	}
	defer l.Close()
	if err := l.Boot(); err != nil {
		return 125, err
	}
	return everywhere(ctx, l, script)
}

func (o *options) script() (string, error) {
	var b []byte
	var err error
	switch {
	case o.command != "":
		return o.command, nil
	case flag.NArg() == 0:
		b, err = io.ReadAll(os.Stdin)
	default:
		b, err = os.ReadFile(flag.Arg(0))
	}
	return string(b), err
}

// programs puts marsd and marsadm into the machines.
func (o *options) programs(ctx context.Context, tmp string) error {
	for _, name := range []string{"marsd", "marsadm"} {
		file := filepath.Join(o.bin, name)
		if o.bin == "" {
			var err error
			if file, err = lab.Build(ctx, tmp, "mars/cmd/"+name); err != nil {
				return err
			}
		}
		o.cfg.Files["bin/"+name] = file
	}
	return nil
}

// everywhere runs the script in all machines at the same time, and returns the first exit status that is not 0.
func everywhere(ctx context.Context, l *lab.Lab, script string) (int, error) {
	var mu sync.Mutex // of the standard streams
	jobs := make([]*lab.Job, len(l.Machines))
	var lines []*lineWriter
	for i, m := range l.Machines {
		prefix := ""
		if len(l.Machines) > 1 {
			prefix = m.Name + ": "
		}
		out, errs := &lineWriter{mu: &mu, to: os.Stdout, prefix: prefix}, &lineWriter{mu: &mu, to: os.Stderr, prefix: prefix}
		lines = append(lines, out, errs)
		jobs[i] = m.Start(script, out, errs)
	}
	first, errs := 0, []error(nil)
	for i, j := range jobs {
		status, err := j.Wait(ctx)
		if err != nil {
			status, err = 125, fmt.Errorf("%s: %w\n%s", l.Machines[i].Name, err, l.Machines[i].Console())
		}
		if first == 0 {
			first = status
		}
		errs = append(errs, err)
	}
	for _, w := range lines {
		w.flush()
	}
	return first, errors.Join(errs...)
}

// lineWriter passes whole lines on.
type lineWriter struct {
	mu     *sync.Mutex
	to     io.Writer
	prefix string
	rest   []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	for {
		i := bytes.IndexByte(w.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		w.print(w.rest[:i])
		w.rest = w.rest[i+1:]
	}
}

func (w *lineWriter) print(line []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := bufio.NewWriter(w.to)
	fmt.Fprintf(b, "%s%s\n", w.prefix, line)
	b.Flush()
}

func (w *lineWriter) flush() {
	if len(w.rest) > 0 {
		w.print(w.rest)
	}
}
