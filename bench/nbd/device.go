package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// device counts what is written to the disk below a folder, by whomever: nothing else must write meanwhile.
type device struct {
	stat string // file of the kernel's counters; empty where the file system has no device of its own
}

func deviceOf(dir string) device {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return device{}
	}
	path := fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(st.Dev), unix.Minor(st.Dev))
	if _, err := os.Stat(path); err != nil {
		return device{}
	}
	return device{stat: path}
}

// sectorBytes is the unit of the kernel's counters, whatever the device's own is.
const sectorBytes = 512

// written returns the bytes that reached the device since boot, after everything that is dirty was written; ok is false where that cannot be known.
func (d device) written() (n uint64, ok bool) {
	if d.stat == "" {
		return 0, false
	}
	unix.Sync()
	text, err := os.ReadFile(d.stat)
	if err != nil {
		return 0, false
	}
	f := strings.Fields(string(text))
	if len(f) < 7 {
		return 0, false
	}
	sectors, err := strconv.ParseUint(f[6], 10, 64)
	return sectors * sectorBytes, err == nil
}

// dropCaches empties the system's page cache, which only root can.
func dropCaches() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// freeBytes is what this user may still write below a folder.
func freeBytes(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("ask %s for its free space: %w", dir, err)
	}
	return st.Bavail * uint64(st.Bsize), nil
}
