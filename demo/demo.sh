#!/usr/bin/env bash
# MARS in one minute: two nodes on this machine, one replicated block device, and everything that an operator does with it, including the
# day on which the primary dies. Leaves nothing behind. Exit status 0 only if every check has passed.
#
# As root with /dev/fuse the application is an ext4; otherwise (or with MARS_DEMO=nbd) it writes over NBD and needs no privileges.
set -euo pipefail

repo=$(cd "$(dirname "$0")/.." && pwd)
tmp=$(mktemp -d "${TMPDIR:-/tmp}/mars-demo-XXXXXX")
declare -A pid
application=

if [ -t 1 ]; then
	bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
else
	bold='' dim='' green='' red='' plain=''
fi

chapter() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
tell() { printf '%s   %s%s\n' "$dim" "$*" "$plain"; }
good() { printf '%s   ok: %s%s\n' "$green" "$*" "$plain"; }
fail() {
	printf '%sFAILED: %s%s\n' "$red" "$*" "$plain" >&2
	tail -n 20 "$tmp"/*.log >&2 || true
	exit 1
}

# on NODE COMMAND...: shows a command at that node's prompt and runs it there.
on() {
	local node=$1
	shift
	printf '%s%s$%s %s\n' "$bold" "$node" "$plain" "$*"
	MARS_DIR=$tmp/$node "$@"
}

# refused NODE COMMAND...: the same for a command that must be refused.
refused() {
	if on "$@" 2>&1; then fail "that should have been refused"; fi
}

clean_up() {
	local status=$?
	trap - EXIT INT TERM
	rm -f run
	set +e
	exec 2>/dev/null
	for p in "${pid[@]}" $application; do kill "$p"; done
	mountpoint -q "$tmp/mnt" && umount -l "$tmp/mnt"
	for p in "${pid[@]}" $application; do wait "$p"; done
	cd /
	rm -rf --one-file-system "$tmp"
	exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

build() {
	printf 'building ... '
	(cd "$repo" && CGO_ENABLED=0 go build -buildvcs=false -o "$tmp/bin/" ./cmd/marsd ./cmd/marsadm ./demo/load)
	echo done
	export PATH=$tmp/bin:$PATH
	cd "$tmp"
}

# ---- the application: real files on a real ext4, or numbered blocks over NBD

can_mount() {
	[ "${MARS_DEMO:-}" != nbd ] && [ "$(id -u)" = 0 ] && [ -c /dev/fuse ] && [ -c /dev/loop-control ] && command -v mkfs.ext4 >/dev/null
}

write_files() {
	local i
	while [ -e run ]; do
		i=$(date +%s%N)
		head -c 1M /dev/urandom >"mnt/$i" || return
		sync "mnt/$i" || return
		(cd mnt && sha256sum "$i") >>sums || return
		sleep 0.04
	done
	echo "   it has written and synced $(wc -l <sums) files of 1 MiB so far"
}

app_open() { # NODE: makes the data of the device accessible there
	[ "$front" = loop ] && on "$1" mount "$tmp/dev-$1/mydata" mnt
	return 0
}

app_close() {
	[ "$front" = loop ] && on "$1" umount mnt
	return 0
}

app_start() { # NODE
	touch run
	if [ "$front" = loop ]; then
		write_files &
	else
		load -socket "$1/dev/mydata.sock" -note note -while run &
	fi
	application=$!
	tell "the application writes ..."
}

app_stop() {
	rm run
	wait "$application" || fail "the application got an error"
	application=
}

app_check() { # NODE
	if [ "$front" = loop ]; then
		(cd mnt && sha256sum --quiet -c ../sums) || fail "data are missing or wrong at $1"
		good "all $(wc -l <sums) files are there, with the right checksums"
	else
		good "$(load -socket "$1/dev/mydata.sock" -note note)" || fail "data are missing or wrong at $1"
	fi
}

# ---- the nodes

start_node() { # NODE PORT
	printf '%s%s$%s marsd --name %s --listen 127.0.0.1:%s --device %s &\n' "$bold" "$1" "$plain" "$1" "$2" "$front"
	marsd --dir "$tmp/$1" --name "$1" --listen "127.0.0.1:$2" --device "$front" --dev-dir "$tmp/dev-$1" --log-reserve 64MiB >>"$1.log" 2>&1 &
	pid[$1]=$!
	for _ in $(seq 200); do
		marsadm --dir "$1" view >/dev/null 2>&1 && return
		sleep 0.05
	done
	fail "marsd on $1 does not answer"
}

view_for() { # NODE SECONDS: shows how things go on
	for _ in $(seq "$2"); do
		sleep 1
		on "$1" marsadm view mydata
	done
}

view_sync() { # NODE: shows how the replica there is filled
	until marsadm --dir "$1" wait-resource mydata consistent --timeout 1s >/dev/null 2>&1; do
		on "$1" marsadm view mydata
	done
}

free_port() { # a port that nobody listens on
	local port
	for port in $(shuf -i 20000-29999 -n 50); do
		(: >"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port" && return; }
	done
	fail "no free port"
}

# ---- the story

printf '%sMARS: asynchronous replication of block devices%s\n' "$bold" "$plain"
build
began=$SECONDS
if can_mount; then front=loop; else front=none; fi
mkdir mnt
port_alpha=$(free_port) port_beta=$(free_port)

chapter "A cluster of two nodes"
start_node alpha "$port_alpha"
start_node beta "$port_beta"
on alpha marsadm create-cluster
tell "A token lets one node in, once. From then on they talk over mutual TLS."
token=$(on alpha marsadm join-token 2>/dev/null | tail -n 1)
echo "${bold}alpha\$${plain} marsadm join-token"
printf '%.40s...\n' "$token"
printf '%sbeta$%s marsadm join-cluster 127.0.0.1:%s --token ...\n' "$bold" "$plain" "$port_alpha"
marsadm --dir beta join-cluster "127.0.0.1:$port_alpha" --token - <<<"$token"

chapter "A block device"
truncate -s 512M alpha.img beta.img
on alpha marsadm create-resource mydata alpha.img
if [ "$front" = loop ]; then
	tell "It is a block device like any other: a file system goes onto it."
	on alpha mkfs.ext4 -q "$tmp/dev-alpha/mydata"
else
	tell "Without root it is an NBD export; the application writes numbered blocks."
fi
app_open alpha
app_start alpha
view_for alpha 2

chapter "A second replica, while the application writes"
on beta marsadm join-resource mydata beta.img
on beta marsadm view mydata
view_sync beta
view_for beta 2
good "beta follows; the application never noticed"

chapter "Handover: nothing is lost, nobody is surprised"
tell "While the device is in use it stays where it is, and mars says who uses it:"
refused beta marsadm primary mydata --timeout 2s
app_stop
app_close alpha
on beta marsadm primary mydata --timeout 30s
app_open beta
app_check beta
on beta marsadm view mydata

chapter "Disaster: the primary dies in the middle of its work"
app_start beta
view_for beta 2
app_stop
on alpha marsadm wait-resource mydata replay-reached --timeout 30s
echo "${bold}beta\$${plain} kill -9 $(printf '%s' "${pid[beta]}")     # marsd"
kill -9 "${pid[beta]}"
wait "${pid[beta]}" 2>/dev/null || true
mountpoint -q mnt && umount -l mnt
tell "A planned handover is impossible now. That it is forced, somebody has to say:"
refused alpha marsadm primary mydata --timeout 5s
on alpha marsadm primary mydata --force --timeout 30s
app_open alpha
app_check alpha
app_start alpha
view_for alpha 1
app_stop

chapter "The dead node comes back"
start_node beta "$port_beta"
tell "It had nothing that alpha lacks, so it follows by itself."
on beta marsadm wait-resource mydata uptodate --timeout 30s
on beta marsadm view mydata
app_check alpha

chapter "Are the disks the same?"
app_close alpha
on alpha marsadm secondary mydata --timeout 30s
on alpha marsadm wait-resource mydata replay-reached --timeout 30s
on beta marsadm wait-resource mydata replay-reached --timeout 30s
on beta sha256sum alpha.img beta.img
cmp alpha.img beta.img || fail "the disks differ"
good "bit by bit"
for node in alpha beta; do
	kill "${pid[$node]}"
	wait "${pid[$node]}" || fail "marsd on $node did not stop cleanly"
	unset "pid[$node]"
done
printf '\n%sAll checks passed, %s s.%s\n' "$green" "$((SECONDS - began))" "$plain"
