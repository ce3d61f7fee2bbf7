// Marsd is the daemon: it replicates block devices as marsadm tells it. See the README for a tour and package node for what it does.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"mars/internal/config"
	"mars/internal/control"
	"mars/internal/device/loop"
	"mars/internal/node"

	"github.com/spf13/cobra"
)

var version = "dev" // set by the linker

func main() { os.Exit(run()) }

// run returns the exit status: 0 stopped as asked, 1 failed, 2 usage.
func run() int {
	usage := true
	cmd := &cobra.Command{
		Use: "marsd", Short: "Replicate block devices asynchronously over any distance", Args: cobra.NoArgs, Version: version,
		SilenceUsage: true, SilenceErrors: true,
	}
	cmd.CompletionOptions.DisableDefaultCmd = true
	drop := &cobra.Command{
		Use: "drop-devices", Short: "Give up the devices that a dead marsd has left: who waits for them gets errors", Args: cobra.NoArgs,
	}
	cmd.AddCommand(drop)
	// configured makes a command take the settings, and do f with them.
	configured := func(c *cobra.Command, f func(context.Context, config.Config) error) {
		flags := config.AddFlags(c.Flags())
		c.RunE = func(c *cobra.Command, _ []string) error {
			cfg, err := flags.Load()
			if err != nil {
				return err
			}
			usage = false
			return f(c.Context(), cfg)
		}
	}
	configured(cmd, serve)
	configured(drop, func(_ context.Context, cfg config.Config) error { return node.DropDevices(cfg, os.Stdout, newLog(cfg)) })
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(os.Stderr, "marsd: %v\n", err)
	if usage {
		return 2
	}
	return 1
}

// memoryLimit makes the collector work harder before the daemon takes more; most of its data lie in the page cache, not here.
const memoryLimit = 512 << 20

func newLog(cfg config.Config) *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: cfg.LogLevel}))
}

func serve(ctx context.Context, cfg config.Config) (err error) {
	debug.SetMemoryLimit(memoryLimit)
	log := newLog(cfg)
	for _, e := range loop.ProtectFromReclaim() {
		log.Debug("not protected from memory reclaim", "err", e)
	}
	node.Version = version
	n, err := node.Open(cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	log.Info("marsd runs", "node", cfg.Name, "dir", cfg.Dir, "listen", cfg.Listen, "version", version)
	err = control.Serve(ctx, filepath.Join(cfg.Dir, control.SocketName), n, log)
	log.Info("marsd stops")
	return err
}
