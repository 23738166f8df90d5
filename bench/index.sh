#!/bin/bash
# The index at scale: filled with ids and hashes of so much unique data, no payload, in a memory cgroup of what is published for that size (64 MiB + 160 MiB a TiB). Prints at
# sizes that double RAM, sizes on disk, write amplification and lookups a second, and what follows for 10 and 100 TiB. Needs Go, root for the cgroup, 7 GiB of disk a TiB and
# a quarter of an hour a TiB.
# With --dir the store is kept there, and a later run goes on with it; --lookups 0s only fills.
#   bench/index.sh [--tib TIB] [--steps N] [--dir DIR] [--lookups SPAN] [--no-cgroup]
set -eu
tib=0.05 steps=4 cgroup=yes store= lookups=4s
while [ $# -gt 0 ]; do
	case $1 in
	--tib) tib=$2 && shift 2 ;;
	--steps) steps=$2 && shift 2 ;;
	--dir) store=$2 && shift 2 ;;
	--lookups) lookups=$2 && shift 2 ;;
	--no-cgroup) cgroup= && shift ;;
	*) echo "usage: $0 [--tib TIB] [--steps N] [--dir DIR] [--lookups SPAN] [--no-cgroup]" >&2 && exit 2 ;;
	esac
done
top=$(cd "$(dirname "$0")/.." && pwd)
dir=$(mktemp -d "${TMPDIR:-/var/tmp}/hv-bench.XXXXXX")
group=
cleanup() {
	[ -z "$group" ] || rmdir "$group" 2>/dev/null || true
	rm -rf "$dir"
}
trap cleanup EXIT
(cd "$top" && CGO_ENABLED=0 go test -c -o "$dir/blockstore.test" ./blockstore)
bytes=$(awk -v tib="$tib" 'BEGIN { printf "%d", 67108864 + 160 * 1048576 * tib }')
if [ -n "$cgroup" ]; then
	if [ -w /sys/fs/cgroup/memory/cgroup.procs ]; then # version 1
		group=/sys/fs/cgroup/memory/hv-bench.$$
		mkdir "$group"
		echo "$bytes" >"$group/memory.limit_in_bytes"
	elif [ -w /sys/fs/cgroup/cgroup.subtree_control ] && mkdir "/sys/fs/cgroup/hv-bench.$$" 2>/dev/null; then
		group=/sys/fs/cgroup/hv-bench.$$
		[ -w "$group/memory.max" ] || echo +memory >/sys/fs/cgroup/cgroup.subtree_control
		echo "$bytes" >"$group/memory.max"
	else
		echo "$0: no memory cgroup can be made here: be root, or say --no-cgroup" >&2
		exit 1
	fi
	echo "memory cgroup of $((bytes >> 20)) MiB"
fi
run() {
	[ -z "$group" ] || echo "$BASHPID" >"$group/cgroup.procs"
	exec "$dir/blockstore.test" -test.run '^TestIndexScale$' -test.v -test.timeout 0 -index.tib "$tib" -index.steps "$steps" -index.lookups "$lookups" -index.dir "${store:-$dir/store}"
}
(run)
