#!/bin/bash
# How small cold data gets, beside what borg and restic make of the same disks. Prints Markdown. Needs bin/ (make build), bc, qemu-img, and borg and restic, without which their rows are left out.
#   CORPUS=DIR bench/cold.sh        DIR is where bench/corpus.sh makes, or made, DIR/{db,web}-{1,2,3,4}.raw; without it nothing is done
#   PARTS="image live borg restic"  what to measure
#
# image: each disk is imported as a volume of its own. live: one volume for each guest, to which each day's changed blocks are written by NBD, and a snapshot a day; and the same after
# OVERWRITES (1000000) of 4 KiB at random, half of them noise and half what was there, for which it needs python3-libnbd.
# What counts is what the file system has allocated while the daemon runs, after store settle --wait --class cold: segments and all metadata. Parity and the log are printed beside.
set -eu
if [ -z "${CORPUS:-}" ]; then
	echo "cold: CORPUS=DIR is not set, skipped"
	exit 0
fi
top=$(cd "$(dirname "$0")/.." && pwd)
bin=${HV_BIN:-$top/bin}
dir=$(mktemp -d "${TMPDIR:-/var/tmp}/hv-bench.XXXXXX")
hv=$bin/hv-storage-fabric
daemon=
stop() {
	[ -z "$daemon" ] || { kill "$daemon" 2>/dev/null && wait "$daemon" 2>/dev/null || true; }
	daemon=
}
cleanup() {
	stop
	rm -rf "$dir"
}
trap cleanup EXIT
export HV_ENDPOINT=unix:$dir/s/hvd.sock BORG_BASE_DIR=$dir/borg RESTIC_PASSWORD=bench

