package lint

import (
	"go/ast"
	"os"
	"regexp"
	"testing"
)

// TestGuaranteesAreShown: each test that GUARANTEES.md names exists.
func TestGuaranteesAreShown(t *testing.T) {
	text, err := os.ReadFile("../../GUARANTEES.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]bool{}
	for _, f := range files(t) {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && f.test {
				tests[fn.Name.Name] = true
			}
		}
	}
	named := regexp.MustCompile("`(Test[A-Za-z0-9]+)`").FindAllSubmatch(text, -1)
	if len(named) < 40 {
		t.Errorf("only %d tests are named: this looks for something else than is written there", len(named))
	}
	for _, m := range named {
		if !tests[string(m[1])] {
			t.Errorf("GUARANTEES.md names %s, which does not exist", m[1])
		}
	}
}
