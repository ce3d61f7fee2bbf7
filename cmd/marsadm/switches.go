package main

import (
	"context"

	"github.com/spf13/cobra"

	"mars/internal/control"
)

// switchText is what differs between the commands that turn something on or off.
type switchText struct {
	use, verb   string
	short, long string
}

var switchTexts = []switchText{
	{"up", control.VerbUp, "Turn everything on", `Turn everything on: attach the disk, resume fetch, replay and sync. At the designated primary the device comes back.

Refused when the disk cannot be opened.`},
	{"down", control.VerbDown, "Turn everything off", `Turn everything off: pause sync, fetch and replay, and detach the disk.

Refused while the device is in use.`},
	{"attach", control.VerbAttach, "Open the disk", `Open the disk. What the other switches say goes on.

Refused when the disk is missing, smaller than the resource or open elsewhere.`},
	{"detach", control.VerbDetach, "Close the disk", `Close the disk, so that it can be used otherwise: fetch, replay and sync stop, the device of a primary goes away. The other
switches are remembered for attach. A disk that is written to while detached has to be invalidated.

Refused while the device is in use.`},
	{"pause-fetch", control.VerbPauseFetch, "Stop fetching the log", `Stop fetching the log of the primary, as if the network were cut for this resource. The primary goes on and keeps the log.`},
	{"resume-fetch", control.VerbResumeFetch, "Fetch the log again", `Fetch the log of the primary again, from where it was stopped.`},
	{"disconnect", control.VerbPauseFetch, "Same as pause-fetch", `Same as pause-fetch.`},
	{"connect", control.VerbResumeFetch, "Same as resume-fetch", `Same as resume-fetch.`},
	{"pause-replay", control.VerbPauseReplay, "Freeze the disk's state", `Stop applying the log to the disk, which keeps its present, consistent state; the log is still fetched.`},
	{"resume-replay", control.VerbResumeReplay, "Apply the log again", `Apply the log to the disk again.`},
	{"pause-sync", control.VerbPauseSync, "Stop the sync", `Stop a sync that runs, or keep one from starting. It remembers where it was.`},
	{"resume-sync", control.VerbResumeSync, "Continue the sync", `Continue a sync from where it was stopped.`},
}

func (a *app) switchCommands() []*cobra.Command {
	var commands []*cobra.Command
	for _, text := range switchTexts {
		commands = append(commands, &cobra.Command{
			Use: text.use + " RESOURCE", GroupID: groupSwitch, Args: takes("RESOURCE"), ValidArgsFunction: a.completeResource,
			Short:   text.short,
			Long:    text.long + "\n\nIt concerns only this node, and it lasts, also over restarts.",
			Example: "  marsadm " + text.use + " mydata\n  marsadm " + text.use + " all",
			RunE: a.runs(func(ctx context.Context, args []string) error {
				return a.forEach(ctx, args[0], control.Command{Verb: text.verb})
			}),
		})
	}
	return commands
}
