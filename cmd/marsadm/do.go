package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"mars/internal/control"
	"mars/internal/name"
)

// do sends one command and prints the answer.
func (a *app) do(ctx context.Context, c control.Command) error {
	if err := c.Validate(); err != nil {
		return usageError{err}
	}
	return a.send(ctx, c)
}

func (a *app) send(ctx context.Context, c control.Command) error {
	limited, cancel := a.limited(ctx)
	defer cancel()
	result, err := a.client().Do(limited, c)
	if err != nil {
		return explain(ctx, c, err)
	}
	return a.print(c.Resource, result)
}

// explain gives errors that are not the daemon's own words their context.
func explain(ctx context.Context, c control.Command, err error) error {
	what := strings.TrimSpace(c.Verb + " " + c.Resource)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: interrupted: marsd stops waiting, but what is done stays done: see `marsadm view`", what)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w: is marsd stopped or stuck?", what, err)
	}
	return err
}

// forEach sends c for every resource of the list. All names are checked before the first one is touched.
func (a *app) forEach(ctx context.Context, list string, c control.Command) error {
	names, err := parseList(list)
	if err != nil {
		return usageError{err}
	}
	for _, n := range names {
		c.Resource = n
		if err := c.Validate(); err != nil && n != name.All {
			return usageError{err}
		}
	}
	if slices.Contains(names, name.All) {
		if c.Resource = "any"; c.Validate() != nil { // the rest of the command must be right, too
			return usageError{c.Validate()}
		}
		if names, err = a.joined(ctx); err != nil {
			return err
		}
	}
	var failed failures
	for _, n := range names {
		c.Resource = n
		err := a.send(ctx, c)
		if ctx.Err() != nil && err != nil {
			return append(failed, err)
		}
		if err != nil && len(names) > 1 && !strings.Contains(err.Error(), n) {
			err = fmt.Errorf("%s: %w", n, err)
		}
		if err != nil {
			failed = append(failed, err)
		}
	}
	if failed != nil {
		return failed
	}
	return nil
}

// joined returns the names of the resources that have a replica here.
func (a *app) joined(ctx context.Context) ([]string, error) {
	st, err := a.status(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, r := range st.Resources {
		if slices.ContainsFunc(r.Members, func(m control.Member) bool { return m.Self }) {
			names = append(names, r.Name)
		}
	}
	return names, nil
}

func (a *app) status(ctx context.Context) (control.Status, error) {
	limited, cancel := a.limited(ctx)
	defer cancel()
	st, err := a.client().Status(limited)
	if err != nil {
		return st, explain(ctx, control.Command{Verb: "view"}, err)
	}
	return st, nil
}

// parseList splits "a,b,c" and drops repetitions. "all" stands alone.
func parseList(list string) ([]string, error) {
	var names []string
	for n := range strings.SplitSeq(list, ",") {
		if n == "" {
			return nil, fmt.Errorf("list of resources %q has an empty name", list)
		}
		if !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	if len(names) > 1 && slices.Contains(names, name.All) {
		return nil, fmt.Errorf("list of resources %q: %q stands alone", list, name.All)
	}
	return names, nil
}

// print shows what a command answered. A token goes alone to stdout, so that T=$(marsadm join-token) gets nothing else.
func (a *app) print(resource string, result control.Result) error {
	if a.json {
		return a.printJSON(struct {
			Resource string `json:"resource,omitempty"`
			control.Result
		}{resource, result})
	}
	said := a.out
	if result.Token != "" {
		if _, err := fmt.Fprintln(a.out, result.Token); err != nil {
			return fmt.Errorf("print: %w", err)
		}
		said = a.err
	}
	return say(said, result.Message)
}

func say(w io.Writer, message string) error {
	if message == "" {
		return nil
	}
	if _, err := fmt.Fprintln(w, strings.TrimRight(message, "\n")); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// printJSON prints one value in one line.
func (a *app) printJSON(v any) error {
	if err := json.NewEncoder(a.out).Encode(v); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// completeResource offers the names that the daemon knows for the first argument.
func (a *app) completeResource(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	st, err := a.client().Status(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, r := range st.Resources {
		names = append(names, r.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
