#!/bin/bash
# How long snapshot, clone and rollback take right after bursts of random writes: inside the engine (Go benchmark, N of each), and the whole commands, with process start and
# GraphQL. Needs fio, go and bin/ (make build).
#   bench/latency.sh [N]
set -eu
n=${1:-128}
top=$(cd "$(dirname "$0")/.." && pwd)
bin=${HV_BIN:-$top/bin}
dir=$(mktemp -d "${TMPDIR:-/var/tmp}/hv-bench.XXXXXX")
daemon=
cleanup() {
	[ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true
	wait 2>/dev/null || true
	rm -rf "$dir"
}
trap cleanup EXIT
export HV_ENDPOINT=unix:$dir/s/hvd.sock
hv=$bin/hv-storage-fabric

(cd "$top" && go test -run '^$' -bench '^BenchmarkLoaded$' -benchtime "${n}x" ./blockstore | grep Loaded)

"$bin/hvd" --data-dir "$dir/s" --listen off 2>"$dir/hvd.log" &
daemon=$!
"$hv" status --wait 60s >/dev/null
"$hv" volume create v --size 4GiB >/dev/null
burst() { # SIZE
	"$hv" volume attach v >/dev/null
	fio --name=x --ioengine=nbd --uri="nbd+unix:///v?socket=$dir/s/nbd.sock" --rw=randwrite --bs=4k --iodepth=32 --size=2g --io_size="$1" --output-format=terse >/dev/null 2>&1
	"$hv" volume detach v >/dev/null
}
timed() { # FILE COMMAND...
	local file=$1 began
	shift
	began=$(date +%s%N)
	"$hv" "$@" >/dev/null
	echo $((($(date +%s%N) - began) / 1000)) >>"$dir/$file"
}
burst 512m
for k in $(seq 1 "$n"); do
	burst 8m
	timed snapshot snapshot create v "s$k"
	timed clone volume clone "v@s$k" "c$k"
	timed rollback snapshot rollback v "s$k"
	timed status status
done
echo "| whole command, $n times | p50 ms | p99 ms | most ms |"
echo "|---|---|---|---|"
for what in snapshot clone rollback status; do
	sort -n "$dir/$what" | awk -v what="$what" '{a[NR]=$1/1000} END{print "| " what " | " a[int((NR+1)/2)] " | " a[int(NR*0.99+0.5)] " | " a[NR] " |"}'
done
echo "load $(cut -d' ' -f1-3 /proc/loadavg)"
