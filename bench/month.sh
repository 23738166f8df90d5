#!/bin/bash
# A month of daily backups of guests that began as clones, beside restic and borg on the same days. Prints Markdown. Needs root, loop devices, unshare, debootstrap, e2fsprogs, sqlite3, python3, bc, Go, and a Debian host: packages come from where the host's
# own apt takes them. Besides bin/ (make build), restic and borg.
#   MONTH=DIR bench/month.sh     DIR is where everything lies, 25 GB for the defaults; without it nothing is done
#   GUESTS=10 DAYS=30            how many; a day more than there are already goes on from there
#   UNTIL=TIME                   begin no day after it (date -d understands it); what follows the days is done for those that there are
#   RESTORES=4 PARTS="days restores prune"
#
# One Debian is made, and cloned by hvd for each guest; beside each volume lies a raw file of the same content, in which the guest's day happens: upgrades by the security archive in three waves, packages that come and go, a database (new rows, changes all
# over the old ones, on some days a vacuum), logs with rotation and gzip, fstrim once a week. Logs fill up what is missing to 4 % of what is not zero. What has changed is written to the volume by NBD (bench/month). Then each program makes one backup of all guests:
# hv-backup of the volumes, the other two of the raw files, each into one encrypted repository, in turns; borg with zstd,3 and chunks of 64 KiB, restic as it comes. Times are those of whole commands with a warm page cache; beside them is CPU time, which says more
# where other work runs beside it.
#
# It can be killed at any time and called again: what is done (DIR/state) is not done again, a guest in whose day it was killed is taken back from its volume, and a row that was cut off is measured again.
set -eu
if [ -z "${MONTH:-}" ]; then
	echo "month: MONTH=DIR is not set, skipped"
	exit 0
fi
[ "$(id -u)" = 0 ] || { echo "month: needs root, for loop devices and chroot" >&2; exit 2; }
for tool in debootstrap mkfs.ext4 unshare sqlite3 python3 bc go fstrim flock; do
	command -v $tool >/dev/null || { echo "month: $tool is missing: apt-get install debootstrap e2fsprogs util-linux sqlite3 python3 bc" >&2; exit 2; }
done
top=$(cd "$(dirname "$0")/.." && pwd)
bin=${HV_BIN:-$top/bin}
dir=$(mkdir -p "$MONTH" && cd "$MONTH" && pwd)
state=$dir/state hv=$bin/hv-storage-fabric daemon=
days=${DAYS:-30} size=$((${SIZE_MIB:-1280} << 20)) start=$((1 << 20))
guests=$(seq -f g%02g "${GUESTS:-10}")
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
export HV_ENDPOINT=unix:$dir/s/hvd.sock HV_BACKUP_REPO=$dir/hv HV_BACKUP_PASSWORD_FILE=$dir/password BORG_BASE_DIR=$dir/borg-home BORG_PASSPHRASE=bench RESTIC_PASSWORD=bench RESTIC_CACHE_DIR=$dir/restic-cache RESTIC_REPOSITORY=$dir/restic

