package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// applyFile overlays c with the settings of a TOML file. Errors name the line where they can.
func (c *Config) applyFile(data []byte) error {
	var values map[string]any
	if _, err := toml.Decode(string(data), &values); err != nil {
		return syntaxError(err)
	}
	if err := onlyKnown(values, data); err != nil {
		return err
	}
	for _, s := range settings {
		value, ok := values[s.key]
		if !ok {
			continue
		}
		text, err := s.text(value)
		if err == nil {
			err = s.set(c, text)
		}
		if err != nil {
			return fmt.Errorf("%s%s: %w", lineOf(data, s.key), s.key, err)
		}
	}
	return nil
}

// text returns the TOML value as the text that set reads.
func (s setting) text(value any) (string, error) {
	switch v := value.(type) {
	case string:
		if s.path && !filepath.IsAbs(v) {
			return "", fmt.Errorf("%q is not an absolute path", v)
		}
		return v, nil
	case int64:
		if s.ints {
			return strconv.FormatInt(v, 10), nil
		}
	}
	want := `a string in quotes`
	if s.ints {
		want = `a size like "64GiB" or a number of bytes`
	}
	return "", fmt.Errorf("the value is %s: it must be %s", describe(value), want)
}

func describe(value any) string {
	switch v := value.(type) {
	case bool, int64, float64:
		return fmt.Sprint(v)
	case map[string]any:
		return "a table"
	case []any, []map[string]any:
		return "a list"
	}
	return "of another type"
}

// onlyKnown names all keys that mean nothing, in the order of the file.
func onlyKnown(values map[string]any, data []byte) error {
	var unknown []string
	for key := range values {
		if settingOf(key) == nil {
			unknown = append(unknown, key)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	slices.SortFunc(unknown, func(a, b string) int {
		if d := findLine(data, a) - findLine(data, b); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	const most = 5
	named := make([]string, 0, most)
	for _, key := range unknown[:min(most, len(unknown))] {
		named = append(named, fmt.Sprintf("%sunknown key %q%s", lineOf(data, key), shorten(key), suggestion(key)))
	}
	if rest := len(unknown) - most; rest > 0 {
		named = append(named, fmt.Sprintf("and %d more", rest))
	}
	return errors.New(strings.Join(named, "; "))
}

// suggestion helps with the usual mistakes: a flag's dashes, upper case.
func suggestion(key string) string {
	likely := strings.ToLower(strings.ReplaceAll(key, "-", "_"))
	if settingOf(likely) != nil {
		return fmt.Sprintf(" (meant: %s?)", likely)
	}
	return ""
}

func syntaxError(err error) error {
	var parse toml.ParseError
	if errors.As(err, &parse) {
		return fmt.Errorf("line %d: %s", parse.Position.Line, strings.ReplaceAll(parse.Message, "\n", " "))
	}
	return err
}

func lineOf(data []byte, key string) string {
	if n := findLine(data, key); n > 0 {
		return fmt.Sprintf("line %d: ", n)
	}
	return ""
}

// findLine returns the line that sets key, 0 if it does not look like one. All settings are plain keys at the top level, so this finds them
// without a position from the parser, which has none to give.
func findLine(data []byte, key string) int {
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		rest, ok := strings.CutPrefix(strings.TrimLeft(line, "[\"' \t"), key)
		rest = strings.TrimLeft(rest, "\"' \t")
		if ok && rest != "" && strings.Contains("=].", rest[:1]) {
			return n
		}
	}
	return 0
}

func shorten(s string) string {
	const limit = 64
	if len(s) <= limit {
		return s
	}
	return s[:limit] + "..."
}
