// Package mount makes the files of a disk that an NBD export serves browsable, read-only, with programs that Linux distributions have: nbdfuse shows the disk as a file, blkid and
// sfdisk say what is on it, mount(8) mounts each file system through a loop device of its own.
//
// What is on the disk is hostile. Only file systems of a list are mounted, with ro,nosuid,nodev,noexec, and none of their journals is replayed. The kernel's drivers parse them all
// the same: who does not trust them uses a virtual machine (guestmount) on the export instead.
//
//	DIRECTORY        a tmpfs that says whose it is, so that another process can end it
//	DIRECTORY/p1     partition 1, and so on; DIRECTORY/disk for a disk without partitions
//	FOLDER/fuse/disk the disk as a file, by nbdfuse
//
// A Mounted has one goroutine, which waits for nbdfuse and ends with Close.
package mount