"$top/bench/corpus.sh" >&2
disks=$(ls "$CORPUS"/*-[0-9].raw)
guests=$(for d in $disks; do basename "$d" | sed 's/-[0-9]*\.raw//'; done | sort -u)
now() { date +%s.%N; }
since() { echo "scale=1; ($(now) - $1) / 1" | bc; }
mib() { echo "scale=1; ${1:-0} / 1048576" | bc; }
allocated() { du -s --block-size=1 "$@" | awk '{ n += $1 } END { printf "%d", n }'; }
figure() { "$hv" store stats -o json | sed -n "s/^ *\"$1\": *\([0-9]*\).*/\1/p"; }
start() {
	rm -rf "$dir/s"
	# shellcheck disable=SC2086
	"$bin/hvd" --data-dir "$dir/s" --listen off ${HVD_OPTS:-} 2>>"$dir/hvd.log" &
	daemon=$!
	"$hv" status --wait 60s >/dev/null
}
row() { # NAME SECONDS-TO-WRITE
	local t warm segments meta parity whole
	t=$(now)
	"$hv" store settle --wait >/dev/null 2>&1
	warm="$(since "$t") s, $(mib "$(figure storedBytes)") MiB"
	t=$(now)
	"$hv" store settle --wait --class cold >/dev/null 2>&1
	t=$(since "$t")
	parity=$(find "$dir/s/segments" -name '*.par' -print0 | du -c --block-size=1 --files0-from=- 2>/dev/null | awk 'END { print $1 + 0 }')
	segments=$(($(allocated "$dir/s/segments") - parity))
	meta=$(allocated "$dir/s/meta" "$dir/s/index")
	whole=$((segments + meta))
	echo "| $1 | $2 s | $warm | $t s | $(mib $segments) | $(mib "$meta") | **$(mib $whole)** | $(echo "scale=2; $(figure nonZeroBytes) / $whole" | bc) | $(mib "$parity") | $(mib "$(allocated "$dir/s/log")") |"
}
last() { printf '%s\n' "$CORPUS/$1"-*.raw | tail -1; }
# overwrite URI IMAGE N: writes noise over N random blocks of 4 KiB that hold data, has it go down, and writes what the image has there back, in another order
overwrite() {
	IMAGE=$2 BLOCKS=$3 HV=$hv nbdsh -u "$1" -c - <<'EOF'
import mmap, os, random, subprocess
file = open(os.environ["IMAGE"], "rb")
image = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
zero = bytes(4096)
blocks = [at for at in range(0, len(image), 4096) if image[at : at + 4096] != zero]
rand = random.Random(7)
chosen = [rand.choice(blocks) for _ in range(int(os.environ["BLOCKS"]))]
for at in chosen:
    h.pwrite(rand.randbytes(4096), at)
h.flush()
subprocess.run([os.environ["HV"], "store", "settle", "--wait"], check=True, stdout=subprocess.DEVNULL)
rand.shuffle(chosen)
for at in chosen:
    h.pwrite(image[at : at + 4096], at)
h.flush()
h.shutdown()
EOF
}

echo "| disks | written in | settled, and stored | settled cold in | segments MiB | metadata MiB | together MiB | non-zero : stored | parity MiB | log MiB |"
echo "|---|---|---|---|---|---|---|---|---|---|"
for part in ${PARTS:-image live borg restic}; do
	case $part in
	image)
		start
		t=$(now)
		for d in $disks; do "$hv" volume import "$(basename "$d" .raw)" "$d" >/dev/null 2>&1; done
		row "hvd, whole images" "$(since "$t")"
		t=$(now)
		for d in $disks; do "$hv" volume export "$(basename "$d" .raw)" "$dir/out.raw" >/dev/null 2>&1 && cmp "$d" "$dir/out.raw" && rm -f "$dir/out.raw"; done
		echo "| …exported and compared in | $(since "$t") s | | | | | | | | |"
		stop
		;;
	live)
		start
		t=$(now)
		for g in $guests; do
			size=$(wc -c <"$(ls "$CORPUS/$g"-*.raw | head -1)")
			"$hv" volume create "$g" --size "$size" >/dev/null
			to=$("$hv" volume attach "$g") before=
			for d in "$CORPUS/$g"-*.raw; do
				if [ -z "$before" ]; then
					qemu-img convert -n -f raw -O raw --target-is-zero "$d" "$to"
				else
					rm -f "$dir/day.qcow2"
					qemu-img create -q -f qcow2 -o cluster_size=4k -b "$d" -F raw "$dir/day.qcow2"
					qemu-img rebase -f qcow2 -b "$before" -F raw "$dir/day.qcow2" # what is different is in it
					qemu-img rebase -u -f qcow2 -b "$to" -F raw "$dir/day.qcow2"
					qemu-img commit -q -f qcow2 "$dir/day.qcow2"
				fi
				before=$d
				"$hv" snapshot create "$g@$(basename "$d" .raw)" >/dev/null
			done
			"$hv" volume detach "$g" >/dev/null
		done
		row "hvd, written live" "$(since "$t")"
		t=$(now)
		for g in $guests; do
			to=$("$hv" volume attach "$g")
			overwrite "$to" "$(last "$g")" $((${OVERWRITES:-1000000} / 2 / $(echo "$guests" | wc -l)))
			"$hv" volume detach "$g" >/dev/null
		done
		row "…after ${OVERWRITES:-1000000} overwrites" "$(since "$t")"
		for g in $guests; do "$hv" volume export "$g" "$dir/out.raw" >/dev/null 2>&1 && cmp "$(last "$g")" "$dir/out.raw" && rm -f "$dir/out.raw"; done
		stop
		;;
	borg)
		command -v borg >/dev/null || continue
		t=$(now)
		borg init -e none "$dir/borg.repo" >/dev/null 2>&1
		for d in $disks; do borg create -C zstd,3 --chunker-params buzhash,10,23,16,4095 "$dir/borg.repo::$(basename "$d" .raw)" "$d" >/dev/null 2>&1; done
		echo "| borg $(borg --version | cut -d' ' -f2), zstd,3, buzhash,10,23,16,4095 | $(since "$t") s | | | | | **$(mib "$(allocated "$dir/borg.repo")")** | | | |"
		;;
	restic)
		command -v restic >/dev/null || continue
		t=$(now)
		restic init -q --repo "$dir/restic.repo"
		for d in $disks; do restic backup -q --no-cache --repo "$dir/restic.repo" "$d"; done
		echo "| restic $(restic version | cut -d' ' -f2) | $(since "$t") s | | | | | **$(mib "$(allocated "$dir/restic.repo")")** | | | |"
		;;
	esac
done
echo "load $(cut -d' ' -f1-3 /proc/loadavg)"
