#!/bin/bash
# Builds the corpus of guest disks that bench/cold.sh compares with backup programs: two Debian guests of different roles, each as it stood on four days. Needs root, loop
# devices, debootstrap, fdisk, e2fsprogs, and a Debian host: packages come from where the host's own apt takes them.
#   CORPUS=DIR bench/corpus.sh   makes DIR/{db,web}-{1,2,3,4}.raw, 2.5 GiB each and sparse, about 10 GB that is not zero
#
# A day that is done is not done again: call it again after it was interrupted. What can be fixed is fixed: identities of file systems, content and order of database load
# and logs, hash seeds. Package versions are those of the day it runs, and times of files are real, so two runs are alike but not equal.
set -eu
if [ -z "${CORPUS:-}" ]; then
	echo "corpus: CORPUS=DIR is not set, skipped"
	exit 0
fi
[ "$(id -u)" = 0 ] || { echo "corpus: needs root, for loop devices and chroot" >&2; exit 2; }
for tool in debootstrap sfdisk mkfs.ext4 losetup fallocate; do
	command -v $tool >/dev/null || { echo "corpus: $tool is missing: apt-get install debootstrap fdisk e2fsprogs mount" >&2; exit 2; }
done
dir=$(mkdir -p "$CORPUS" && cd "$CORPUS" && pwd)
size=2560MiB
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

# source URI SUITE of the host's main archive, and all lines of its sources, in one-line form
mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian' | awk '$3 == "main" && $2 !~ /-/ { print $1, $2; exit }')
[ -n "$mirror" ] || { echo "corpus: the host's apt has no main archive of Debian; run apt-get update" >&2; exit 2; }
read -r uri suite <<<"$mirror"

mnt=$dir/mnt loop=
release() {
	for m in var/cache/apt/archives dev/shm dev proc sys; do mountpoint -q "$mnt/$m" && umount "$mnt/$m"; done
	mountpoint -q "$mnt" && umount "$mnt"
	[ -z "$loop" ] || losetup -d "$loop"
	loop=
	return 0
}
trap release EXIT
trap 'exit 1' INT TERM

