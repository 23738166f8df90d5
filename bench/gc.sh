#!/bin/bash
# What garbage collection frees, and what a guest feels of it. 20 snapshots are taken between random overwrites, every second one is deleted while collection is paused, and what is
# dead then, by counters that an audit compares with the maps, is compared with what the folder of segments loses. Then runs at half of saturation, with nothing beside them, a
# collection, nothing, and a scrub, tell p99 of a guest's requests; before each round new garbage is made. Needs bc, fio, jq and bin/ (make build).
#   bench/gc.sh [PAIRS [SECONDS of each run]]
set -eu
pairs=${1:-2} seconds=${2:-6}
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
"$bin/hvd" --data-dir "$dir/s" --listen off --store-parity off 2>"$dir/hvd.log" &
daemon=$!
"$hv" status --wait 60s >/dev/null
"$hv" volume create v --size 1GiB >/dev/null
"$hv" volume attach v >/dev/null
guest() { # ARGS...: fio on the volume
	fio --name=x --ioengine=nbd --uri="nbd+unix:///v?socket=$dir/s/nbd.sock" --size=1g --refill_buffers --buffer_compress_percentage=40 --output-format=json "$@" 2>/dev/null | sed -n '/^{/,$p'
}
gc() { "$hv" store gc "$@"; }
held() { gc status -o json | jq .heldUnusedBytes; }
files() { find "$dir/s/segments" -name '*.seg' -printf '%s\n' | awk '{n += $1} END {print n + 0}'; }
dead() { # ROUNDS: so many snapshots, of which every second one is deleted while nothing is given back
	for k in $(seq 1 "$1"); do
		guest --rw=randwrite --bs=64k --iodepth=8 --io_size=48m --randseed=$RANDOM >/dev/null
		"$hv" snapshot create v "s$k" >/dev/null
	done
	"$hv" store settle --wait >/dev/null
	gc pause >/dev/null
	for k in $(seq 1 2 "$1"); do "$hv" snapshot delete "v@s$k" >/dev/null; done
	was=-1
	until now=$(held) && [ "$now" = "$was" ]; do
		was=$now
		sleep 2
	done
}

guest --rw=write --bs=1m --iodepth=4 >/dev/null
dead 20
before=$(files) is_dead=$(held)
gc audit -o json >"$dir/audit"
gc resume >/dev/null
began=$(date +%s%N)
gc run >/dev/null
took=$((($(date +%s%N) - began) / 1000000))
after=$(files)
echo "| half of 20 snapshots deleted | |"
echo "|---|---|"
jq -r --argjson dead "$is_dead" --argjson before "$before" --argjson after "$after" --argjson took "$took" '
	"| segments before | \($before / 1048576 | floor) MiB |", "| dead | \($dead / 1048576 | floor) MiB |",
	"| freed | \(($before - $after) / 1048576 | floor) MiB, \(($before - $after) / $dead * 100 * 10 | floor / 10) % of it |", "| in | \($took) ms |",
	"| audit | \(.audit.passed), \(.audit.wrongSegments) segments with wrong counters, \(.audit.chunks) chunks, \(.audit.tookSeconds * 1000 | floor) ms, \(.audit.memoryBytes / 1024 | floor) KiB |"' "$dir/audit"

load=(--rw=randrw --rwmixread=70 --bs=4k --time_based)
half=$(guest "${load[@]}" --iodepth=32 --runtime=4 | jq '(.jobs[0].read.iops + .jobs[0].write.iops) / 2 | floor')
collected() { gc status -o json | jq '.movedBytes + .freedBytes'; }
echo
echo "| at $half requests/s, half of saturation | read p99 µs | write p99 µs | collected or verified MiB |"
echo "|---|---|---|---|"
for k in $(seq "$pairs"); do
	for s in $("$hv" snapshot list v -o json | jq -r '.[].name'); do "$hv" snapshot delete "v@$s" >/dev/null; done
	gc resume >/dev/null
	dead 12
	guest "${load[@]}" --iodepth=8 --runtime="$seconds" --rate_iops=$((half * 7 / 10)),$((half * 3 / 10)) >/dev/null # caches have grown cold
	for with in nothing collection nothing scrub; do
		was=$(collected)
		case $with in
		collection) gc resume >/dev/null && gc run --background >/dev/null ;;
		scrub) "$hv" store scrub start >/dev/null ;;
		esac
		guest "${load[@]}" --iodepth=8 --runtime="$seconds" --rate_iops=$((half * 7 / 10)),$((half * 3 / 10)) >"$dir/fio"
		did=$(($(collected) - was))
		case $with in
		collection) gc pause >/dev/null ;;
		scrub)
			"$hv" store scrub cancel >/dev/null 2>&1 || true # it may be done
			did=$("$hv" store scrub status -o json | jq .bytesDone)
			;;
		esac
		jq -r --arg with "$with" --argjson did "$did" '.jobs[0] | "\($with) \(.read.clat_ns.percentile["99.000000"] / 1000 | floor) \(.write.clat_ns.percentile["99.000000"] / 1000 | floor) \($did / 1048576 | floor)"' "$dir/fio" >>"$dir/table"
		tail -1 "$dir/table" | sed 's/ / | /g; s/.*/| & |/'
	done
done
median() { awk -v with="$1" -v f="$2" '$1 == with { print $f }' "$dir/table" | sort -n | awk '{ v[NR] = $1 } END { print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'; }
for with in collection scrub; do
	for f in 2 3; do
		echo "$with: p99 of $([ $f = 2 ] && echo reads || echo writes) $(median $with $f) µs at the median, without $(median nothing $f): $(echo "scale=2; $(median $with $f) / $(median nothing $f)" | bc)"
	done
done
echo "load $(cut -d' ' -f1-3 /proc/loadavg)"
