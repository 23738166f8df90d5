#!/bin/bash
# Restart after kill -9 with a log full of 4 KiB records, caches dropped (needs root for that). Prints Markdown. Needs fio and bin/ (make build).
#   bench/restart.sh [GIB [RESTARTS]]
set -eu
gib=${1:-10} restarts=${2:-5}
top=$(cd "$(dirname "$0")/.." && pwd)
bin=${HV_BIN:-$top/bin}
dir=$(mktemp -d "${TMPDIR:-/var/tmp}/hv-bench.XXXXXX")
daemon=
cleanup() {
	[ -z "$daemon" ] || kill -9 "$daemon" 2>/dev/null || true
	wait 2>/dev/null || true
	[ -n "${KEEP:-}" ] || rm -rf "$dir"
}
trap cleanup EXIT
export HV_ENDPOINT=unix:$dir/s/hvd.sock

start() { # the log may hold four times what is written, and nothing is old: no destage
	"$bin/hvd" --data-dir "$dir/s" --listen off --store-log-cap "$((gib * 4))GiB" --store-destage-after 24h 2>>"$dir/hvd.log" &
	daemon=$!
	"$bin/hv-storage-fabric" status --wait 120s >/dev/null
}

start
"$bin/hv-storage-fabric" volume create v --size 4GiB >/dev/null
"$bin/hv-storage-fabric" volume attach v >/dev/null
fio --name=x --ioengine=nbd --uri="nbd+unix:///v?socket=$dir/s/nbd.sock" --rw=randwrite --bs=4k --iodepth=32 --size=2g --io_size="${gib}g" --norandommap \
	--output-format=terse >/dev/null 2>&1

echo "| restart with $gib GiB of 4 KiB records | ready after | replay | RssAnon | load |"
echo "|---|---|---|---|---|"
for k in $(seq 1 "$restarts"); do
	kill -9 "$daemon"
	wait "$daemon" 2>/dev/null || true
	sync
	caches=dropped
	echo 3 2>/dev/null >/proc/sys/vm/drop_caches || caches="NOT dropped"
	began=$(date +%s.%N)
	start
	took=$(echo "$(date +%s.%N) - $began" | bc)
	opened=$(grep 'store opened' "$dir/hvd.log" | tail -1)
	echo "| $k, caches $caches, $(sed 's/.*replayedRecords=\([0-9]*\).*/\1/' <<<"$opened") records | $took s | ${opened##*duration=} |$(sed -n 's/^RssAnon:\s*/ /p' "/proc/$daemon/status") | $(cut -d' ' -f1 /proc/loadavg) |"
done
[ -z "${KEEP:-}" ] || echo "kept: $dir"
