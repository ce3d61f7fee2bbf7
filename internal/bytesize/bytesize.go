// Package bytesize reads and writes amounts of bytes the way people do: "64GiB", "1.5 TiB", "512K".
//
// All units are binary: K, KiB = 1024 bytes, M, MiB = 1024 K, and so on to E. The decimal spellings (KB, MB, GB, ...) are refused instead of
// guessed: half of the world means 1000, the other half 1024, and a disk that is 7 % too small is found out too late.
package bytesize

import (
	"fmt"
	"math"
	"math/big"
	"strings"
)

// maxInput bounds what Parse looks at: more digits than any int64 or useful fraction has.
const maxInput = 40

var units = []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}

// Parse reads a size: a number, not negative, possibly with a decimal fraction, and a unit (none means bytes). The value must be a whole
// number of bytes that fits into an int64. Upper and lower case are the same.
func Parse(s string) (int64, error) {
	text := strings.TrimSpace(s)
	if len(text) > maxInput {
		return 0, fmt.Errorf("size of %d characters is too long (like 64GiB)", len(text))
	}
	end := strings.LastIndexAny(text, "0123456789.") + 1
	number, unit := text[:end], strings.TrimSpace(text[end:])
	shift, ok := unitShift(unit)
	if !ok {
		return 0, unitError(s, unit)
	}
	if !isDecimal(number) {
		return 0, fmt.Errorf("size %q is not a number with a unit (like 64GiB)", s)
	}
	value, ok := new(big.Rat).SetString(number)
	if !ok {
		return 0, fmt.Errorf("size %q is not a number with a unit (like 64GiB)", s)
	}
	value.Mul(value, new(big.Rat).SetInt64(1<<shift))
	if !value.IsInt() {
		return 0, fmt.Errorf("size %q is not a whole number of bytes", s)
	}
	if !value.Num().IsInt64() {
		return 0, fmt.Errorf("size %q is too large (at most %s)", s, Format(math.MaxInt64))
	}
	return value.Num().Int64(), nil
}

// isDecimal tells whether s is digits with at most one point among or before them, which leaves out the signs, exponents and fractions
// that big.Rat would also read.
func isDecimal(s string) bool {
	digits, points := 0, 0
	for _, c := range s {
		switch {
		case c == '.':
			points++
		case c >= '0' && c <= '9':
			digits++
		default:
			return false
		}
	}
	return digits > 0 && points <= 1
}

func unitShift(unit string) (uint, bool) {
	u := strings.ToUpper(unit)
	if u == "" || u == "B" {
		return 0, true
	}
	for i, name := range units[1:] {
		if u == name[:1] || u == strings.ToUpper(name) {
			return uint(i+1) * 10, true
		}
	}
	return 0, false
}

func unitError(s, unit string) error {
	u := strings.ToUpper(unit)
	if len(u) == 2 && u[1] == 'B' && strings.Contains("KMGTPE", u[:1]) {
		return fmt.Errorf("size %q: unit %q may mean 1000 or 1024: write %siB", s, unit, u[:1])
	}
	return fmt.Errorf("size %q has no known unit (B, KiB, MiB, GiB, TiB, or K, M, G, T)", s)
}

// Format writes n for people, with three digits: "10.0 GiB", "512 KiB", "0 B". It rounds; Exact does not.
func Format(n int64) string {
	if n < 0 {
		return "-" + Format(-max(n, -math.MaxInt64))
	}
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n), 0
	for v >= 999.5 && unit < len(units)-1 {
		v /= 1024
		unit++
	}
	switch {
	case v < 9.995:
		return fmt.Sprintf("%.2f %s", v, units[unit])
	case v < 99.95:
		return fmt.Sprintf("%.1f %s", v, units[unit])
	}
	return fmt.Sprintf("%.0f %s", v, units[unit])
}

// Exact writes n with the largest unit that loses nothing: "64GiB", "1537B". Parse reads it back to the same value.
func Exact(n int64) string {
	unit := 0
	for n != 0 && n%1024 == 0 && unit < len(units)-1 {
		n /= 1024
		unit++
	}
	return fmt.Sprintf("%d%s", n, units[unit])
}
