package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"mars/tests/vm/lab"
)

// programs maps what the machines have in /host to files of this host; built once per run.
var programs = map[string]string{}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "mars-vm-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	for _, pkg := range []string{"mars/cmd/marsd", "mars/cmd/marsadm", "mars/tests/vm/writer"} {
		file, err := lab.Build(context.Background(), dir, pkg)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		programs["bin/"+filepath.Base(pkg)] = file
	}
	return m.Run()
}

// require skips the test, or fails it when skipping is not allowed. A mirror that cannot be reached is nobody's fault here.
func require(t *testing.T, missing error) {
	t.Helper()
	if missing == nil {
		return
	}
	if os.Getenv("MARS_TEST_REQUIRE") == "all" && !errors.Is(missing, lab.ErrNotFetched) {
		t.Fatalf("REQUIRED BUT MISSING: %v", missing)
	}
	t.Skipf("SKIPPED: %v", missing)
}

// long marks a scenario that only make vm runs.
func long(t *testing.T) {
	t.Helper()
	if os.Getenv("MARS_VM") != "all" {
		t.Skip("one of the scenarios of make vm")
	}
}
