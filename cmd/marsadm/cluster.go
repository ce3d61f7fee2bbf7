package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mars/internal/control"
)

func (a *app) clusterCommands() []*cobra.Command {
	return []*cobra.Command{a.createCluster(), a.joinToken(), a.joinCluster(), a.leaveCluster()}
}

func (a *app) createCluster() *cobra.Command {
	return &cobra.Command{
		Use: "create-cluster", GroupID: groupCluster, Args: takes(),
		Short: "Start a new cluster with this node as its only member",
		Long: `Start a new cluster with this node as its only member. The cluster gets its own certificate authority: from then on nodes
talk only to members, encrypted, each side proving who it is.

Refused when this node is already in a cluster.`,
		Example: "  marsadm create-cluster",
		RunE: a.runs(func(ctx context.Context, _ []string) error {
			return a.do(ctx, control.Command{Verb: control.VerbCreateCluster})
		}),
	}
}

func (a *app) joinToken() *cobra.Command {
	ttl := time.Hour
	cmd := &cobra.Command{
		Use: "join-token", GroupID: groupCluster, Args: takes(),
		Short: "Print a token with which one node can join the cluster",
		Long: `Print a token with which one node can join the cluster, once, until it expires. It holds this node's address, a fingerprint of
the cluster's authority, by which the newcomer recognises the right cluster, and a secret: treat it like a password.

The token goes to stdout, alone; everything else to stderr.`,
		Example: "  marsadm join-token --ttl 10m",
		RunE: a.runs(func(ctx context.Context, _ []string) error {
			if ttl <= 0 {
				return usageError{fmt.Errorf("--ttl %v is not more than 0", ttl)}
			}
			return a.do(ctx, control.Command{Verb: control.VerbJoinToken, TTL: ttl})
		}),
	}
	cmd.Flags().DurationVar(&ttl, "ttl", ttl, fmt.Sprintf("`TIME` until the token expires, at most %v", control.MaxTTL))
	return cmd
}

func (a *app) joinCluster() *cobra.Command {
	var token string
	cmd := &cobra.Command{
		Use: "join-cluster HOST:PORT --token TOKEN", GroupID: groupCluster, Args: takes("HOST:PORT"),
		Short: "Make this node a member of the cluster of another node",
		Long: `Make this node a member of the cluster of another node, with a token from "marsadm join-token" there. Nothing is believed that
does not come from the cluster named in the token.

Refused when this node is already in a cluster, when the token is wrong, used or expired, and when the cluster has a node of this name.`,
		Example: "  marsadm join-cluster node-a:7777 --token TOKEN\n  marsadm join-cluster node-a:7777 --token - < token-file",
		RunE: a.runs(func(ctx context.Context, args []string) error {
			secret, err := a.readToken(token)
			if err != nil {
				return err
			}
			return a.do(ctx, control.Command{Verb: control.VerbJoinCluster, Peer: args[0], Token: secret})
		}),
	}
	cmd.Flags().StringVar(&token, "token", "", "`TOKEN` from marsadm join-token; - reads it from stdin, where no process list shows it")
	if err := cmd.MarkFlagRequired("token"); err != nil {
		panic(err) // the flag is defined in the line above
	}
	return cmd
}

// maxTokenLine bounds what is read from stdin.
const maxTokenLine = 1 << 16

func (a *app) readToken(flag string) (string, error) {
	if flag != "-" {
		return flag, nil
	}
	text, err := bufio.NewReader(io.LimitReader(a.in, maxTokenLine)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read the token from stdin: %w", err)
	}
	return strings.TrimSpace(text), nil
}

func (a *app) leaveCluster() *cobra.Command {
	var host string
	var force bool
	cmd := &cobra.Command{
		Use: "leave-cluster", GroupID: groupCluster, Args: takes(),
		Short: "End the membership of this node in its cluster, or of a dead one",
		Long: `End this node's membership in its cluster. The other members forget it and refuse it from then on.

Refused while this node has a replica of a resource (see leave-resource), and while no other member can be told, or has taken all
that was changed here (none does that while the clocks are far apart); --force leaves without telling. With --host X --force it acts for a node X that is dead and cannot leave itself; X is refused by the others when it
comes back and has to join again.`,
		Example: "  marsadm leave-cluster\n  marsadm leave-cluster --host node-b --force",
		RunE: a.runs(func(ctx context.Context, _ []string) error {
			return a.do(ctx, control.Command{Verb: control.VerbLeaveCluster, Host: host, Force: force})
		}),
	}
	cmd.Flags().StringVar(&host, "host", "", "`NODE` that is dead and whose membership is ended; needs --force")
	cmd.Flags().BoolVar(&force, "force", false, "leave even if no other member can be told")
	return cmd
}
