package main

import (
	"context"
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker: -X main.version=...
var version string

func ownVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", GroupID: groupLook, Args: takes(),
		Short:   "Show the versions of marsadm and of the running marsd",
		Long:    `Show the version of marsadm, and that of the running marsd if there is one; that there is none is not a failure.`,
		Example: "  marsadm version",
		RunE: a.runs(func(ctx context.Context, _ []string) error {
			answer := struct {
				Marsadm string `json:"marsadm"`
				Marsd   string `json:"marsd,omitempty"`
			}{Marsadm: ownVersion()}
			short, cancel := context.WithTimeout(ctx, completionTime)
			defer cancel()
			if st, err := a.client().Status(short); err == nil {
				answer.Marsd = st.Version
			}
			if a.json {
				return a.printJSON(answer)
			}
			text := "marsadm " + answer.Marsadm
			if answer.Marsd != "" {
				text += fmt.Sprintf("\nmarsd   %s", answer.Marsd)
			}
			return say(a.out, text)
		}),
	}
}
