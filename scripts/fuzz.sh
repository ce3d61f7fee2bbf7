#!/bin/sh
# Runs every fuzz target for a while: fuzz.sh 5000x (inputs) or fuzz.sh 60s (time)
set -eu
for dir in $(grep -rlE '^func Fuzz' --include='*_test.go' internal cmd | xargs -n1 dirname | sort -u); do
	for target in $(grep -hoE '^func Fuzz[A-Za-z0-9_]*' "$dir"/*_test.go | sed 's/func //' | sort -u); do
		echo "fuzz ./$dir $target"
		go test "./$dir" -run '^$' -fuzz "^$target\$" -fuzztime "${1:-5000x}" -fuzzminimizetime 10x >/tmp/mars-fuzz.$$ 2>&1 || { cat /tmp/mars-fuzz.$$; rm -f /tmp/mars-fuzz.$$; exit 1; }
	done
done
rm -f /tmp/mars-fuzz.$$
