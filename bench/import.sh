#!/bin/bash
# How long the import of a disk takes, and what a second import of the same disk adds. Prints Markdown. Needs bc and bin/ (make build). Without an image it does nothing.
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
echo "load $(cut -d' ' -f1-3 /proc/loadavg)"
