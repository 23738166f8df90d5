#!/bin/bash
# First figures of the store against qemu-nbd on a raw file, in one run: paired, alternating. Prints Markdown. Needs qemu-nbd, fio, curl and bin/ (make build).
#   bench/first-figures.sh [SECONDS [PAIRS]]
set -eu
seconds=${1:-60} pairs=${2:-3}
top=$(cd "$(dirname "$0")/.." && pwd)
dir=$(mktemp -d "${TMPDIR:-/var/tmp}/hv-bench.XXXXXX")
hv=$top/bin/hv-storage-fabric
daemon= peer=
cleanup() {
	[ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true
	[ -z "$peer" ] || kill "$peer" 2>/dev/null || true
	wait 2>/dev/null || true
	rm -rf "$dir"
}
trap cleanup EXIT
export HV_ENDPOINT=unix:$dir/s/hvd.sock

start() {
	"$top/bin/hvd" --data-dir "$dir/s" --listen off 2>>"$dir/hvd.log" &
	daemon=$!
	"$hv" status --wait 60s >/dev/null
}
stop() { kill "$daemon"; wait "$daemon" || true; daemon=; }
stat() { "$hv" store stats -o json | python3 -c "import json,sys; print(json.load(sys.stdin)['$1'])"; }
now() { date +%s.%N; }
since() { echo "$(now) - $1" | bc; }
cpu() { awk '{print ($14+$15)/100}' "/proc/$1/stat"; }
iops() { # URI RW BS DEPTH
	fio --name=x --ioengine=nbd --uri="$1" --rw="$2" --bs="$3" --iodepth="$4" --size=2g --time_based --runtime="$seconds" \
		--buffer_compress_percentage=50 --output-format=terse --terse-version=3 2>/dev/null | awk -F';' 'NF>40{print $8+$49}'
}
median() { sort -n | awk '{a[NR]=$1} END{print a[int((NR+1)/2)]}'; }

truncate -s 4G "$dir/peer.raw"
qemu-nbd -f raw --cache=writeback --aio=threads -t -k "$dir/peer.sock" "$dir/peer.raw" &
peer=$!
start
"$hv" volume create v --size 4GiB >/dev/null
"$hv" volume attach v >/dev/null
sleep 1
ours="nbd+unix:///v?socket=$dir/s/nbd.sock" theirs="nbd+unix:///?socket=$dir/peer.sock"

echo "| 4 KiB random write, depth 32, ${seconds} s, 2 GiB | qemu-nbd raw | hvd | ratio | hvd CPU s | undestaged 30 s later |"
echo "|---|---|---|---|---|---|"
for k in $(seq 1 "$pairs"); do
	a=$(iops "$theirs" randwrite 4k 32)
	c0=$(cpu "$daemon")
	b=$(iops "$ours" randwrite 4k 32)
	c1=$(cpu "$daemon")
	sleep 30
	left=$(stat undestagedBytes) live=$(stat nonZeroBytes)
	echo "| pair $k | $a | $b | $(echo "scale=2; $b/$a" | bc) | $(echo "$c1-$c0" | bc) | $((left * 100 / (live + left + 1))) % of live bytes |"
done
grep -E 'RssAnon|VmHWM' "/proc/$daemon/status"
"$hv" store settle --wait >/dev/null 2>&1
for bs in 4k; do
	a=$(iops "$theirs" randread $bs 32)
	b=$(iops "$ours" randread $bs 32)
	echo "random read $bs depth 32, destaged: qemu-nbd $a, hvd $b, ratio $(echo "scale=2; $b/$a" | bc)"
done

echo
echo "snapshot, clone, rollback right after a burst of writes (ms, whole command):"
fio --name=x --ioengine=nbd --uri="$ours" --rw=randwrite --bs=4k --iodepth=32 --size=1g --io_size=512m --output-format=terse >/dev/null 2>&1
t=$(now); "$hv" snapshot create v s1 >/dev/null; echo "snapshot $(since "$t") s"
t=$(now); "$hv" volume clone v@s1 c1 >/dev/null; echo "clone $(since "$t") s"
"$hv" volume detach v >/dev/null
t=$(now); "$hv" snapshot rollback v s1 >/dev/null; echo "rollback $(since "$t") s"

if [ -n "${IMAGE:-}" ]; then
	echo
	echo "import of $IMAGE:"
	t=$(now); "$hv" volume import g1 "$IMAGE" >/dev/null 2>&1; s=$(since "$t")
	"$hv" store settle --wait >/dev/null 2>&1
	echo "first: $s s, settled after $(since "$t") s, stored $(stat storedBytes) of $(stat uniqueBytes) unique"
	before=$(stat storedBytes)
	t=$(now); "$hv" volume import g2 "$IMAGE" >/dev/null 2>&1; s=$(since "$t")
	"$hv" store settle --wait >/dev/null 2>&1
	after=$(stat storedBytes)
	echo "second: $s s, stored grew by $((after - before)) B"
fi

echo
echo "restart after kill -9 with a full log of 4 KiB records:"
"$hv" volume attach v >/dev/null
fio --name=x --ioengine=nbd --uri="$ours" --rw=randwrite --bs=4k --iodepth=32 --size=2g --io_size=1g --output-format=terse >/dev/null 2>&1
u=$(stat logUsedBytes)
kill -9 "$daemon"; wait "$daemon" 2>/dev/null || true
sync; echo 3 >/proc/sys/vm/drop_caches 2>/dev/null || true
t=$(now); start; echo "log $u B: ready after $(since "$t") s"
grep -h 'store opened' "$dir/hvd.log" | tail -1
stop
