// Command marsadm tells the local marsd what to do, and shows how the cluster is.
//
// It is thin: it checks what can be checked without the daemon, sends a control.Command over the Unix socket DIR/marsd.sock and prints the
// answer. Exit status: 0 done; 1 refused or failed, with one line on stderr for each failure; 2 wrong usage, the daemon was not asked.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, getenv: os.Getenv, screen: stdoutScreen{}, ticks: everySecond}
	os.Exit(a.run(ctx, os.Args[1:]))
}
