#!/bin/bash
# How long the import of a disk takes, what a second import of the same disk adds, and how long the export of it takes once all has gone cold. Prints Markdown. Needs bc and bin/ (make build). Without an image it does nothing.
#   IMAGE=disk.raw bench/import.sh
set -eu
if [ -z "${IMAGE:-}" ]; then
	echo "import: IMAGE=disk.raw is not set, skipped"
	exit 0
fi
top=$(cd "$(dirname "$0")/.." && pwd)
dir=$(mktemp -d "${TMPDIR:-/var/tmp}/hv-bench.XXXXXX")
hv=${HV_BIN:-$top/bin}/hv-storage-fabric
daemon=
cleanup() {
	[ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true
	wait 2>/dev/null || true
	rm -rf "$dir"
}
trap cleanup EXIT
export HV_ENDPOINT=unix:$dir/s/hvd.sock

"${HV_BIN:-$top/bin}/hvd" --data-dir "$dir/s" --listen off 2>>"$dir/hvd.log" &
daemon=$!
"$hv" status --wait 60s >/dev/null
stat() { "$hv" store stats -o json | sed -n "s/^ *\"$1\": *\([0-9]*\).*/\1/p"; }
now() { date +%s.%N; }
since() { echo "$(now) - $1" | bc; }

echo "| import of $IMAGE | took | settled after | stored | unique |"
echo "|---|---|---|---|---|"
for k in first second; do
	before=$(stat storedBytes) unique=$(stat uniqueBytes)
	t=$(now)
	"$hv" volume import "$k" "$IMAGE" >/dev/null 2>&1
	s=$(since "$t")
	"$hv" store settle --wait >/dev/null 2>&1
	echo "| $k | $s s | $(since "$t") s | + $(($(stat storedBytes) - before)) B | + $(($(stat uniqueBytes) - unique)) B |"
done
"$hv" store settle --wait --class cold >/dev/null 2>&1
for k in cold warm; do # the store's and the system's caches are dropped, then not
	if [ $k = cold ]; then
		kill $daemon && wait $daemon 2>/dev/null || true
		sync
		[ ! -w /proc/sys/vm/drop_caches ] || echo 3 >/proc/sys/vm/drop_caches
		"${HV_BIN:-$top/bin}/hvd" --data-dir "$dir/s" --listen off 2>>"$dir/hvd.log" &
		daemon=$!
		"$hv" status --wait 60s >/dev/null
	fi
	t=$(now)
	"$hv" volume export first "$dir/out.raw" >/dev/null 2>&1
	s=$(since "$t")
	cmp "$IMAGE" "$dir/out.raw"
	bytes=$(du --block-size=1 "$dir/out.raw" | cut -f1)
	rm "$dir/out.raw"
	echo "| export of what has gone cold, caches $k | $s s, $(echo "$bytes / $s / 1000000" | bc) MB/s of $((bytes / 1000000)) MB that are not zero | | | |"
done
echo "load $(cut -d' ' -f1-3 /proc/loadavg)"
