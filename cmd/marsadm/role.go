package main

import (
	"context"

	"github.com/spf13/cobra"

	"mars/internal/control"
)

func (a *app) roleCommands() []*cobra.Command {
	return []*cobra.Command{a.primary(), a.secondary(), a.invalidate()}
}

func (a *app) primary() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "primary NAME", GroupID: groupRole, Args: takes("NAME"), ValidArgsFunction: a.completeResource,
		Short: "Make this node the primary",
		Long: `Make this node the primary, and return when its device is there.

Without --force this is a handover, and nothing is lost: the old primary withdraws its device, ends its log with a record that
names this node, and this node begins to write only when it has replayed all of that. Refused while the device is in use at the
old primary (its user is named), while this node's replica is not consistent, and during a split brain; without contact to the
old primary it waits.

With --force this is a failover, for when the old primary is gone for good or for too long: this node goes on from the log that
it has. What the old primary wrote after that and nobody fetched is LOST, or becomes one side of a split brain when it comes
back. The answer says how much that can be. Run pause-fetch first. Refused while this node's replica is not consistent.`,
		Example: "  umount /mnt/mydata       # at the old primary\n  marsadm primary mydata   # at the new one",
		RunE: a.runs(func(ctx context.Context, args []string) error {
			return a.do(ctx, control.Command{Verb: control.VerbPrimary, Resource: args[0], Force: force})
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "go on without the old primary: may lose its last writes")
	return cmd
}

func (a *app) secondary() *cobra.Command {
	return &cobra.Command{
		Use: "secondary NAME", GroupID: groupRole, Args: takes("NAME"), ValidArgsFunction: a.completeResource,
		Short: "Withdraw the device: nobody is primary then",
		Long: `Withdraw the device at the primary: nobody is primary then, until somebody runs "primary". For a handover it is not needed, just
run "primary" at the other node.

Refused while the device is in use (its user is named) and at nodes that are not the primary. A "primary" at the same time wins.`,
		Example: "  marsadm secondary mydata",
		RunE: a.runs(func(ctx context.Context, args []string) error {
			return a.do(ctx, control.Command{Verb: control.VerbSecondary, Resource: args[0]})
		}),
	}
}

func (a *app) invalidate() *cobra.Command {
	return &cobra.Command{
		Use: "invalidate NAME", GroupID: groupRole, Args: takes("NAME"), ValidArgsFunction: a.completeResource,
		Short: "Throw this node's replica away and sync it again",
		Long: `Throw away what this node's replica has and the primary has not, and sync it again from the primary; blocks that are equal do not
travel. This ends a split brain at the side that loses. The answer says how much history is thrown away.

Refused at the primary, and while there is no primary to sync from.`,
		Example: "  marsadm invalidate mydata\n  marsadm wait-resource mydata uptodate",
		RunE: a.runs(func(ctx context.Context, args []string) error {
			return a.do(ctx, control.Command{Verb: control.VerbInvalidate, Resource: args[0]})
		}),
	}
}
