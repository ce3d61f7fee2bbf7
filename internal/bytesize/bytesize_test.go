package bytesize

import (
	"math"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]int64{
		"0":                   0,
		"17":                  17,
		"17B":                 17,
		" 64 GiB ":            64 << 30,
		"64g":                 64 << 30,
		"512K":                512 << 10,
		"512kib":              512 << 10,
		"1.5TiB":              3 << 39,
		".5k":                 512,
		"1.M":                 1 << 20,
		"7E":                  7 << 60,
		"9223372036854775807": math.MaxInt64,
	} {
		got, err := Parse(in)
		if err != nil || got != want {
			t.Errorf("Parse(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                        "not a number",
		"GiB":                     "not a number",
		"-1":                      "not a number",
		"+1":                      "not a number",
		"1e3":                     "not a number",
		"0x10":                    "not a number",
		"1/2K":                    "not a number",
		"1 2":                     "not a number",
		"1.2.3":                   "not a number",
		"10GB":                    "write GiB",
		"10 furlongs":             "known unit",
		"1.0001K":                 "whole number",
		"8E":                      "too large",
		"9223372036854775808":     "too large",
		strings.Repeat("9", 4000): "too long",
	} {
		_, err := Parse(in)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%.20q): error %v, want one with %q", in, err, want)
		}
	}
}

func TestFormat(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{
		0:             "0 B",
		999:           "999 B",
		1000:          "0.98 KiB",
		1024:          "1.00 KiB",
		10 << 30:      "10.0 GiB",
		112 << 20:     "112 MiB",
		1288490189:    "1.20 GiB",
		10<<30 - 1:    "10.0 GiB",
		1000 << 20:    "0.98 GiB",
		math.MaxInt64: "8.00 EiB",
		math.MinInt64: "-8.00 EiB",
		-4096:         "-4.00 KiB",
	} {
		if got := Format(n); got != want {
			t.Errorf("Format(%d) = %q, want %q", n, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"0", "64GiB", "1.5 TiB", "10GB", "-1", "9223372036854775807", "1e9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := Parse(s)
		if err != nil {
			return
		}
		if n < 0 {
			t.Fatalf("Parse(%q) = %d, negative", s, n)
		}
		back, err := Parse(Exact(n))
		if err != nil || back != n {
			t.Fatalf("Parse(Exact(%d)) = %d, %v", n, back, err)
		}
		if len(Format(n)) > len("1000 KiB") {
			t.Fatalf("Format(%d) = %q", n, Format(n))
		}
	})
}
