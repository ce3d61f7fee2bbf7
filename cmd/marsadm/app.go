package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"mars/internal/config"
	"mars/internal/control"
)

// Exit statuses.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

const defaultTimeout = 600 * time.Second

// app is one run of marsadm with all it touches, so that tests can be it.
type app struct {
	in       io.Reader
	out, err io.Writer
	getenv   func(string) string
	screen   screen
	ticks    func() (ticks <-chan time.Time, stop func())

	dir     string
	json    bool
	timeout seconds
	started bool // the command line was right: what fails from now on is not a usage error
}

// usageError is a mistake in the command line that only the command itself can see.
type usageError struct{ error }

// failures are the failures of a command that goes over several resources.
type failures []error

// Error joins them in one line; run prints one line for each instead.
func (f failures) Error() string {
	texts := make([]string, len(f))
	for i, err := range f {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

// run carries out one command line and returns the exit status.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	var usage usageError
	if !a.started || errors.As(err, &usage) {
		a.complain(fmt.Errorf("%w (see `%s --help`)", err, cmd.CommandPath()))
		return exitUsage
	}
	var several failures
	if !errors.As(err, &several) {
		several = failures{err}
	}
	for _, err := range several {
		a.complain(err)
	}
	return exitFailed
}

// complain prints exactly one line. The text may come from the daemon, and through it from other machines.
func (a *app) complain(err error) {
	text := strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t':
			return ' '
		case unicode.IsControl(r):
			return '?'
		}
		return r
	}, strings.TrimSpace(err.Error()))
	fmt.Fprintln(a.err, "marsadm: "+text)
}

// Groups of commands in the help.
const (
	groupCluster  = "cluster"
	groupResource = "resource"
	groupRole     = "role"
	groupSwitch   = "switch"
	groupLook     = "look"
)

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "marsadm",
		Short: "Administer MARS: asynchronous geo-replication of block devices",
		Long: `marsadm tells the marsd on this machine what to do, and shows how the cluster is.

Exit status: 0 done; 1 refused or failed, with one line on stderr for each failure; 2 wrong usage, marsd was not asked.
Where a command takes RESOURCE, it takes one name, several with commas between them, or "all" for every resource that has a
replica on this node; they are worked off one after the other, also when one fails.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          unknownCommand,
		RunE:          func(*cobra.Command, []string) error { return errors.New("no command") },
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.dir, "dir", a.defaultDir(), "`DIR` of the marsd to talk to; default: $"+config.EnvDir+", else "+config.DefaultDir)
	flags.BoolVar(&a.json, "json", false, "print the answer as JSON")
	a.timeout = seconds(defaultTimeout)
	flags.Var(&a.timeout, "timeout", "give up after `TIME` (for each resource; 0 = never)")
	root.AddGroup(
		&cobra.Group{ID: groupLook, Title: "Look and wait:"}, &cobra.Group{ID: groupCluster, Title: "Cluster:"}, &cobra.Group{ID: groupResource, Title: "Resources:"},
		&cobra.Group{ID: groupRole, Title: "Roles and history:"}, &cobra.Group{ID: groupSwitch, Title: "Switches:"},
	)
	root.SetHelpCommand(helpCommand())
	for _, group := range []func() []*cobra.Command{a.clusterCommands, a.resourceCommands, a.roleCommands, a.switchCommands, a.waitCommands, a.viewCommands} {
		root.AddCommand(group()...)
	}
	return root
}

func (a *app) defaultDir() string {
	if dir := a.getenv(config.EnvDir); dir != "" {
		return dir
	}
	return config.DefaultDir
}

func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return fmt.Errorf("unknown command %q (meant: %s?)", args[0], strings.Join(near, ", "))
	}
	return fmt.Errorf("unknown command %q", args[0])
}

// helpCommand is cobra's, except that help about nothing is an error.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Explain a command",
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return fmt.Errorf("unknown command %q", strings.Join(args, " "))
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

// takes checks the number of arguments; names are those of the help, optional ones in brackets at the end.
func takes(names ...string) cobra.PositionalArgs {
	least := 0
	for _, n := range names {
		if !strings.HasPrefix(n, "[") {
			least++
		}
	}
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return fmt.Errorf("%s: %s is missing", cmd.Name(), strings.Join(names[len(args):least], " "))
		case len(args) > len(names):
			return fmt.Errorf("%s: unexpected argument %q", cmd.Name(), args[len(names)])
		}
		return nil
	}
}

// runs makes f the body of a command.
func (a *app) runs(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.started = true
		return f(cmd.Context(), args)
	}
}

func (a *app) client() *control.Client {
	dir := a.dir
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs // the error that names it shall be of use in another shell, too
	}
	return control.Dial(filepath.Join(dir, control.SocketName))
}

// limited returns ctx with the time that --timeout grants.
func (a *app) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	if a.timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Duration(a.timeout))
}

// seconds is a duration flag that also takes a bare number, as the original's --timeout does.
type seconds time.Duration

func (s *seconds) String() string { return time.Duration(*s).String() }
func (s *seconds) Type() string   { return "duration" }

func (s *seconds) Set(text string) error {
	if _, err := strconv.ParseUint(text, 10, 31); err == nil {
		text += "s"
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return errors.New("not a time (like 90s, 10m, or a number of seconds)")
	}
	*s = seconds(d)
	return nil
}
