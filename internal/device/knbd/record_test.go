package knbd

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func testRecord(dir string) (record, error) {
	r := newRecord(&Config{Name: "data", Resource: "id", Tenure: "t1", Link: filepath.Join(dir, "link")})
	return r, r.save(dir)
}

func TestRecords(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, err := testRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := testRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	b.Abandoned = true
	if err := b.save(dir); err != nil {
		t.Fatal(err)
	}
	got, err := records(dir)
	if err != nil || len(got) != 2 {
		t.Fatalf("%v, %v", got, err)
	}
	for _, r := range got {
		if r != a && r != b {
			t.Errorf("%+v is neither\n%+v nor\n%+v", r, a, b)
		}
	}
	if err := a.remove(dir); err != nil {
		t.Fatal(err)
	}
	if got, err := records(dir); err != nil || len(got) != 1 || got[0] != b {
		t.Errorf("%v, %v", got, err)
	}
}

// A record that cannot be trusted is reported and not acted upon; the others are.
func TestBadRecords(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	good, err := testRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(good.file(dir))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"renamed.json": string(text), "torn.json": string(text[:20]), "empty.json": "",
		"large.json": strings.Repeat(" ", maxRecord+1), "half.json.tmp": "x", "note": "not ours",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := records(dir)
	if len(got) != 1 || got[0] != good {
		t.Errorf("got %v", got)
	}
	for _, name := range []string{"renamed", "torn", "empty", "large"} {
		if err == nil || !strings.Contains(err.Error(), name+".json") {
			t.Errorf("%s is not reported: %v", name, err)
		}
	}
}

// After a reboot the kernel knows none of the devices: their records go.
func TestLeftoversOfAnEarlierBoot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for range 3 {
		if _, err := testRecord(dir); err != nil {
			t.Fatal(err)
		}
	}
	left, err := Leftovers(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("%v, %v", left, err)
	}
	if got, err := records(dir); err != nil || len(got) != 0 {
		t.Errorf("records are left: %v, %v", got, err)
	}
	if left, err := Leftovers(filepath.Join(dir, "none")); err != nil || len(left) != 0 {
		t.Errorf("without a directory: %v, %v", left, err)
	}
}

// Who looks for what former processes have left, while a device is being made, does not take its record for one of those: it would remove the
// record, or disconnect the device that has just come to it.
func TestLeftoversWhileADeviceIsMade(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := newRecord(&Config{Name: "data", Resource: "id", Tenure: "t1", Link: filepath.Join(dir, "link")})
	looked := make(chan error, 1)
	index, err := r.make(dir, func() (uint32, error) {
		go func() {
			_, err := leftovers(dir)
			looked <- err
		}()
		select {
		case err := <-looked:
			t.Errorf("it did not wait, and says %v", err)
			looked <- err
		case <-time.After(50 * time.Millisecond):
		}
		if got, err := records(dir); err != nil || len(got) != 1 || got[0] != r {
			t.Errorf("%v, %v", got, err)
		}
		return 7, nil
	})
	if index != 7 || err != nil {
		t.Errorf("device %d, %v", index, err)
	}
	if err := <-looked; err != nil {
		t.Error(err)
	}
	refused := errors.New("no device")
	if _, err := r.make(dir, func() (uint32, error) { return 0, refused }); !errors.Is(err, refused) {
		t.Errorf("a device that is refused gives %v", err)
	}
	if got, err := records(dir); err != nil || len(got) != 0 {
		t.Errorf("records without a device: %v, %v", got, err)
	}
}