mib() { echo "scale=1; ${1:-0} / 1048576" | bc; }
allocated() { du -s --block-size=1 "$1" | cut -f1; }
# total FIELD FILE...: of all lines of JSON in them
total() { python3 -c 'import json, sys
print(sum(json.loads(line)[sys.argv[1]] for name in sys.argv[2:] for line in open(name)))' "$@"; }

# --- inside of a guest; in a mount namespace of its own, so that nothing stays mounted when it is killed

mnt=$dir/mnt
attach() { # DISK
	mount -t tmpfs none "$mnt"
	mkdir "$mnt/guest"
	mnt=$mnt/guest
	mount -o "loop,offset=$start" "$1" "$mnt"
	mkdir -p "$mnt"/{proc,sys,dev,debs}
	mount -t proc proc "$mnt/proc"
	mount -t sysfs sys "$mnt/sys"
	mount --bind /dev "$mnt/dev"
	mount --bind "$dir/debs" "$mnt/debs"
	in_guest() { chroot "$mnt" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"; }
}
apt() { in_guest apt-get -qq -y -o Dir::Cache::archives=/debs -o Dpkg::Options::=--force-unsafe-io -o APT::Keep-Downloaded-Packages=true --no-install-recommends "$@"; }
installed() { # DEB...; once more, as one may pre-depend on another of them that must be configured before
	in_guest dpkg --force-unsafe-io --force-confold -i "$@" || in_guest dpkg --force-unsafe-io --force-confold -i "$@"
}
written() { # bytes to the disk so far
	sync -f "$mnt"
	awk '{ printf "%.0f", $7 * 512 }' "/sys/block/$(basename "$(findmnt -no SOURCE "$mnt")")/stat"
}
trim() { # what was freed is free when the journal says so
	sync -f "$mnt"
	fstrim "$mnt"
}
sources() { # ALL|main of the host's apt
	apt-get indextargets --format 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian' | sort -u | if [ "$1" = main ]; then grep ' [a-z]* main$'; else cat; fi >"$mnt/etc/apt/sources.list"
	in_guest apt-get -qq update
}
# plan FILE ARGUMENTS...: what apt would install, as lines of name, file of the package, and "new" or "old"; the files are fetched. Nothing is planned that is larger than the logs can make up for.
plan() {
	local file=$1
	shift
	apt -s "$@" | sed -n 's/^Inst \([^ ]*\) \(\[[^ ]*\]\)\? *(\([^ ]*\) .*\[\([a-z0-9]*\)\]).*/\1 \3 \4 \2/p' | while read -r name version arch old; do
		echo "${name}_${version//:/%3a}_$arch.deb $name ${old:+old}"
	done >"$file.new"
	[ -s "$file.new" ] || { rm "$file.new"; return 0; }
	apt --download-only "$@" >/dev/null
	local kib=0
	while read -r deb _; do kib=$((kib + $(dpkg-deb -f "$dir/debs/$deb" Installed-Size))); done <"$file.new"
	if [ $kib -gt $((${SIZE_MIB:-1280} * 22)) ]; then
		echo "$(basename "$file"): $kib KiB, left out" >&2
		rm "$file.new"
	else
		mv "$file.new" "$file"
	fi
}

make_base() {
	local uri suite name source i=10
	read -r uri suite <<<"$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian' | awk '$3 == "main" && $2 !~ /-/ { print $1, $2; exit }')"
	[ -n "$uri" ] || { echo "month: the host's apt has no main archive of Debian; run apt-get update" >&2; exit 2; }
	rm -rf "$dir/base.work" "$dir/plans"
	mkdir -p "$dir/plans" "$dir/debs/partial"
	truncate -s "$size" "$dir/base.work"
	echo "start=2048,type=83,bootable" | sfdisk -q --label dos "$dir/base.work"
	mkfs.ext4 -q -F -m 1 -U 0b5e0f1c-6f4e-4a3c-9d0a-000000000030 -E "offset=$start,hash_seed=0b5e0f1c-6f4e-4a3c-9d0a-000000000030,lazy_itable_init=0" "$dir/base.work" $(((size - start) >> 10))k
	mount -t tmpfs none "$mnt" && mkdir "$mnt/guest"
	mount -o "loop,offset=$start" "$dir/base.work" "$mnt/guest"
	debootstrap --variant=minbase --cache-dir="$dir/debs" "$suite" "$mnt/guest" "$uri"
	umount -R "$mnt"
	attach "$dir/base.work"
	rm -rf "$mnt"/var/cache/apt/archives/*.deb
	printf '#!/bin/sh\nexit 101\n' >"$mnt/usr/sbin/policy-rc.d"
	chmod 755 "$mnt/usr/sbin/policy-rc.d"
	cp /etc/resolv.conf "$mnt/etc/resolv.conf"
	sources main
	# shellcheck disable=SC2086
	apt install ${BASE:-systemd-sysv dbus ifupdown openssh-server rsyslog logrotate cron ca-certificates less vim-tiny python3 perl sqlite3 git curl linux-image-cloud-amd64 nginx-light php-fpm php-mysql redis-server gnupg rsync build-essential}
	in_guest apt-mark hold linux-image-cloud-amd64
	sources ALL
	# upgrades, a source package each; in the order in which apt would do them
	apt -s upgrade | sed -n 's/^Inst \([^ ]*\) \[.*/\1/p' | while read -r name; do
		echo "$(in_guest dpkg-query -W -f '${source:Package}' "$name") $name"
	done | awk '!($1 in n) { order[++k] = $1 } { n[$1] = n[$1] " " $2 } END { for (i = 1; i <= k; i++) print order[i] n[order[i]] }' >"$dir/plans/upgrades"
	while read -r source name; do
		# shellcheck disable=SC2086
		plan "$dir/plans/upgrade-$i-$source" install --only-upgrade $name </dev/null
		i=$((i + 1))
	done <"$dir/plans/upgrades"
	i=10
	for name in ${SETS:-postgresql-client haproxy nmap memcached apache2 tcpdump bind9-dnsutils mariadb-client postfix squid ruby tcl lua5.4 gdb-minimal stunnel4 dovecot-core varnish cmake-data imagemagick php-gd ffmpeg-doc unbound strace htop zsh}; do
		# shellcheck disable=SC2086
		plan "$dir/plans/set-$i-$name" install ${name//,/ }
		i=$((i + 1))
	done
	rm -rf "$mnt"/var/lib/apt/lists/* "$mnt"/var/cache/apt/*.bin "$mnt/etc/resolv.conf" "$mnt"/etc/ssh/ssh_host_*
	trim
}

# named PLAN...: what they install that was not there before; debs PLAN: the files
named() { awk '$3 != "old" { print $2 }' "$@" | sort -u; }
debs() { awk '{ print "/debs/" $1 }' "$1"; }
# set_of GUEST-NUMBER DAY: what comes on that day; a guest gets something every other day, and keeps it for six
set_of() {
	local all
	all=("$dir"/plans/set-*)
	[ "$2" -lt 1 ] || [ $((($1 + $2) % 2)) != 0 ] || echo "${all[$(((($2 + 1) / 2 + $1 * 3) % ${#all[@]}))]}"
}

guest_day() { # GUEST DAY
	local g=$((10#${1#g})) day=$2 all due i gone keep target want log before
	attach "$dir/guests/$1.raw"
	before=$(written)
	if [ "$day" = 1 ]; then
		echo "$1" >"$mnt/etc/hostname"
		in_guest ssh-keygen -q -A
		echo "$1" | md5sum | cut -c1-32 >"$mnt/etc/machine-id"
	fi
	target=$(($(python3 -c 'import json, sys
print([d for d in map(json.loads, open(sys.argv[1])) if d["name"] in (sys.argv[2], "base")][0]["nonZeroBytes"])' "$state/day-$((day - 1)).json" "$1") / 1000 * 40))

	# packages
	all=("$dir"/plans/upgrade-*)
	for i in "${!all[@]}"; do
		due=$((1 + i * 26 / ${#all[@]} + g % 3))
		# shellcheck disable=SC2046
		[ $due != "$day" ] || [ ! -f "${all[$i]}" ] || installed $(debs "${all[$i]}")
	done
	gone=$(set_of $g $((day - 6)))
	if [ -n "$gone" ]; then
		keep=$(for i in 4 2; do set_of $g $((day - i)); done)
		# shellcheck disable=SC2046,SC2086
		in_guest dpkg --force-unsafe-io --purge $(comm -23 <(named "$gone") <(named $keep /dev/null)) || true # what another package has come to need stays
	fi
	i=$(set_of $g "$day")
	# shellcheck disable=SC2046
	[ -z "$i" ] || installed $(debs "$i")

	# the database
	mkdir -p "$mnt/srv/shop" "$mnt/var/log/site"
	"$dir/month" rows $g "$day" | sqlite3 -bail "$mnt/srv/shop/shop.db" >/dev/null
	[ $(((day + g) % 10)) != 0 ] || sqlite3 "$mnt/srv/shop/shop.db" vacuum

	# logs
	log=$mnt/var/log/site/access
	[ ! -f "$log.log" ] || mv "$log.log" "$log-$((day - 1)).log"
	[ ! -f "$log-$((day - 2)).log" ] || gzip -n "$log-$((day - 2)).log"
	rm -f "$log-$((day - 9)).log.gz"
	"$dir/month" logs $((g + 1000)) "$day" 200000 >>"$mnt/var/log/syslog"
	want=$((target + before - $(written)))
	[ $want -ge $((3 << 20)) ] || want=$((3 << 20))
	"$dir/month" logs $g "$day" $want >"$log.log"
	[ $(((day + g) % 7)) != 0 ] || trim
}

if [ "${1:-}" = --inside ]; then
	shift
	"$@"
	umount -R "$dir/mnt" # what the end of the namespace would unmount later, with what is not written yet
	exit
fi

# --- outside

inside() { unshare -m --propagation private "$0" --inside "$@" >>"$dir/guests.log" 2>&1 || { echo "month: $* failed; the end of $dir/guests.log says why" >&2; return 1; }; }

mkdir -p "$state" "$dir/guests" "$dir/mnt"
exec 9>"$dir/lock"
flock -n 9 || { echo "month: another run, or the rest of one, is busy in $dir" >&2; exit 2; }
echo bench >"$dir/password"
cleanup() {
	for job in $(jobs -p); do kill "$job" 2>/dev/null || true; done
	wait 2>/dev/null || true
	[ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true
	while [ -n "$daemon" ] && [ -d "/proc/$daemon" ] && ! grep -q '^State:.Z' "/proc/$daemon/status" 2>/dev/null; do sleep 0.1; done
}
trap cleanup EXIT
trap 'exit 1' INT TERM

# done_once FILE COMMAND...: what it prints is kept in the state, and it is not done again
done_once() {
	local file=$state/$1
	shift
	[ ! -f "$file" ] || return 0
	"$@" >"$file.new"
	mv "$file.new" "$file"
}
cpu_of() { awk '{ print ($14 + $15) / 100 }' "/proc/$1/stat"; }
# timed COMMAND...: prints seconds, seconds of CPU, and the most memory in MiB; what the command prints goes to $dir/out. Seconds in which everything here was stopped, as by SIGSTOP for the sake of another measurement, are not counted.
timed() {
	sync
	python3 -c '
import resource, subprocess, sys, time
begin = last = time.monotonic()
stopped = 0
child = subprocess.Popen(sys.argv[2:], stdout=open(sys.argv[1], "w"))
while True:
    try:
        child.wait(0.1)
    except subprocess.TimeoutExpired:
        pass
    now = time.monotonic()
    if now - last > 1:
        stopped += now - last
    last = now
    if child.returncode is not None:
        break
u = resource.getrusage(resource.RUSAGE_CHILDREN)
print("%.1f %.1f %d" % (now - begin - stopped, u.ru_utime + u.ru_stime, u.ru_maxrss >> 10))
sys.exit(child.returncode)' "$dir/out" "$@"
}
# timed_hv COMMAND...: the same, with the daemon's CPU time in it
timed_hv() {
	local before figures
	before=$(cpu_of "$daemon")
	figures=$(timed "$@") || return 1
	awk -v b="$before" -v a="$(cpu_of "$daemon")" '{ printf "%.1f %.1f %d\n", $1, $2 + a - b, $3 }' <<<"$figures"
}
socket() { "$hv" volume attach "$1" -o json | sed -n 's/^ *"uri": *".*socket=\([^"&]*\).*/\1/p'; }

begin() {
	(cd "$top" && go build -o "$dir/month" ./bench/month)
	if [ ! -f "$dir/base.raw" ]; then
		inside make_base
		fallocate --dig-holes "$dir/base.work"
		mv "$dir/base.work" "$dir/base.raw"
	fi
	if "$hv" status >/dev/null 2>&1; then
		daemon=$(cat "$dir/hvd.pid") # of a run that was killed
	else
		"$bin/hvd" --data-dir "$dir/s" --listen off 2>>"$dir/hvd.log" 9>&- &
		daemon=$!
		echo $daemon >"$dir/hvd.pid"
		"$hv" status --wait 120s >/dev/null
	fi
	done_once import "$hv" volume import base "$dir/base.raw" 2>/dev/null
	done_once sync-0 "$dir/month" sync "$state" 0 - "base=$dir/base.raw"
	for g in $guests; do
		done_once "clone-$g" "$hv" volume clone base "$g"
		"$hv" volume attach "$g" >/dev/null
		[ -f "$state/guest-$g" ] || { cp --sparse=always "$dir/base.raw" "$dir/guests/$g.raw" && echo "0 done" >"$state/guest-$g"; }
	done
	done_once hv-init "$bin/hv-backup" repo init
	done_once restic-init restic init --quiet
	done_once borg-init borg init --encryption=repokey-blake2 "$dir/borg" 2>/dev/null
}

one_guest() { # GUEST DAY
	local at what
	read -r at what <"$state/guest-$1"
	[ "$at $what" != "$2 done" ] || return 0
	if [ "$what" = begun ]; then
		rm -f "$dir/guests/$1.raw"
		"$hv" volume export "$1" "$dir/guests/$1.raw" >/dev/null 2>&1
	fi
	echo "$2 begun" >"$state/guest-$1.new" && mv "$state/guest-$1.new" "$state/guest-$1"
	inside guest_day "$1" "$2"
	sync "$dir/guests/$1.raw"
	echo "$2 done" >"$state/guest-$1.new" && mv "$state/guest-$1.new" "$state/guest-$1"
}

backup() { # PROGRAM DAY
	case $1 in
	hv)
		# shellcheck disable=SC2086
		timed_hv "$bin/hv-backup" run $guests --tag "day-$2" -o json
		python3 -c '
import json, sys
all = json.load(open(sys.argv[1]))
all = all if isinstance(all, list) else [all]
print(sum(b.get("readBytes", b["sizeBytes"]) for b in all), sum(b["newBytes"] for b in all), sum(b["storedBytes"] for b in all))
print(" ".join(b["source"] + "=" + b["backup"] for b in all))' "$dir/out"
		allocated "$dir/hv"
		;;
	restic)
		restic unlock --quiet
		timed restic backup --quiet --tag "day-$2" "$dir/guests"
		allocated "$dir/restic"
		;;
	borg)
		borg break-lock "$dir/borg"
		borg delete --force "$dir/borg::day-$2" 2>/dev/null || true # of a run that was killed before it could say so
		timed borg create --compression zstd,3 --chunker-params buzhash,10,23,16,4095 "$dir/borg::day-$2" "$dir/guests"
		allocated "$dir/borg"
		;;
	esac
}
# in_turns N: the three, another one first each time
in_turns() { case $(($1 % 3)) in 0) echo hv restic borg ;; 1) echo restic borg hv ;; 2) echo borg hv restic ;; esac; }

