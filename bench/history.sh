#!/bin/bash
# What continuous data protection costs a guest that writes all the time: 4 KiB random writes at depth 32 to a volume whose every write is kept, and to one without history, in turn, after the log has wrapped. Prints Markdown.
# Needs fio, jq, bc and bin/ (make build).
#   bench/history.sh [PAIRS [SECONDS of each run]]
set -eu
pairs=${1:-5} seconds=${2:-20}
top=$(cd "$(dirname "$0")/.." && pwd)
bin=${HV_BIN:-$top/bin}
dir=$(mktemp -d "${TMPDIR:-/var/tmp}/hv-bench.XXXXXX")
declare -A daemon
cleanup() {
	for k in "${!daemon[@]}"; do kill "${daemon[$k]}" 2>/dev/null || true; done
	wait 2>/dev/null || true
	rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 1' INT TERM
hv() { # hv STORE ARGS...
	HV_ENDPOINT=unix:$dir/$1/hvd.sock "$bin/hv-storage-fabric" "${@:2}"
}
guest() { # guest STORE ARGS...: fio on its volume
	fio --name=x --ioengine=nbd --uri="nbd+unix:///v?socket=$dir/$1/nbd.sock" --size=1g --refill_buffers --buffer_compress_percentage=50 --output-format=json "${@:2}" 2>/dev/null | sed -n '/^{/,$p'
}
random=(--rw=randwrite --norandommap --bs=4k --iodepth=32 --time_based)
for k in without with; do # a store each, as the log is of all volumes
	"$bin/hvd" --data-dir "$dir/$k" --listen off 2>>"$dir/hvd.log" &
	daemon[$k]=$!
	hv $k status --wait 60s >/dev/null
	hv $k volume create v --size 2GiB >/dev/null
	[ $k = without ] || hv $k volume history set v --window 1h --budget "${BUDGET:-10GiB}" >/dev/null
	hv $k volume attach v >/dev/null
	guest $k --rw=write --bs=1m --iodepth=8 >/dev/null
	guest $k "${random[@]}" --runtime=$((seconds + 10)) >/dev/null # the log wraps
	hv $k store settle --wait >/dev/null
done
echo "| | IOPS, each run | p99 µs | CPU µs of hvd for each | disk B per guest B, until a settle |"
echo "|---|---|---|---|---|"
cpu() { awk '{ print $14 + $15 }' "/proc/${daemon[$1]}/stat"; }
wrote() { awk '/^write_bytes/ { print $2 }' "/proc/${daemon[$1]}/io"; }
for pair in $(seq "$pairs"); do
	for k in without with; do
		was=$(cpu $k) disk=$(wrote $k)
		guest $k "${random[@]}" --runtime="$seconds" --randseed="$pair" >"$dir/fio"
		hv $k store settle --wait >/dev/null
		jq -r --arg k $k --argjson cpu $(($(cpu $k) - was)) --argjson disk $(($(wrote $k) - disk)) \
			'.jobs[0].write | "\($k) \(.iops | floor) \(.clat_ns.percentile["99.000000"] / 1000 | floor) \($cpu * 100000 / .total_ios | floor / 10) \($disk * 100 / .io_bytes | floor / 100)"' "$dir/fio" >>"$dir/table"
		tail -1 "$dir/table" | sed 's/ / | /g; s/.*/| & |/'
	done
done
median() { awk -v k="$1" '$1 == k { print $2 }' "$dir/table" | sort -n | awk '{ v[NR] = $1 } END { print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'; }
echo "with history $(median with) IOPS at the median, without $(median without): $(echo "scale=2; $(median with) / $(median without)" | bc)"
hv with volume history show v 2>/dev/null || true
echo "load $(cut -d' ' -f1-3 /proc/loadavg)"
