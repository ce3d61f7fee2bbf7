package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"mars/internal/control"
)

func (a *app) waitCommands() []*cobra.Command {
	return []*cobra.Command{a.waitCluster(), a.waitResource(), a.waitUmount()}
}

func (a *app) waitCluster() *cobra.Command {
	return &cobra.Command{
		Use: "wait-cluster", GroupID: groupLook, Args: takes(),
		Short: "Wait until all living nodes know the same",
		Long: `Wait until every node that is alive has all metadata that this node had when the command began, and the other way round. Nodes
that are down are not waited for.`,
		Example: "  marsadm wait-cluster --timeout 30s",
		RunE: a.runs(func(ctx context.Context, _ []string) error {
			return a.do(ctx, control.Command{Verb: control.VerbWaitCluster})
		}),
	}
}

func (a *app) waitResource() *cobra.Command {
	return &cobra.Command{
		Use: "wait-resource RESOURCE CONDITION", GroupID: groupLook, Args: takes("RESOURCE", "CONDITION"),
		Short: "Wait until a condition holds on this node",
		Long: `Wait until a condition holds on this node. When the time is over, the error says what it was waiting for.

Conditions: ` + strings.Join(control.Conditions(), ", ") + `.
The original's spellings (is-primary-on, device, ...) are understood, too.`,
		Example: "  marsadm wait-resource mydata uptodate\n  marsadm wait-resource a,b replay-reached --timeout 5m",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, part string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return control.Conditions(), cobra.ShellCompDirectiveNoFileComp
			}
			return a.completeResource(cmd, args, part)
		},
		RunE: a.runs(func(ctx context.Context, args []string) error {
			condition, err := control.ParseCondition(args[1])
			if err != nil {
				return usageError{err}
			}
			return a.forEach(ctx, args[0], control.Command{Verb: control.VerbWaitResource, Condition: condition})
		}),
	}
}

func (a *app) waitUmount() *cobra.Command {
	return &cobra.Command{
		Use: "wait-umount NAME", GroupID: groupLook, Args: takes("NAME"), ValidArgsFunction: a.completeResource,
		Short:   "Wait until nobody in the cluster uses the device",
		Long:    `Wait until nobody in the cluster uses the device any more. When the time is over, the error names who still does.`,
		Example: "  marsadm wait-umount mydata && marsadm primary mydata",
		RunE: a.runs(func(ctx context.Context, args []string) error {
			return a.do(ctx, control.Command{Verb: control.VerbWaitUmount, Resource: args[0]})
		}),
	}
}
