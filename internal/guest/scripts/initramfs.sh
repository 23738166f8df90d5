#!/bin/busybox sh
# First process of the guest, in the initramfs: loads the disk driver, mounts the root disk and hands over to its /sbin/init.
/bin/busybox mkdir -p /bin /proc /sys /dev /run /newroot
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

fail() {
	echo "GUEST-ERROR initramfs: $*"
	poweroff -f
}

case " $(cat /proc/cmdline) " in
*" hv.task=smoke "*)
	echo "GUEST-SMOKE ok"
	poweroff -f
	;;
esac

while read -r module; do
	insmod "/modules/$module" || fail "cannot load $module"
done </modules/order

tries=0
while [ ! -b /dev/vda ]; do
	tries=$((tries + 1))
	[ "$tries" -gt 100 ] && fail "no disk /dev/vda after 10 s"
	sleep 0.1
done
mount -t ext4 -o rw,noatime /dev/vda /newroot || fail "cannot mount /dev/vda"

mount -t tmpfs -o mode=755 run /newroot/run
mkdir -p /newroot/run/hv-guest
[ -f /hv-script ] && cp /hv-script /newroot/run/hv-guest/script
mount --move /dev /newroot/dev
mount --move /proc /newroot/proc
mount --move /sys /newroot/sys
exec switch_root /newroot /sbin/init
