// Package name says what resources and nodes may be called. Names become parts of paths, of log lines and of commands typed at a shell, on
// every node: so they are short, printable and cannot lead anywhere else.
package name

import "fmt"

// MaxLen is the longest allowed name, in bytes: that of a DNS label.
const MaxLen = 63

// All stands for every resource on the command line and therefore cannot be the name of one.
const All = "all"

// CheckResource returns why s cannot be the name of a resource, or nil.
func CheckResource(s string) error {
	if s == All {
		return fmt.Errorf("resource name %q is reserved: it means every resource", s)
	}
	return check("resource", s)
}

// CheckNode returns why s cannot be the name of a node, or nil.
func CheckNode(s string) error { return check("node", s) }

func check(what, s string) error {
	if s == "" {
		return fmt.Errorf("%s name is empty", what)
	}
	if len(s) > MaxLen {
		return fmt.Errorf("%s name %q... has %d bytes: at most %d are allowed", what, s[:16], len(s), MaxLen)
	}
	if s[0] == '.' || s[0] == '-' {
		return fmt.Errorf("%s name %q starts with %q: a letter, a digit or _ is allowed there", what, s, s[0])
	}
	for i := range len(s) {
		if !allowed(s[i]) {
			return fmt.Errorf("%s name %q has a forbidden character: allowed are A-Z a-z 0-9 . _ -", what, s)
		}
	}
	return nil
}

func allowed(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-'
}