guests_day() { # DAY, for all guests, and what has changed goes to their volumes
	local g disks="" now
	for g in $guests; do
		while [ "$(jobs -pr | grep -cv "^$daemon$")" -ge "$(nproc)" ]; do wait -n || return 1; done
		one_guest "$g" "$1" &
		disks="$disks $g=$dir/guests/$g.raw"
	done
	for now in $(jobs -p); do [ "$now" = "$daemon" ] || wait "$now" || return 1; done
	for g in $guests; do [ "$(cat "$state/guest-$g")" = "$1 done" ] || return 1; done
	# shellcheck disable=SC2086
	done_once "sync-$1" "$dir/month" sync "$state" "$1" "$(socket g01)" $disks
}
one_day() { # DAY
	local now
	[ -f "$state/sync-$1" ] || guests_day "$1"
	"$hv" store settle --wait >/dev/null 2>&1
	for now in $(in_turns "$1"); do done_once "$now-$1" backup "$now" "$1"; done
}

# figures FILE: "S s, CPU s, MiB" of its first line
figures() { awk 'NR == 1 { printf "%s s, %s s, %s MiB", $1, $2, $3 }' "$1"; }
row() { # DAY
	local d=$state/day-$1.json all nonzero changed unique stored
	all=$(for i in $(seq "$1"); do echo "$state/day-$i.json"; done)
	nonzero=$(total nonZeroBytes "$d") changed=$(total changedBytes "$d") unique=$(total uniqueBytes "$d")
	stored=$(for p in hv restic borg; do tail -1 "$state/$p-$1"; done)
	# shellcheck disable=SC2086
	echo "| $1 | $(mib "$nonzero") | $(mib "$changed"), $(echo "scale=1; 100 * $changed / $nonzero" | bc) % | $(mib "$unique") | $(figures "$state/hv-$1") | $(awk 'NR == 2 { printf "%.0f, %.0f, %.0f", $1 / 1048576, $2 / 1048576, $3 / 1048576 }' "$state/hv-$1") | $(figures "$state/restic-$1") | $(figures "$state/borg-$1") | $(for s in $stored; do mib "$s"; done | paste -sd/ | sed 's:/:, :g') | $(for s in $stored; do echo "scale=1; $(total nonZeroBytes $all) / $s" | bc; done | paste -sd/ | sed 's:/:, :g') |"
}

