package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mars/internal/control"
	"mars/internal/name"
	"mars/internal/view"
)

// completionTime is how long a Tab may take.
const completionTime = time.Second

func (a *app) viewCommands() []*cobra.Command {
	return []*cobra.Command{a.viewCommand(), a.versionCommand()}
}

func (a *app) viewCommand() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use: "view [RESOURCE]", GroupID: groupLook, Args: takes("[RESOURCE]"), ValidArgsFunction: a.completeResource,
		Short: "Show how the resources are",
		Long: `Show how all resources are, or the named ones: one line each, and more only when something goes on.

  mydata  10.0 GiB  [2/2]  UpToDate  Replicating  dCASFR  Primary  node-a  /dev/mars/mydata

That is: name, size, [replicas/nodes], disk state and replication state of this node's replica, flags, its role, the designated
primary, the device. Flags: D opened, d shown, - no device; C consistent; A attach, S sync, F fetch, R replay: upper case is on
and working, lower case is on but not working, - is off.

With --watch it is shown again every second, until Ctrl-C. With --json it is everything that marsd knows, or the named resources,
one object per line.`,
		Example: "  marsadm view\n  marsadm view mydata --watch\n  marsadm view mydata --json",
		RunE: a.runs(func(ctx context.Context, args []string) error {
			names, err := viewNames(args)
			if err != nil {
				return usageError{err}
			}
			if watch {
				return a.watch(ctx, names)
			}
			st, err := a.selected(ctx, names)
			if err != nil {
				return err
			}
			return a.show(st, names)
		}),
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "show it again every second, until Ctrl-C")
	return cmd
}

// viewNames returns the named resources, nil for all.
func viewNames(args []string) ([]string, error) {
	if len(args) == 0 || args[0] == name.All {
		return nil, nil
	}
	names, err := parseList(args[0])
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if err := name.CheckResource(n); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// selected returns the status with only the named resources, in the order of names.
func (a *app) selected(ctx context.Context, names []string) (control.Status, error) {
	st, err := a.status(ctx)
	if err != nil || names == nil {
		return st, err
	}
	var found []control.Resource
	var failed failures
	for _, n := range names {
		i := slices.IndexFunc(st.Resources, func(r control.Resource) bool { return r.Name == n })
		if i < 0 {
			failed = append(failed, fmt.Errorf("view %s: there is no such resource: %s", n, known(st)))
			continue
		}
		found = append(found, st.Resources[i])
	}
	st.Resources = found
	if failed != nil {
		return st, failed
	}
	return st, nil
}

// known helps after a typing error.
func known(st control.Status) string {
	const most = 10
	var names []string
	for _, r := range st.Resources {
		names = append(names, r.Name)
	}
	switch {
	case len(names) == 0:
		return "the cluster has none"
	case len(names) > most:
		return fmt.Sprintf("there are %s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return "there are " + strings.Join(names, ", ")
}

// show prints the status, or the named resources as JSON.
func (a *app) show(st control.Status, names []string) error {
	if !a.json {
		return a.write(a.render(st))
	}
	if names == nil {
		return a.printJSON(st)
	}
	for _, r := range st.Resources {
		if err := a.printJSON(r); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) render(st control.Status) []byte {
	var b bytes.Buffer
	_ = view.Render(&b, st, a.viewOptions()) // a buffer takes everything
	return b.Bytes()
}

func (a *app) write(text []byte) error {
	if _, err := a.out.Write(text); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

func (a *app) viewOptions() view.Options {
	o := view.Options{ASCII: !a.utf8()}
	if size, ok := a.screen.size(); ok {
		o.Width = size.columns
		o.Color = a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb"
	}
	return o
}

// utf8 follows the locale: the first of these variables that is set decides.
func (a *app) utf8() bool {
	for _, key := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if locale := strings.ToLower(a.getenv(key)); locale != "" {
			return strings.Contains(locale, "utf-8") || strings.Contains(locale, "utf8")
		}
	}
	return false
}
