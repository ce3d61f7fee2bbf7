// Package lint holds the house rules that a compiler does not know, as tests.
package lint

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// layers lists the packages from the ground up; a package may import those before it in the list, and those beside it where it says so. See
// ARCHITECTURE.md for what each of them is.
var layers = [][]string{
	{"bytesize", "history", "lamport", "name", "block/sectors", "vfs", "vfs/inject", "vfs/crashfs", "iouring"},
	{"block", "block/blocktest", "extent", "identity", "meta"},
	{"translog", "transport", "device", "device/blockdev", "device/buffer"},
	{"replay", "ship", "fullsync", "cluster", "device/nbd", "device/loop", "device/knbd", "device/ublk", "control", "config"},
	{"volume", "view"},
	{"resource"},
	{"node"},
}

// siblings are imports inside one layer that are meant.
var siblings = map[string][]string{
	"vfs/crashfs":     {"vfs", "vfs/inject", "block/sectors"},
	"vfs/inject":      {},
	"block/blocktest": {"block"},
	"extent":          {},
	"config":          {},
	"device/knbd":     {"device/nbd"}, // serves the kernel's end of its connections
}

// pure packages have no IO, no clock, no goroutines: a simulator drives them.
var pure = []string{"history", "extent", "resource"}

const module = "mars/internal/"

type file struct {
	path, pkg string
	test      bool
	ast       *ast.File
	set       *token.FileSet
	lines     int
}

func files(t *testing.T) []file {
	t.Helper()
	var out []file
	root := "../.."
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		set := token.NewFileSet()
		a, err := parser.ParseFile(set, path, src, parser.SkipObjectResolution|parser.ParseComments)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		out = append(out, file{rel, strings.TrimPrefix(filepath.Dir(rel), "internal/"), strings.HasSuffix(path, "_test.go"), a, set, strings.Count(string(src), "\n")})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func layerOf(pkg string) int {
	return slices.IndexFunc(layers, func(l []string) bool { return slices.Contains(l, pkg) })
}

func TestImportsPointDownwards(t *testing.T) {
	for _, f := range files(t) {
		from := layerOf(f.pkg)
		if f.test || from < 0 {
			continue
		}
		for _, im := range f.ast.Imports {
			to, ok := strings.CutPrefix(strings.Trim(im.Path.Value, `"`), module)
			if !ok {
				continue
			}
			if l := layerOf(to); l < 0 || l > from || (l == from && !slices.Contains(siblings[f.pkg], to)) {
				t.Errorf("%s: package %s must not import %s", f.path, f.pkg, to)
			}
		}
	}
}

func TestPurePackagesArePure(t *testing.T) {
	banned := []string{"os", "net", "time", "math/rand", "math/rand/v2", "crypto/rand", "sync", "context"}
	for _, f := range files(t) {
		if f.test || !slices.Contains(pure, f.pkg) {
			continue
		}
		for _, im := range f.ast.Imports {
			if p := strings.Trim(im.Path.Value, `"`); slices.Contains(banned, p) {
				t.Errorf("%s: pure package imports %s", f.path, p)
			}
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if g, ok := n.(*ast.GoStmt); ok {
				t.Errorf("%s: pure package starts a goroutine", f.set.Position(g.Pos()))
			}
			return true
		})
	}
}

func TestTestsDoNotSleep(t *testing.T) {
	for _, f := range files(t) {
		if !f.test {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && s.Sel.Name == "Sleep" {
				if x, ok := s.X.(*ast.Ident); ok && x.Name == "time" {
					t.Errorf("%s: wait for a state with a deadline instead of sleeping", f.set.Position(s.Pos()))
				}
			}
			return true
		})
	}
}

// Limits of the house; see the style in CONTRIBUTING.md.
const (
	maxFunction = 70
	maxFile     = 600
)

func TestSizes(t *testing.T) {
	for _, f := range files(t) {
		if f.lines > maxFile {
			t.Errorf("%s has %d lines, more than %d: it holds more than one concept", f.path, f.lines, maxFile)
		}
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			if n := f.set.Position(fn.End()).Line - f.set.Position(fn.Pos()).Line + 1; n > maxFunction {
				t.Errorf("%s: %s has %d lines, more than %d", f.set.Position(fn.Pos()), fn.Name.Name, n, maxFunction)
			}
		}
	}
}

func TestExportedNamesAreDocumented(t *testing.T) {
	for _, f := range files(t) {
		if f.test || !strings.HasPrefix(f.path, "internal/") {
			continue
		}
		for _, d := range f.ast.Decls {
			for _, name := range undocumented(d) {
				t.Errorf("%s: %s has no comment", f.path, name)
			}
		}
	}
}

func undocumented(d ast.Decl) []string {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Doc == nil && d.Name.IsExported() && (d.Recv == nil || receiverExported(d.Recv)) && !wellKnown(d.Name.Name) {
			return []string{d.Name.Name}
		}
	case *ast.GenDecl:
		var out []string
		for _, s := range d.Specs {
			if ts, ok := s.(*ast.TypeSpec); ok && ts.Name.IsExported() && d.Doc == nil && ts.Doc == nil {
				out = append(out, ts.Name.Name)
			}
		}
		return out
	}
	return nil
}

// wellKnown methods mean the same everywhere.
func wellKnown(name string) bool {
	return slices.Contains([]string{"Error", "Unwrap", "Is", "String", "Close", "Len", "Less", "Swap", "Set", "Type", "MarshalText", "UnmarshalText"}, name)
}

func receiverExported(r *ast.FieldList) bool {
	x := r.List[0].Type
	if p, ok := x.(*ast.StarExpr); ok {
		x = p.X
	}
	id, ok := x.(*ast.Ident)
	return ok && id.IsExported()
}

func Example() {
	fmt.Println(layerOf("node") > layerOf("volume"))
	// Output: true
}
