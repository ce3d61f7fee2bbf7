package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"mars/internal/bytesize"
	"mars/internal/control"
)

func (a *app) resourceCommands() []*cobra.Command {
	return []*cobra.Command{a.createResource(), a.joinResource(), a.leaveResource(), a.deleteResource(), a.resize(), a.logRotate()}
}

// sizeFlag is --size in a command line; zero while it is not given.
type sizeFlag int64

func (s *sizeFlag) String() string {
	if *s == 0 {
		return ""
	}
	return bytesize.Exact(int64(*s))
}

func (s *sizeFlag) Type() string { return "size" }

func (s *sizeFlag) Set(text string) error {
	n, err := bytesize.Parse(text)
	if err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("size %q is nothing", text)
	}
	*s = sizeFlag(n)
	return nil
}

// absDisk makes the disk's path mean the same to the daemon, which has another working directory.
func absDisk(path string) (string, error) {
	if path == "" {
		return "", usageError{fmt.Errorf("DISK is empty")}
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("find out what %s is: %w", path, err)
	}
	return abs, nil
}

func (a *app) createResource() *cobra.Command {
	var size sizeFlag
	cmd := &cobra.Command{
		Use: "create-resource NAME DISK", GroupID: groupResource, Args: takes("NAME", "DISK"),
		Short: "Make a disk of this node the first replica of a new resource",
		Long: `Make a disk of this node the first replica of a new resource, and this node its primary. DISK is a block device (an LV, a
partition) or a regular file. What is on it stays and becomes the first content of the resource; the disk is never shrunk.

Refused when the name is taken anywhere in the cluster, when somebody has the disk open, and when it is smaller than --size.`,
		Example: "  marsadm create-resource mydata /dev/vg0/mydata\n  marsadm create-resource mydata /srv/mydata.img --size 10GiB",
		RunE: a.runs(func(ctx context.Context, args []string) error {
			disk, err := absDisk(args[1])
			if err != nil {
				return err
			}
			return a.do(ctx, control.Command{Verb: control.VerbCreateResource, Resource: args[0], Disk: disk, Size: int64(size)})
		}),
	}
	cmd.Flags().Var(&size, "size", "`SIZE` of the resource, like 10GiB (default: that of the disk)")
	return cmd
}

func (a *app) joinResource() *cobra.Command {
	return &cobra.Command{
		Use: "join-resource NAME DISK", GroupID: groupResource, Args: takes("NAME", "DISK"), ValidArgsFunction: a.completeResource,
		Short: "Add a replica on a disk of this node",
		Long: `Add a replica on a disk of this node, and start its first sync. THE DISK'S CONTENT IS OVERWRITTEN. The application goes on
meanwhile; the replica is consistent once the sync has ended and the log that was written during it is replayed.

Refused when this node has a replica already, when the disk is smaller than the resource or open elsewhere, when no primary is
designated, and during a split brain.`,
		Example: "  marsadm join-resource mydata /dev/vg0/mydata\n  marsadm wait-resource mydata uptodate",
		RunE: a.runs(func(ctx context.Context, args []string) error {
			disk, err := absDisk(args[1])
			if err != nil {
				return err
			}
			return a.do(ctx, control.Command{Verb: control.VerbJoinResource, Resource: args[0], Disk: disk})
		}),
	}
}

func (a *app) leaveResource() *cobra.Command {
	var host string
	var force bool
	cmd := &cobra.Command{
		Use: "leave-resource NAME", GroupID: groupResource, Args: takes("NAME"), ValidArgsFunction: a.completeResource,
		Short: "Give up the replica of this node, or of a dead one",
		Long: `Give up the replica of this node: its logs are deleted, its disk is left as it is. Log that only this member still needed can
then be deleted everywhere; a split brain ends when one side leaves.

Refused while this node is primary or the disk is attached (see secondary, detach), and while the node that holds the right to write
is not heard: it may have passed it to this one. With --host X --force it acts for a node X that is dead and cannot leave itself; X
is refused by the others when it comes back and has to join again.`,
		Example: "  marsadm leave-resource mydata\n  marsadm leave-resource mydata --host node-b --force",
		RunE: a.runs(func(ctx context.Context, args []string) error {
			return a.do(ctx, control.Command{Verb: control.VerbLeaveResource, Resource: args[0], Host: host, Force: force})
		}),
	}
	cmd.Flags().StringVar(&host, "host", "", "`NODE` that is dead and whose replica is given up; needs --force")
	cmd.Flags().BoolVar(&force, "force", false, "do it although log may be lost that exists nowhere else")
	return cmd
}

func (a *app) deleteResource() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "delete-resource NAME", GroupID: groupResource, Args: takes("NAME"), ValidArgsFunction: a.completeResource,
		Short: "Delete a resource from the whole cluster",
		Long: `Delete a resource from the whole cluster: every replica's logs and metadata. The disks are left as they are. A resource that is
created later under the same name has nothing in common with this one, not even for a node that was away.

Refused while a device is shown or another node has a replica; --force deletes their replicas, too, also those of nodes that are
down now. A device that is in use is always refused.`,
		Example: "  marsadm secondary mydata\n  marsadm delete-resource mydata",
		RunE: a.runs(func(ctx context.Context, args []string) error {
			return a.do(ctx, control.Command{Verb: control.VerbDeleteResource, Resource: args[0], Force: force})
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "delete the replicas of other nodes, too")
	return cmd
}

func (a *app) resize() *cobra.Command {
	var size sizeFlag
	cmd := &cobra.Command{
		Use: "resize NAME", GroupID: groupResource, Args: takes("NAME"), ValidArgsFunction: a.completeResource,
		Short: "Grow a resource while it is in use",
		Long: `Grow a resource while it is in use, to what the smallest of its members' disks can hold, or to --size. Enlarge the disks first,
on all members; run this at the primary; enlarge the file system last.

Refused on other nodes than the primary, when a member's disk is too small, and for anything that would shrink the resource.`,
		Example: "  lvextend -L +10G /dev/vg0/mydata     # on every member\n  marsadm resize mydata",
		RunE: a.runs(func(ctx context.Context, args []string) error {
			return a.do(ctx, control.Command{Verb: control.VerbResize, Resource: args[0], Size: int64(size)})
		}),
	}
	cmd.Flags().Var(&size, "size", "`SIZE` to grow to, like 20GiB (default: as far as the disks allow)")
	return cmd
}

func (a *app) logRotate() *cobra.Command {
	return &cobra.Command{
		Use: "log-rotate RESOURCE", GroupID: groupResource, Args: takes("RESOURCE"), ValidArgsFunction: a.completeResource,
		Short: "Begin a new segment of the log",
		Long: `Begin a new segment of the log at the primary, so that the old one can be deleted as soon as all members have replayed it. That
happens by itself, too: no cron job is needed.

Refused on other nodes than the primary.`,
		Example: "  marsadm log-rotate mydata",
		RunE: a.runs(func(ctx context.Context, args []string) error {
			return a.forEach(ctx, args[0], control.Command{Verb: control.VerbLogRotate})
		}),
	}
}
