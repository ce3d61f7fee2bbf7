package config

import (
	"fmt"
	"strings"

	"github.com/spf13/pflag"
)

// Flags is the command line of marsd: --config and one flag for every setting.
type Flags struct {
	set  *pflag.FlagSet
	file string
}

// AddFlags adds the flags to set, which the program parses before it calls Load.
func AddFlags(set *pflag.FlagSet) *Flags {
	f := &Flags{set: set}
	set.StringVar(&f.file, "config", "", fmt.Sprintf("`FILE` with settings (default: DIR/%s, else %s)", FileName, SystemFile))
	e, _ := realEnv() // without a host name only the default shown in the help is missing
	shown := defaults(e)
	for _, s := range settings {
		set.Var(&flagValue{text: s.show(shown), check: s.set}, s.flag(), s.help)
	}
	return f
}

// Load puts the settings together: defaults, file, flags.
func (f *Flags) Load() (Config, error) {
	given := make(map[string]string)
	f.set.Visit(func(flag *pflag.Flag) {
		key := strings.ReplaceAll(flag.Name, "-", "_")
		if settingOf(key) != nil {
			given[key] = flag.Value.String()
		}
	})
	return Load(Source{File: f.file, Set: given})
}

// flagValue checks a flag where it is parsed, so that its error is one of usage.
type flagValue struct {
	text  string
	check func(*Config, string) error
}

func (v *flagValue) String() string { return v.text }
func (v *flagValue) Type() string   { return "string" }

func (v *flagValue) Set(text string) error {
	if err := v.check(new(Config), text); err != nil {
		return err
	}
	v.text = text
	return nil
}

// Example returns a commented configuration file with all settings and their defaults.
func Example() string {
	e, _ := realEnv()
	shown := defaults(e)
	var b strings.Builder
	for _, s := range settings {
		fmt.Fprintf(&b, "# %s\n# %s = %q\n\n", strings.ReplaceAll(s.help, "`", ""), s.key, s.show(shown))
	}
	return b.String()
}
