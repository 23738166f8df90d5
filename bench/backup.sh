#!/bin/bash
# How long backups take, and what they read and store, beside restic and borg. Prints Markdown. Needs bin/ (make build), bc, fio, qemu-utils and libnbd-bin; restic and borg, without which their columns are left out.
#   bench/backup.sh                  a disk of SIZE_GIB (32) with DATA_GIB (8) of half compressible data: a first backup, then DAYS (3) with CHANGE_MIB (320) of writes of 4 to 256 KiB
#   CORPUS=DIR bench/backup.sh       besides, the guests of bench/corpus.sh: each day's disk after the other
#
# hvd has the disk as a volume that hv-backup reads; restic and borg read a raw file with as many bytes changed at the same places. All three encrypt, and compress with zstd at its level 3 or what they call normal. The page
# cache is warm for all. Times are those of whole commands, key derivation included. At the end each program restores the last backup to a file three times in turns, with a warm page cache and, for root, with a cold one, and hv-backup to a volume; each is compared with what was backed up.
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
bin=${HV_BIN:-$top/bin}
dir=$(mktemp -d "${TMPDIR:-/var/tmp}/hv-bench.XXXXXX")
hv=$bin/hv-storage-fabric daemon=
cleanup() {
	[ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true
	wait 2>/dev/null || true
	rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 1' INT TERM
export HV_ENDPOINT=unix:$dir/s/hvd.sock HV_BACKUP_REPO=$dir/r HV_BACKUP_PASSWORD_FILE=$dir/password BORG_BASE_DIR=$dir/borg BORG_PASSPHRASE=bench RESTIC_PASSWORD=bench RESTIC_CACHE_DIR=$dir/cache
echo bench >"$dir/password"

now() { date +%s.%N; }
since() { echo "scale=2; ($(now) - $1) / 1" | bc; }
mib() { echo "scale=1; ${1:-0} / 1048576" | bc; }
field() { sed -n "s/.*\"$1\": *\([0-9]*\).*/\1/p" | head -1; }
allocated() { du -s --block-size=1 "$1" | cut -f1; }
# timed COMMAND...: seconds, and the most memory in MiB; what it prints goes to $dir/out
timed() {
	python3 -c '
import resource, subprocess, sys, time
begin = time.time()
code = subprocess.call(sys.argv[2:], stdout=open(sys.argv[1], "w"))
print("%.2f s, %d MiB" % (time.time() - begin, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10))
sys.exit(code)' "$dir/out" "$@"
}

begin() { # empty store and repositories
	[ -z "$daemon" ] || { kill "$daemon" && wait "$daemon" 2>/dev/null || true; }
	rm -rf "$dir/s" "$dir/r" "$dir/borg" "$dir/borg-repo" "$dir/restic" "$dir/cache"
	"$bin/hvd" --data-dir "$dir/s" --listen off 2>>"$dir/hvd.log" &
	daemon=$!
	"$hv" status --wait 60s >/dev/null
	"$bin/hv-backup" repo init >/dev/null
	! command -v restic >/dev/null || restic init --quiet --repo "$dir/restic" >/dev/null
	! command -v borg >/dev/null || borg init --encryption=repokey-blake2 "$dir/borg-repo" 2>/dev/null
	echo "| backup | hv-backup | read of the volume, new, stored | restic | borg | repositories MiB: hv-backup, restic, borg |"
	echo "|---|---|---|---|---|---|"
}
row() { # NAME VOLUME FILE
	local ours theirs=- borgs=- said sizes
	ours=$(timed "$bin/hv-backup" run "$2" -o json)
	said="$(mib "$(field readBytes <"$dir/out")"), $(mib "$(field newBytes <"$dir/out")"), $(mib "$(field storedBytes <"$dir/out")") MiB"
	! command -v restic >/dev/null || theirs=$(timed restic backup --quiet --repo "$dir/restic" "$3")
	! command -v borg >/dev/null || borgs=$(timed borg create --compression zstd,3 "$dir/borg-repo::$1" "$3")
	sizes=$(mib "$(allocated "$dir/r")")
	[ "$theirs" = - ] || sizes="$sizes, $(mib "$(allocated "$dir/restic")")"
	[ "$borgs" = - ] || sizes="$sizes, $(mib "$(allocated "$dir/borg-repo")")"
	echo "| $1 | $ours | $said | $theirs | $borgs | $sizes |"
}
attached() { "$hv" volume attach "$1" -o json | sed -n 's/^ *"uri": *"\(.*\)".*/\1/p'; }

if [ -n "${CORPUS:-}" ]; then
	"$top/bench/corpus.sh" >&2
	begin
	for guest in db web; do
		"$hv" volume import $guest "$CORPUS/$guest-1.raw" >/dev/null 2>&1
		uri=$(attached $guest)
		for day in 1 2 3 4; do
			if [ $day != 1 ]; then # what is different is written, no more
				rm -f "$dir/day.qcow2"
				qemu-img create -q -f qcow2 -o cluster_size=4k -b "$CORPUS/$guest-$day.raw" -F raw "$dir/day.qcow2"
				qemu-img rebase -f qcow2 -b "$CORPUS/$guest-$((day - 1)).raw" -F raw "$dir/day.qcow2"
				qemu-img rebase -u -f qcow2 -b "$uri" -F raw "$dir/day.qcow2"
				qemu-img commit -q -f qcow2 "$dir/day.qcow2"
			fi
			cp --sparse=always "$CORPUS/$guest-$day.raw" "$dir/$guest.raw" # the same path each day, as a guest's disk has
			row $guest-$day $guest "$dir/$guest.raw"
		done
		rm "$dir/$guest.raw"
	done
	echo
fi

size=${SIZE_GIB:-32} data=${DATA_GIB:-8} change=${CHANGE_MIB:-320} raw=$dir/disk.raw
fill="--name=fill --rw=write --bs=1M --size=${data}G --buffer_compress_percentage=50 --refill_buffers --randseed=1"
writes() { echo "--name=day --rw=randwrite --bssplit=4k/60:16k/20:64k/12:256k/8 --io_size=${change}M --size=${data}G --buffer_compress_percentage=50 --refill_buffers --randseed=$((100 + $1))"; }
begin
truncate -s "${size}G" "$raw"
# shellcheck disable=SC2046,SC2086
fio --output=/dev/null --ioengine=psync --filename="$raw" $fill
"$hv" volume import disk "$raw" >/dev/null 2>&1
"$hv" store settle --wait >/dev/null 2>&1
uri=$(attached disk)
row first disk "$raw"
for day in $(seq "${DAYS:-3}"); do
	# shellcheck disable=SC2046
	fio --output=/dev/null --ioengine=psync --filename="$raw" $(writes "$day")
	# shellcheck disable=SC2046
	fio --output=/dev/null --ioengine=nbd --uri="$uri" $(writes "$day")
	row "day $day" disk "$raw"
done
echo
echo "nothing changed: $(timed "$bin/hv-backup" run disk -o json)"
echo
# restored PROGRAM: the last backup to a file in an empty folder, and whether it is what was backed up; the peers' is the raw file, in which as much lies at the same places
restored() {
	local took
	rm -rf "$dir/restored"
	mkdir "$dir/restored"
	sync
	[ "$cache" = warm ] || echo 3 >/proc/sys/vm/drop_caches
	case $1 in
	hv-backup) took=$(timed "$bin/hv-backup" restore latest:disk --to-file "$dir/restored/disk.raw" -o json) && qemu-img compare -q -f raw -F raw "$dir/restored/disk.raw" "$uri" ;;
	restic) # 0.14 has no --sparse, and would write all of the disk
		took=$(timed sh -c 'restic dump --quiet --repo "$1" latest "$2" | dd of="$3" bs=1M iflag=fullblock conv=sparse status=none' sh "$dir/restic" "$raw" "$dir/restored/disk.raw") && cmp "$raw" "$dir/restored/disk.raw"
		;;
	borg) took=$(cd "$dir/restored" && timed borg extract --sparse "$dir/borg-repo::day ${DAYS:-3}") && cmp "$raw" "$dir/restored$raw" ;;
	esac || { echo "$1 does not restore what was backed up" >&2; exit 1; }
	rm -rf "$dir/restored"
	echo "$took"
}
programs="hv-backup $(for p in restic borg; do ! command -v $p >/dev/null || echo "$p"; done)"
echo "| restored to a file; page cache, run | $(echo $programs | sed 's/ / | /g') |"
echo "|---|$(for p in $programs; do printf -- '---|'; done)"
for cache in warm cold; do
	[ $cache = warm ] || [ -w /proc/sys/vm/drop_caches ] || { echo "to drop the page cache takes root: no cold runs" >&2; continue; }
	for run in 1 2 3; do
		line="| $cache, $run |"
		for p in $programs; do line="$line $(restored "$p") |"; done
		echo "$line"
	done
done
echo
rm "$raw"
echo "restored to a volume: $(timed "$bin/hv-backup" restore latest:disk --to-volume again -o json)"
qemu-img compare -f raw -F raw "$uri" "$(attached again)"
echo "load $(cut -d' ' -f1-3 /proc/loadavg)"
