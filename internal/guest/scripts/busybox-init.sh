#!/bin/sh
# /sbin/init of the busybox guest: runs the task, then stops the machine with its root disk clean.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t tmpfs tmp /tmp
/usr/lib/hv-guest/task
# /sbin/init keeps the root busy for ever, so the disk is made clean by a read-only remount instead of umount.
if mount -o remount,ro /; then
	echo "GUEST-CLEAN"
else
	echo "GUEST-ERROR cannot make the root disk read-only"
fi
poweroff -f
