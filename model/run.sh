#!/bin/sh
# Checks the model of the role protocol with spin.
#
#   model/run.sh small   exhaustive, under a minute of one core; part of make test
#   model/run.sh large   more nodes, longer logs; some minutes
#   model/run.sh bugs    every variant with a bug built in must be found
#
# With a number behind it only that one of the checks is made.
#
# Needs spin and a C compiler. Without them it says SKIPPED, and fails only if MARS_TEST_REQUIRE=all.
set -eu

usage() { echo "usage: $0 small|large|bugs [NUMBER]" >&2; exit 2; }
[ $# = 1 ] || [ $# = 2 ] || usage
only=${2:-}
case $1 in small|large|bugs) ;; *) usage ;; esac

for tool in spin gcc; do
	if ! command -v $tool >/dev/null; then
		echo "SKIPPED: the model is not checked: $tool is missing (apt-get install spin gcc)"
		[ "${MARS_TEST_REQUIRE:-}" = all ] && exit 1
		exit 0
	fi
done

here=$(cd "$(dirname "$0")" && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM HUP
cp "$here/role.pml" "$tmp"
cd "$tmp"
bad=0

# How the verifier is built, and its arguments. States are never reduced: the steps are atomic already, and every one is looked at.
SAFE="-DSAFETY -DNOREDUCE"
LIVE="-DNOREDUCE -DNFAIR=5"
args() {
	case $1 in
	*BITSTATE*) echo "-w33 -m100000" ;;
	*) echo "-w24 -m1000000" ;;
	esac
}

# verify NAME DEFINES BUILD: runs the verifier; its output is in the file out.
verify() {
	spin -a $2 role.pml >spin.out 2>&1 || { cat spin.out; exit 1; }
	gcc ${OPT:--O2} -w -DVECTORSZ=1024 $3 -o pan pan.c
	rm -f role.pml.trail
	set -- "$1" "$2" "$3" "$(args "$3")"
	case $3 in
	*SAFETY*) set -- "$1" "$2" "$3" "$4 -E" ;;
	*) set -- "$1" "$2" "$3" "$4 -a -f" ;;
	esac
	times >before
	./pan $4 >out 2>&1 || true
	times >after
}

# figures says how much work it was, in seconds of CPU.
figures() {
	awk '/states, stored/ {s = $1} /depth reached/ {d = $6; sub(",", "", d)} /total actual memory/ {m = $1}
		FILENAME != "out" && FNR == 2 {split($1, x, /[ms]/); t = x[1] * 60 + x[2] - t}
		END {printf "%s states, depth %s, %.0f MiB, %.1f s", s, d, m, t}' before after out
}

# complete says whether the verifier has seen everything that it was asked to.
complete() { grep -q 'errors: 0' out && ! grep -Eq 'max search depth too small|Search not completed|out of memory|reached -DMEMLIM' out; }

# chosen counts the checks and says whether this one is to be made.
count=0
chosen() {
	count=$((count + 1))
	[ -z "$only" ] || [ "$only" = $count ]
}

# holds NAME DEFINES BUILD: no error may be found.
holds() {
	chosen || return 0
	verify "$@"
	if complete; then
		printf 'ok    %-42s %s%s\n' "$1" "$(figures)" "$(case $3 in *BITSTATE*) echo ' (bitstate: not exhaustive)' ;; esac)"
	else
		printf 'FAIL  %-42s %s\n' "$1" "$(figures)"
		grep -E 'assertion violated|acceptance cycle|too small|memory' out | head -3
		[ -f role.pml.trail ] && spin -t $2 role.pml | grep -E 'node [0-9]:|CYCLE' | head -60
		bad=1
	fi
}

# caught NAME DEFINES BUILD: an error must be found.
caught() {
	chosen || return 0
	verify "$1" "$2 -DBUG -D$1" "$3"
	if grep -Eq 'errors: [1-9]' out && [ -f role.pml.trail ]; then
		printf 'caught %-18s %s\n' "$1" "$(grep -Eo 'assertion violated|acceptance cycle' out | head -1)$(figures | sed 's/^/ after /')"
	else
		printf 'MISSED %-18s %s\n' "$1" "$(figures)"
		bad=1
	fi
}

