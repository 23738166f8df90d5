#!/bin/bash
# How soon a guest is back after its host is lost: time to the login prompt of a Debian guest that boots from a volume which `hv-backup restore --live` has just begun to bring to an empty store, beside
# the same guest from the volume that was backed up, in turn. Prints Markdown. Needs bin/ (make build), qemu-system-x86, qemu-utils, python3-libnbd, root for loop devices, and DIR/db-1.raw, which bench/corpus.sh makes.
#   CORPUS=DIR bench/liveboot.sh [ROUNDS]
# The repository is encrypted and on the same disk; the page cache is dropped and hvd starts anew before each boot. ACCEL=kvm if the host runs guests so; else the guest is emulated, and boots several times slower.
set -eu
if [ -z "${CORPUS:-}" ]; then
	echo "liveboot: CORPUS=DIR is not set, skipped"
	exit 0
fi
rounds=${1:-3} image=$CORPUS/db-1.raw
top=$(cd "$(dirname "$0")/.." && pwd)
bin=${HV_BIN:-$top/bin}
dir=$(mktemp -d "${TMPDIR:-/var/tmp}/hv-bench.XXXXXX")
hv=$bin/hv-storage-fabric daemon= guest= loop=
stop() { # stop VARIABLE: ends the process whose number is in it
	[ -z "${!1}" ] || { kill "${!1}" 2>/dev/null && wait "${!1}" 2>/dev/null || true; }
	printf -v "$1" %s ""
}
cleanup() {
	stop guest
	stop daemon
	! mountpoint -q "$dir/mnt" || umount "$dir/mnt"
	[ -z "$loop" ] || losetup -d "$loop"
	rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 1' INT TERM
export HV_BACKUP_REPO=$dir/r HV_BACKUP_PASSWORD_FILE=$dir/password
echo bench >"$dir/password"
start() { # start STORE
	stop daemon
	sync
	[ ! -w /proc/sys/vm/drop_caches ] || echo 3 >/proc/sys/vm/drop_caches
	export HV_ENDPOINT=unix:$dir/$1/hvd.sock
	"$bin/hvd" --data-dir "$dir/$1" --listen off 2>>"$dir/hvd.log" &
	daemon=$!
	"$hv" status --wait 60s >/dev/null
}
now() { date +%s.%N; }
since() { echo "scale=2; ($(now) - $1) / 1" | bc; }
uri() { "$hv" volume attach "$1" -o json | sed -n 's/^ *"uri": *"\(.*\)".*/\1/p'; }
first_read() { # URI: until 4 KiB in the middle have been read
	nbdsh -u "$1" -c 'h.pread(4096, h.get_size() // 2)'
}
boot() { # URI: until the guest asks who logs in
	: >"$dir/console"
	qemu-system-x86_64 -nodefaults -no-user-config -display none -machine q35 -accel "${ACCEL:-tcg}" -m 1024 -smp 1 -kernel "$dir/vmlinuz" -initrd "$dir/initrd" \
		-append "root=/dev/vda1 rw console=ttyS0" -drive "file=$1,format=raw,if=virtio" -serial "file:$dir/console" 2>>"$dir/qemu.log" &
	guest=$!
	for _ in $(seq 6000); do
		grep -q "login: " "$dir/console" && break
		kill -0 "$guest" || { echo "liveboot: the guest has ended" >&2 && exit 1; }
		sleep 0.1
	done
	grep -q "login: " "$dir/console" || { echo "liveboot: no login prompt after 10 minutes: $(tail -c 500 "$dir/console")" >&2 && exit 1; }
}

sector=$(sfdisk -J "$image" | sed -n 's/^ *"start": *\([0-9]*\).*/\1/p' | head -1)
loop=$(losetup --find --show --read-only --offset $((sector * 512)) "$image")
mkdir "$dir/mnt"
mount -o ro,noload "$loop" "$dir/mnt"
cp "$dir"/mnt/boot/vmlinuz-* "$dir/vmlinuz"
cp "$dir"/mnt/boot/initrd.img-* "$dir/initrd"
umount "$dir/mnt"
losetup -d "$loop"
loop=

start a
"$hv" volume import db "$image" >/dev/null 2>&1
"$hv" store settle --wait >/dev/null 2>&1
"$bin/hv-backup" repo init >/dev/null
"$bin/hv-backup" run db -o json >/dev/null
"$hv" snapshot create db@golden >/dev/null
echo "| boot from | command to first read s | to the login prompt s | restored when the prompt came | all restored after s |"
echo "|---|---|---|---|---|"
for k in $(seq "$rounds"); do
	start a
	t=$(now)
	"$hv" volume clone db@golden "local-$k" >/dev/null
	at=$(uri "local-$k")
	first_read "$at"
	read=$(since "$t")
	boot "$at"
	echo "| the local volume | $read | $(since "$t") | | |"
	stop guest

	rm -rf "$dir/b"
	start b
	t=$(now)
	"$bin/hv-backup" restore latest:db --to-volume db --live -o json >"$dir/restore" 2>>"$dir/restore.log" &
	restore=$!
	until at=$(uri db 2>/dev/null) && [ -n "$at" ]; do sleep 0.02; done
	first_read "$at"
	read=$(since "$t")
	(while kill -0 "$restore" 2>/dev/null; do sleep 0.2; done && since "$t" >"$dir/all") &
	watcher=$!
	boot "$at"
	prompt=$(since "$t") left="not all"
	kill -0 "$restore" 2>/dev/null || left=all
	wait "$restore"
	wait "$watcher"
	echo "| a live restore | $read | $prompt | $left | $(cat "$dir/all") |"
	stop guest
done
echo "load $(cut -d' ' -f1-3 /proc/loadavg)"
