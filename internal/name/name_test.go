package name

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestCheckResource(t *testing.T) {
	t.Parallel()
	good := []string{"mydata", "a", "0", "_x", "vm-17.disk_0", "A..B", strings.Repeat("x", MaxLen)}
	for _, s := range good {
		if err := CheckResource(s); err != nil {
			t.Errorf("%q refused: %v", s, err)
		}
	}
	bad := []string{
		"", ".", "..", "../x", ".hidden", "-rf", "a/b", "a\\b", "a b", "a\x00b", "a\nb", "a,b", "ä", "a\u202eb", "(none)", "a*", "all", "\xff",
		strings.Repeat("x", MaxLen+1), strings.Repeat("x", 4096),
	}
	for _, s := range bad {
		if err := CheckResource(s); err == nil {
			t.Errorf("%q accepted", s)
		} else if strings.ContainsAny(err.Error(), "\n\x00") || len(err.Error()) > 400 {
			t.Errorf("%.20q: error is not one short line: %q", s, err)
		}
	}
}

func TestNodeMayBeCalledAll(t *testing.T) {
	t.Parallel()
	if err := CheckNode("all"); err != nil {
		t.Error(err)
	}
	if err := CheckNode("../etc"); err == nil {
		t.Error("path accepted as node name")
	}
}

func FuzzCheck(f *testing.F) {
	for _, s := range []string{"mydata", "../x", "a\x00", "ä", ".", "-f", strings.Repeat("x", 64)} {
		f.Add(s)
	}
	pattern := regexp.MustCompile(`\A[A-Za-z0-9_][A-Za-z0-9._-]{0,62}\z`)
	f.Fuzz(func(t *testing.T, s string) {
		ok := CheckNode(s) == nil
		if ok != pattern.MatchString(s) {
			t.Fatalf("CheckNode(%q) ok = %v, pattern says %v", s, ok, !ok)
		}
		if ok && filepath.Join("/d", s) != "/d/"+s {
			t.Fatalf("%q leads out of its directory", s)
		}
	})
}
