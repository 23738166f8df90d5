#!/bin/sh
# The job of the guest, chosen by hv.task= on the kernel command line. Runs under busybox and under Debian's dash.
# Everything it tells is a line on the serial console that starts with GUEST- or SYNCED.
exec </dev/ttyS0 >/dev/ttyS0 2>&1

task=idle count=0 pause=0
for word in $(cat /proc/cmdline); do
	case $word in
	hv.task=*) task=${word#*=} ;;
	hv.count=*) count=${word#*=} ;;
	hv.pause=*) pause=${word#*=} ;;
	esac
done
dir=/hv
stop=/run/hv-guest/stop
mkdir -p $dir /run/hv-guest

error() { echo "GUEST-ERROR $*"; }

# content N prints file N. internal/guest/content.go makes the same bytes: change both.
content() { seq $(($1 * 10000)) $(($1 * 10000 + 500 + $1 * 37 % 2000)); }

name() { printf '%s/f%06d' $dir "$1"; }

# write_file N makes file N and rewrites the block of "latest" in place. When it succeeds, both have been fsynced.
write_file() {
	file=$(name "$1")
	content "$1" >"$file" && sync "$file" $dir &&
		printf '%08d\n' "$1" | dd of=$dir/latest conv=notrunc,fsync 2>/dev/null
}

fsync_writer() {
	n=0
	while [ ! -e $stop ] && { [ "$count" -eq 0 ] || [ "$n" -lt "$count" ]; }; do
		if ! write_file $((n + 1)); then
			error "write of file $((n + 1)) failed"
			return
		fi
		n=$((n + 1))
		echo "SYNCED $n"
		[ "$pause" = 0 ] || sleep "$pause"
	done
	verify $n
}

# verify N reads files 1 to N back from the disk, not from the page cache.
verify() {
	echo 3 >/proc/sys/vm/drop_caches
	i=0
	while [ $i -lt "$1" ]; do
		i=$((i + 1))
		content $i | cmp -s - "$(name $i)" || error "file $i reads back wrong"
	done
	echo "GUEST-VERIFIED $1"
}

run_script() {
	sh /run/hv-guest/script || error "script ended with $?"
}

wait_for_stop() {
	while [ ! -e $stop ]; do sleep 0.2; done
}

# A line "stop" on the console ends the task early. The shell gives background jobs no input, so it is named again.
while read -r line; do
	case $line in *stop*)
		: >$stop
		break
		;;
	esac
done </dev/ttyS0 &
listener=$!

echo "GUEST-READY task=$task kernel=$(uname -r)"
case $task in
fsync-writer) fsync_writer ;;
script) run_script ;;
idle) wait_for_stop ;;
*) error "unknown task $task" ;;
esac

kill $listener 2>/dev/null
fstrim $dir || error "fstrim failed"
dmesg | grep -E 'I/O error|EXT4-fs (error|warning)|Aborting journal|Remounting filesystem' | while read -r line; do error "kernel: $line"; done
echo "GUEST-DONE"