# restore PROGRAM GUEST DAY: prints figures, and fails if it is not what it was
restore() {
	local to=$dir/restored file want
	rm -rf "$to"
	mkdir "$to"
	want=$(sed -n "s/.*\"name\":\"$2\".*\"sha256\":\"\([0-9a-f]*\)\".*/\1/p" "$state/day-$3.json")
	case $1 in
	hv) file=$to/$2.raw && timed "$bin/hv-backup" restore "$(tail -2 "$state/hv-$3" | sed -n "s/.*\<$2=\([^ ]*\).*/\1/p")" --to-file "$file" -o json ;;
	restic) file=$to$dir/guests/$2.raw && timed restic restore --quiet latest --tag "day-$3" --include "$dir/guests/$2.raw" --target "$to" ;;
	borg) file=$to$dir/guests/$2.raw && (cd "$to" && timed borg extract --sparse "$dir/borg::day-$3" "${dir#/}/guests/$2.raw") ;;
	esac
	[ "$(sha256sum <"$file" | cut -d' ' -f1)" = "$want" ] || { echo "month: $1 restores $2 of day $3 wrongly" >&2; return 1; }
	rm -rf "$to"
}

prune() { # PROGRAM DAY...: forgets these, and gives back their space
	local program=$1 old
	shift
	case $program in
	hv)
		# shellcheck disable=SC2046
		old=$(for d in "$@"; do tail -2 "$state/hv-$d" | head -1 | tr ' ' '\n' | sed 's/.*=//'; done)
		# shellcheck disable=SC2086
		timed "$bin/hv-backup" forget $old
		timed "$bin/hv-backup" prune --alone -o json
		allocated "$dir/hv"
		;;
	restic)
		old=$(for d in "$@"; do restic snapshots --json --tag "day-$d" | python3 -c 'import json, sys
print(*(s["id"] for s in json.load(sys.stdin)))'; done)
		# shellcheck disable=SC2086
		timed restic forget --quiet $old
		timed restic prune --quiet
		allocated "$dir/restic"
		;;
	borg)
		timed borg delete "$dir/borg" $(for d in "$@"; do echo "day-$d"; done)
		timed borg compact "$dir/borg"
		allocated "$dir/borg"
		;;
	esac
}

