package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// dbLoad is SQLite with one transaction after the other. Each inserts a row with the next number, removes the row dbRows before it, and counts;
// so after a crash the table must have exactly the rows up to some number, and the counter must say the same.
type dbLoad struct {
	seed   uint64
	begun  uint64 // the last transaction that may have been committed
	done   atomic.Uint64
	bytes  atomic.Int64
	opened int

	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

const (
	dbPace = 10 * time.Millisecond
	dbRows = 300
	dbBody = 600 // least size of a row
	dbFile = "soak.db"
)

// The journal modes that are durable with synchronous=FULL; DELETE is not: the removal of its journal may be undone by a power cut.
var journalModes = []string{"WAL", "TRUNCATE", "PERSIST"}

func newDBLoad(seed uint64) *dbLoad { return &dbLoad{seed: seed} }

func (d *dbLoad) body(n uint64) string {
	return strings.Repeat(strconv.FormatUint((n^d.seed)*0x9e37_79b9_7f4a_7c15|1<<60, 16), dbBody/16+int(n%37))
}

// open starts the database's process.
func (d *dbLoad) open(dir string) error {
	d.opened++
	d.cmd = exec.Command("sqlite3", "-batch", "-bail", "-noheader", filepath.Join(dir, dbFile))
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := d.cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	d.in, d.out = in, bufio.NewScanner(out)
	if err := d.cmd.Start(); err != nil {
		return err
	}
	mode := journalModes[d.opened%len(journalModes)]
	return d.ask("PRAGMA journal_mode=%s; PRAGMA synchronous=FULL; BEGIN; CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY, body TEXT);"+
		"CREATE TABLE IF NOT EXISTS c(n INTEGER); INSERT INTO c SELECT %d WHERE NOT EXISTS (SELECT 1 FROM c); COMMIT;", mode, d.begun)
}

// ask sends statements and waits until they are done.
func (d *dbLoad) ask(format string, args ...any) error {
	if _, err := fmt.Fprintf(d.in, format+" SELECT 'done';\n", args...); err != nil {
		return err
	}
	for d.out.Scan() {
		if d.out.Text() == "done" {
			return nil
		}
	}
	return errors.Join(errors.New("the database has ended"), d.out.Err())
}

func (d *dbLoad) work(ctx context.Context) error {
	tick := time.NewTicker(dbPace)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		n := d.begun + 1
		d.begun = n
		body := d.body(n)
		d.bytes.Add(int64(len(body)))
		err := d.ask("BEGIN IMMEDIATE; INSERT INTO t VALUES(%d,'%s'); DELETE FROM t WHERE n<=%d; UPDATE c SET n=%d; COMMIT;", n, body, int64(n)-dbRows, n)
		if err != nil {
			return err
		}
		d.done.Store(n)
	}
}

// close lets the process end.
func (d *dbLoad) close() error {
	if d.cmd == nil {
		return nil
	}
	err := errors.Join(d.in.Close(), d.cmd.Wait())
	d.cmd = nil
	return err
}

func (d *dbLoad) kill() {
	if d.cmd != nil {
		d.cmd.Process.Kill()
	}
}

// check proves that the database is whole and has all transactions up to some number, which it returns, that is at least must. Later ones may be
// begun only.
func (d *dbLoad) check(dir string, must uint64) (uint64, error) {
	path := filepath.Join(dir, dbFile)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) && must == 0 {
		return 0, nil
	}
	out, err := exec.Command("sqlite3", "-batch", "-bail", "-noheader", path, "PRAGMA integrity_check; SELECT n FROM c; SELECT n, body FROM t ORDER BY n;").CombinedOutput()
	if must == 0 && strings.Contains(string(out), "no such table") {
		return 0, nil // cut off when it was being created
	}
	if err != nil {
		return 0, fmt.Errorf("database: %w\n%s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if lines[0] != "ok" || len(lines) < 2 {
		return 0, fmt.Errorf("database: integrity check: %.2000s", out)
	}
	n, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("database: counter: %w", err)
	}
	if n < must || n > d.begun {
		return 0, fmt.Errorf("database: the last transaction is %d, want %d at least and %d at most", n, must, d.begun)
	}
	return n, d.checkRows(lines[2:], n)
}

// resume goes on behind the transaction that a check has found to be the last one.
func (d *dbLoad) resume(n uint64) {
	d.begun = n
	d.done.Store(n)
}

func (d *dbLoad) checkRows(rows []string, n uint64) error {
	want := max(1, int64(n)-dbRows+1)
	for _, row := range rows {
		if row != fmt.Sprintf("%d|%s", want, d.body(uint64(want))) {
			return fmt.Errorf("database: after transaction %d, where row %d is expected there is %.40s", n, want, row)
		}
		want++
	}
	if uint64(want) != n+1 {
		return fmt.Errorf("database: after transaction %d the last row is %d", n, want-1)
	}
	return nil
}

// reset: the file system is made anew.
func (d *dbLoad) reset() { d.resume(0) }
