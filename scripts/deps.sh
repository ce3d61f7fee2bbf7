#!/bin/sh
# Installs the Debian packages that the tests and benchmarks use, when it may. Nothing here is needed to build or run marsd.
set -eu
packages="fio qemu-utils nbdkit libnbd-bin python3-libnbd e2fsprogs xfsprogs util-linux iproute2 rsync sqlite3 spin gcc libc6-dev
	qemu-system-x86 zstd xz-utils debian-archive-keyring"
missing=""
for p in $packages; do
	dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "SKIPPED: cannot install$missing (needs root and apt-get); tests that need them will say so"
	[ "${MARS_TEST_REQUIRE:-}" != all ] || exit 1
	exit 0
fi
echo "installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing >/dev/null
