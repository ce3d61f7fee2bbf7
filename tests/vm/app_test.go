package vm

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"mars/tests/stamp"
	"mars/tests/vm/lab"
)

// app is an application in a machine whose journal is here, outside. It has several requests in flight; every reply brings the next one on
// its way.
type app struct {
	x   *node
	j   *stamp.Journal
	job *lab.Job

	mu      sync.Mutex
	rng     *rand.Rand
	partial []byte // of a line of output
	started map[uint64]stamp.Time
	acked   int
	durable stamp.Time      // all that was acknowledged until then has been flushed
	fua     map[uint64]bool // writes with FUA: whether they are acknowledged
	next    uint64          // number of the next flush, beyond those of writes
	failed  error
	more    chan struct{} // holds a value when there is news
}

const (
	inFlight   = 12
	maxWrite   = 32      // sectors
	firstFlush = 1 << 40 // numbers from here on are flushes
)

// writes starts an application on the device that writes at random places until it dies.
func (x *node) writes(j *stamp.Journal, rng *rand.Rand) *app {
	x.w.t.Helper()
	a := &app{x: x, j: j, rng: rand.New(rand.NewPCG(rng.Uint64(), 0)), started: map[uint64]stamp.Time{}, fua: map[uint64]bool{}, next: firstFlush, more: make(chan struct{}, 1)}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.job = x.Converse("exec writer "+device, writerFunc(a.output), nil)
	for range inFlight {
		a.order()
	}
	return a
}

type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

// order sends one request; a.mu is held.
func (a *app) order() {
	if a.rng.IntN(24) == 0 {
		a.next++
		a.started[a.next] = a.j.Now()
		a.send(fmt.Sprintf("%d s\n", a.next))
		return
	}
	n := (1 + a.rng.Int64N(maxWrite)) * stamp.SectorSize
	off := a.rng.Int64N((appSize-n)/stamp.SectorSize) * stamp.SectorSize
	seq, what := a.j.Issue(off, n), "w"
	if a.rng.IntN(32) == 0 {
		what, a.fua[seq] = "f", false
	}
	a.send(fmt.Sprintf("%d %s %d %d\n", seq, what, off, n))
}

// send must not wait: it is called where replies are taken.
func (a *app) send(line string) {
	if _, err := a.job.Write([]byte(line)); err != nil && !errors.Is(err, lab.ErrGone) {
		a.failed = errors.Join(a.failed, err)
	}
}

func (a *app) output(p []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.partial = append(a.partial, p...)
	for {
		i := bytes.IndexByte(a.partial, '\n')
		if i < 0 {
			break
		}
		a.reply(string(a.partial[:i]))
		a.partial = a.partial[i+1:]
	}
	select {
	case a.more <- struct{}{}:
	default:
	}
}

func (a *app) reply(line string) {
	number, problem, _ := strings.Cut(line, " ")
	seq, err := strconv.ParseUint(number, 10, 64)
	if err != nil || problem != "" {
		a.failed = errors.Join(a.failed, fmt.Errorf("the application says %q", line))
		return
	}
	if seq < firstFlush {
		a.j.Ack(seq)
		a.acked++
		if _, ok := a.fua[seq]; ok {
			a.fua[seq] = true
		}
	} else {
		a.durable = max(a.durable, a.started[seq])
	}
	a.order()
}

// runs waits for so many more acknowledgements.
func (a *app) runs(acks int) {
	a.x.w.t.Helper()
	deadline := time.After(patience)
	for start := -1; ; {
		a.mu.Lock()
		now, failed := a.acked, a.failed
		a.mu.Unlock()
		if start < 0 {
			start = now
		}
		if failed != nil {
			a.x.w.t.Fatal(failed)
		}
		if now >= start+acks {
			return
		}
		select {
		case <-a.more:
		case <-deadline:
			a.x.w.t.Fatalf("%s: only %d of %d writes in %v", a.x.Name, now-start, acks, patience)
		case <-a.x.w.ctx.Done():
			a.x.w.t.Fatal(context.Cause(a.x.w.ctx))
		}
	}
}

// dies notes that the machine is dead.
func (a *app) dies() {
	a.x.w.t.Helper()
	<-a.job.Done()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failed != nil {
		a.x.w.t.Fatal(a.failed)
	}
	a.j.Crashed()
}

// recovers checks the device after the reboot: all that was flushed or written with FUA is there, and nothing that cannot be.
func (a *app) recovers() stamp.Image {
	a.x.w.t.Helper()
	img := a.x.check(a.j, device, a.durable)
	for seq, acked := range a.fua {
		if !acked {
			continue
		}
		if err := a.j.Seen(img, seq); err != nil {
			a.x.w.t.Errorf("written with FUA: %v", err)
		}
	}
	return img
}

// image reads which write each sector of a device comes from.
func (x *node) image(dev string) stamp.Image {
	x.w.t.Helper()
	z, err := gzip.NewReader(strings.NewReader(x.raw("writer -image " + dev)))
	if err != nil {
		x.w.t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		x.w.t.Fatal(err)
	}
	img := make(stamp.Image, len(b)/8)
	for i := range img {
		img[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return img
}

// raw runs a script and returns its output as it is.
func (x *node) raw(script string) string {
	x.w.t.Helper()
	out, err := x.Run(x.w.ctx, script)
	if err != nil {
		x.w.t.Fatal(err)
	}
	return out
}

// files is an application that writes one file after the other, syncs it and its directory, and only then tells its checksum.
type files struct {
	x    *node
	job  *lab.Job
	mu   sync.Mutex
	text bytes.Buffer
	kept map[string]string
	more chan struct{}
}

const keepsFiles = `cd /srv/d; for ((i = 0; ; i++)); do
	n=%d-$i; head -c $((RANDOM * 2)) /dev/urandom >tmp; s=$(md5sum <tmp); sync tmp; mv tmp $n; sync .; echo ${s%% *} ./$n
done`

func (x *node) keepsFiles(round int, kept map[string]string) *files {
	f := &files{x: x, kept: kept, more: make(chan struct{}, 1)}
	f.job = x.Start(fmt.Sprintf(keepsFiles, round), writerFunc(func(p []byte) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.text.Write(p)
		select {
		case f.more <- struct{}{}:
		default:
		}
	}), nil)
	return f
}

// runs waits until the application has finished so many files.
func (f *files) runs(n int) {
	f.x.w.t.Helper()
	deadline := time.After(patience)
	for {
		f.mu.Lock()
		have := bytes.Count(f.text.Bytes(), []byte("\n"))
		f.mu.Unlock()
		if have >= n {
			return
		}
		select {
		case <-f.more:
		case <-f.job.Done():
			f.x.w.t.Fatalf("%s: the application has ended after %d files", f.x.Name, have)
		case <-deadline:
			f.x.w.t.Fatalf("%s: only %d of %d files in %v", f.x.Name, have, n, patience)
		}
	}
}

// end adds to what is kept all that was acknowledged before the machine died.
func (f *files) end() {
	<-f.job.Done()
	f.mu.Lock()
	defer f.mu.Unlock()
	whole, _, _ := cutLast(f.text.String(), "\n")
	for name, sum := range parseSums(whole) {
		f.kept[strings.TrimPrefix(name, "./")] = sum
	}
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return "", s, false
}

// parseSums reads what md5sum prints.
func parseSums(text string) map[string]string {
	sums := map[string]string{}
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		if f := strings.Fields(lines.Text()); len(f) == 2 {
			sums[f[1]] = f[0]
		}
	}
	return sums
}