small() {
	holds "any metadata, 3 nodes"              "-DN=3 -DR=6" "$SAFE"
	holds "any metadata, 2 nodes, a force"     "-DN=2 -DR=6 -DFORCES=1" "$SAFE"
	holds "any metadata, 2 nodes, invalidate"  "-DN=2 -DR=6 -DRESETS=1" "$SAFE"
	holds "Decide, 2 nodes, damage healed"     "-DMETA -DN=2 -DR=7 -DHEALS=1 -DCMDS=1 -DCRASHES=0" "$SAFE"
	holds "Decide, 2 nodes, converges"         "-DMETA -DLIVE -DN=2 -DR=9 -DRESERVE=6 -DCMDS=2 -DCRASHES=1" "$LIVE"
	holds "Decide, 2 nodes, converges after a force" "-DMETA -DLIVE -DN=2 -DR=9 -DRESERVE=6 -DCMDS=1 -DCRASHES=1 -DFORCES=1" "$LIVE"
}

large() {
	holds "any metadata, 3 nodes, 7 records"   "-DN=3 -DR=7" "$SAFE -DCOLLAPSE"
	holds "any metadata, 3 nodes, a force"     "-DN=3 -DR=6 -DFORCES=1" "$SAFE -DBITSTATE"
	holds "any metadata, 3 nodes, invalidate"  "-DN=3 -DR=6 -DRESETS=1" "$SAFE -DBITSTATE"
	holds "any metadata, 2 nodes, 2 invalidates" "-DN=2 -DR=6 -DRESETS=2" "$SAFE"
	holds "Decide, 2 nodes, damage healed"     "-DMETA -DN=2 -DR=6 -DHEALS=1 -DCMDS=1 -DCRASHES=1" "$SAFE"
	holds "Decide, 2 nodes, a force"           "-DMETA -DN=2 -DR=6 -DFORCES=1 -DCMDS=1 -DCRASHES=1" "$SAFE -DCOLLAPSE"
	holds "Decide, 2 nodes, converges"         "-DMETA -DLIVE -DN=2 -DR=10 -DRESERVE=6 -DCMDS=2 -DCRASHES=1" "$LIVE -DCOLLAPSE"
	holds "Decide, 2 nodes, converges after a force" "-DMETA -DLIVE -DN=2 -DR=11 -DRESERVE=8 -DCMDS=2 -DCRASHES=1 -DFORCES=1" "$LIVE"
	holds "Decide, 2 nodes, converges after 2 forces" "-DMETA -DLIVE -DN=2 -DR=10 -DRESERVE=7 -DCMDS=1 -DCRASHES=1 -DFORCES=2" "$LIVE"
	holds "Decide, 3 nodes, converges"         "-DMETA -DLIVE -DN=3 -DR=9 -DRESERVE=6 -DCMDS=1 -DCRASHES=0" "$LIVE -DCOLLAPSE"
}

bugs() {
	caught BUG_NOTOKEN     "-DN=2 -DR=6" "$SAFE"
	caught BUG_STALEFACTS  "-DN=2 -DR=6" "$SAFE"
	caught BUG_SHIP        "-DN=3 -DR=7" "$SAFE"
	caught BUG_APPEND      "-DN=3 -DR=6" "$SAFE"
	caught BUG_DROPDATA    "-DN=2 -DR=6 -DFORCES=1" "$SAFE"
	caught BUG_UNSTABLE    "-DN=3 -DR=8" "$SAFE"
	caught BUG_FORGET      "-DN=3 -DR=6 -DRESETS=1" "$SAFE"
	caught BUG_BLIND       "-DMETA -DN=2 -DR=7 -DHEALS=1 -DCMDS=1 -DCRASHES=1" "$SAFE"
	caught BUG_OVERTAKEN   "-DMETA -DLIVE -DN=2 -DR=9 -DRESERVE=6 -DCMDS=1 -DCRASHES=1 -DFORCES=1" "$LIVE"
	caught BUG_STUBBORN    "-DMETA -DLIVE -DN=2 -DR=9 -DRESERVE=6 -DCMDS=1 -DCRASHES=1 -DFORCES=1" "$LIVE"
	caught BUG_NOPASS      "-DMETA -DLIVE -DN=2 -DR=10 -DRESERVE=6 -DCMDS=2 -DCRASHES=1" "$LIVE"
	caught BUG_PRIMARYONLY "-DMETA -DLIVE -DN=2 -DR=10 -DRESERVE=6 -DCMDS=2 -DCRASHES=1" "$LIVE"
}

# Compiling takes longer than a small check.
[ $1 = large ] || OPT=-O1
$1
exit $bad