# attach DISK START mounts the partition that begins at a sector
attach() {
	mkdir -p "$mnt" "$dir/debs/partial"
	loop=$(losetup --find --show --offset $(($2 * 512)) "$1")
	[ -z "${3:-}" ] || mkfs.ext4 -q -F -U "$3" -E "hash_seed=$3,lazy_itable_init=0,nodiscard" "$loop"
	mount "$loop" "$mnt"
}
enter() {
	mkdir -p "$mnt/proc" "$mnt/sys" "$mnt/dev" "$mnt/var/cache/apt/archives"
	mount -t proc proc "$mnt/proc"
	mount -t sysfs sys "$mnt/sys"
	mount --bind /dev "$mnt/dev"
	mkdir -p "$mnt/dev/shm"
	mount -t tmpfs shm "$mnt/dev/shm"
	mount --bind "$dir/debs" "$mnt/var/cache/apt/archives" # the guest keeps no packages, and a second run fetches none
	cp /etc/resolv.conf "$mnt/etc/resolv.conf"
}
in_guest() { chroot "$mnt" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"; }
packages() { in_guest apt-get -qq -y -o Dpkg::Options::=--force-unsafe-io -o APT::Keep-Downloaded-Packages=true install --no-install-recommends "$@" >>"$dir/apt.log" 2>&1; }

# base GUEST: a minimal system with the host's sources, a kernel and what a server has
base() {
	debootstrap --variant=minbase --cache-dir="$dir/debs" "$suite" "$mnt" "$uri" >>"$dir/apt.log" 2>&1
	apt-get indextargets --format 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian' | sort -u >"$mnt/etc/apt/sources.list"
	printf '#!/bin/sh\nexit 101\n' >"$mnt/usr/sbin/policy-rc.d"
	chmod 755 "$mnt/usr/sbin/policy-rc.d"
	echo "$1" >"$mnt/etc/hostname"
	rm -rf "$mnt"/var/cache/apt/archives/*.deb
	enter
	in_guest apt-get -qq update >>"$dir/apt.log" 2>&1
	packages systemd-sysv dbus ifupdown openssh-server rsyslog logrotate cron ca-certificates less vim-tiny python3 linux-image-cloud-amd64
}

# logs GUEST DAY MIB writes a day's log, and rotates the one before as logrotate does
logs() {
	local log=$mnt/var/log/$1.log
	[ ! -f "$log" ] || { [ ! -f "$log.1" ] || gzip -n "$log.1"; [ ! -f "$log.1.gz" ] || mv "$log.1.gz" "$log.$2.gz"; mv "$log" "$log.1"; }
	awk -v day="$2" -v want=$(($3 << 20)) -v seed="$((day_seed + $2))" 'BEGIN {
		srand(seed); split("GET GET GET GET POST HEAD PUT", verb); split("200 200 200 200 304 404 500 302", code)
		split("index cart login search product/%d img/%d.jpg api/v1/items/%d static/app.%d.js", path)
		for (n = 0; n < want; t += rand() * 2) {
			line = sprintf("10.%d.%d.%d - user%d [%02d/Mar/2026:%02d:%02d:%02d +0000] \"%s /%s HTTP/1.1\" %s %d \"-\" \"Mozilla/5.0 (X11; Linux x86_64; rv:%d.0)\" rt=%.4f id=%08x%08x",
				rand() * 4, rand() * 256, rand() * 256, rand() * 5000, day, (t / 3600) % 24, (t / 60) % 60, t % 60, verb[1 + int(rand() * 7)], sprintf(path[1 + int(rand() * 8)], rand() * 9000),
				code[1 + int(rand() * 8)], rand() * rand() * 200000, 90 + rand() * 40, rand(), rand() * 2 ^ 31, rand() * 2 ^ 31)
			n += length(line) + 1
			print line
		}
	}' >"$log"
}

# database SCALE TRANSACTIONS SEED loads PostgreSQL with its own benchmark; a scale of 0 only runs transactions
database() {
	local version
	version=$(ls "$mnt/usr/lib/postgresql")
	chroot "$mnt" /bin/sh -eu -c "
		ctl() { su postgres -c \"/usr/lib/postgresql/$version/bin/pg_ctl -s -w -D /var/lib/postgresql/$version/main -l /var/log/postgresql/main.log -o '-c config_file=/etc/postgresql/$version/main/postgresql.conf -c listen_addresses= -c max_wal_size=48MB -c min_wal_size=32MB -c fsync=off' \$1\"; }
		ctl start
		if [ $1 != 0 ]; then su postgres -c 'createdb shop && pgbench -q -i -s $1 shop'; fi
		su postgres -c 'pgbench -n -c 1 -t $2 --random-seed=$3 shop'
		su postgres -c \"psql -q shop -c 'create table if not exists event (id bigserial primary key, at timestamptz, kind int, body text)' -c \\\"select setseed(0.$3)\\\" -c \\\"insert into event (at, kind, body) select timestamptz '2026-03-01' + i * interval '1 second' + interval '$3 days', (random() * 20)::int, md5((i * $3)::text) || repeat(chr(97 + (i % 26)), (random() * 200)::int) from generate_series(1, 60000) i\\\" -c checkpoint\"
		ctl stop
	" >>"$dir/apt.log" 2>&1
}

db_day() {
	case $1 in
	1) packages postgresql postgresql-contrib; database 4 4000 1 ;;
	2) packages python3-psycopg2 python3-numpy rsync; database 0 8000 2 ;;
	3) packages perl libdbi-perl libdbd-pg-perl git; database 0 8000 3 ;;
	4) packages pgbackrest sqlite3 redis-server tcpdump; database 0 12000 4 ;;
	esac
	logs db "$1" 24
}
web_day() {
	case $1 in
	1) packages nginx php-fpm php-cli; mkdir -p "$mnt/srv/www" && cp -r "$mnt/usr/share/zoneinfo" "$mnt/srv/www/data" ;;
	2) packages build-essential git ;;
	3) packages imagemagick php-mysql php-gd nodejs && rm -rf "$mnt/srv/www/data/right" ;;
	4) packages mariadb-client default-jre-headless python3-pip; cp -r "$mnt/usr/lib/python3" "$mnt/srv/www/mirror" ;;
	esac
	logs web "$1" 24
}

# guest NAME START ID SEED makes the disks of one guest that are not there yet
guest() {
	local disk=$dir/$1.work
	day_seed=$4
	for day in 1 2 3 4; do
		[ ! -f "$dir/$1-$day.raw" ] || continue
		if [ $day = 1 ]; then
			rm -f "$disk"
			truncate -s $size "$disk"
			echo "start=$2,type=83,bootable" | sfdisk -q --label dos "$disk"
			attach "$disk" "$2" "$3"
			base "$1"
		else
			cp --sparse=auto "$dir/$1-$((day - 1)).raw" "$disk"
			attach "$disk" "$2"
			enter
		fi
		"$1_day" $day
		rm -f "$mnt/etc/resolv.conf"
		release
		fallocate --dig-holes "$disk" # blocks of zeroes are no data
		mv "$disk" "$dir/$1-$day.raw"
		echo "$1-$day.raw: $(du -m --apparent-size "$dir/$1-$day.raw" | cut -f1) MiB, allocated $(du -m "$dir/$1-$day.raw" | cut -f1) MiB"
	done
}

guest db 63 0b5e0f1c-6f4e-4a3c-9d0a-000000000063 6300
guest web 2048 0b5e0f1c-6f4e-4a3c-9d0a-000000002048 4800