begin
last=0
case " ${PARTS:=days restores prune} " in *" days "*)
	echo "| day | non-zero MiB | changed | unique MiB | hv-backup: time, CPU with hvd, memory | read, new, stored MiB | restic | borg | repositories MiB: hv-backup, restic, borg | non-zero so far : stored |"
	echo "|---|---|---|---|---|---|---|---|---|---|"
	for day in $(seq "$days"); do
		[ -f "$state/pruned" ] && [ ! -f "$state/borg-$day" ] && break
		[ -z "${UNTIL:-}" ] || [ -f "$state/sync-$day" ] || [ "$(date +%s)" -lt "$(date -d "$UNTIL" +%s)" ] || break
		one_day "$day"
		row "$day"
	done
	echo
	;;
esac
while [ -f "$state/hv-$((last + 1))" ] && [ -f "$state/restic-$((last + 1))" ] && [ -f "$state/borg-$((last + 1))" ]; do last=$((last + 1)); done
[ $last -gt 0 ] || exit 0
"$bin/hv-backup" repo stats
"$hv" store explain
echo
case " $PARTS " in *" restores "*)
	echo "| restored to a file: guest, day | hv-backup | restic | borg |"
	echo "|---|---|---|---|"
	RANDOM=30
	for i in $(seq "${RESTORES:-4}"); do
		n=$((1 + RANDOM % ${GUESTS:-10})) day=$((1 + RANDOM % last))
		g=$(printf g%02d $n)
		[ ! -f "$state/pruned" ] || [ $((day % 2)) = 0 ] || continue
		for p in $(in_turns "$i"); do done_once "restore-$p-$g-$day" restore "$p" "$g" $day; done
		echo "| $g, $day | $(figures "$state/restore-hv-$g-$day") | $(figures "$state/restore-restic-$g-$day") | $(figures "$state/restore-borg-$g-$day") |"
	done
	echo
	;;
esac
case " $PARTS " in *" prune "*)
	[ $last -gt 1 ] || exit 0
	touch "$state/pruned"
	echo "| every other day forgotten | forget | prune | repository MiB before, after |"
	echo "|---|---|---|---|"
	for p in hv restic borg; do
		# shellcheck disable=SC2046
		done_once "prune-$p" prune "$p" $(seq 1 2 $last)
		echo "| $p | $(figures "$state/prune-$p") | $(sed 1d "$state/prune-$p" | figures /dev/stdin) | $(mib "$(tail -1 "$state/$p-$last")"), $(mib "$(tail -1 "$state/prune-$p")") |"
		done_once "after-$p" restore "$p" g01 $((last / 2 * 2))
	done
	echo
	echo "g01 of day $((last / 2 * 2)) was restored from each after that, and is what it was."
	;;
esac
echo "load $(cut -d' ' -f1-3 /proc/loadavg)"
