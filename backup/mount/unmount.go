package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// ownerPrefix begins the name of the source of the tmpfs; behind it are the process that serves the disk, when that began, and its folder.
const ownerPrefix = "hv-backup:"

func owner(folder string) string {
	return fmt.Sprintf("%s%d:%s:%s", ownerPrefix, os.Getpid(), startOf(os.Getpid()), folder)
}

// startOf returns when a process began, in the kernel's ticks since the start of the machine, "" if there is none, or it is dead: ids of processes are used again.
func startOf(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, ok := strings.Cut(string(text[strings.LastIndex(string(text), ")")+1:]), " ") // the name before may hold anything
	fields := strings.Fields(rest)
	const start = 22 - 3 // of proc(5), less those up to the name
	if err != nil || !ok || len(fields) <= start || fields[0] == "Z" || fields[0] == "X" {
		return ""
	}
	return fields[start]
}

// entry is a line of /proc/self/mountinfo (proc(5)).
type entry struct{ point, kind, source string }

// mounts returns what is mounted, in order.
func mounts() (all []entry, err error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		before, after, ok := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if ok && len(left) >= 5 && len(right) >= 2 {
			all = append(all, entry{unescape(left[4]), right[0], unescape(right[1])})
		}
	}
	return all, nil
}

// unescape undoes the octal escapes of mountinfo.
func unescape(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+3 < len(text) {
			if c, err := strconv.ParseUint(text[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(text[i])
	}
	return b.String()
}

// mountsAt returns what is mounted on a directory, and on those below.
func mountsAt(path string) (found []entry, err error) {
	all, err := mounts()
	for _, e := range all {
		if e.point == path || strings.HasPrefix(e.point, strings.TrimSuffix(path, "/")+"/") {
			found = append(found, e)
		}
	}
	return found, err
}

// unmountAll unmounts a directory and what is below, the last mounted first.
func unmountAll(path string) error {
	found, err := mountsAt(path)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(busyTime)
	for _, e := range slices.Backward(found) {
		for {
			if err = unix.Unmount(e.point, unix.UMOUNT_NOFOLLOW); !errors.Is(err, unix.EBUSY) {
				break
			}
			if time.Now().After(deadline) {
				err = unix.Unmount(e.point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
				break
			}
			time.Sleep(pollEvery)
		}
		if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: somebody else was faster
			return fmt.Errorf("unmount %s: %w", e.point, err)
		}
	}
	return nil
}

// removeFuse detaches the file of a disk that nobody serves any more.
func removeFuse(folder string) error {
	err := unix.Unmount(folder, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// Unmount ends what another process has mounted on a directory: it is asked to, and if it has died, what it left is removed. block.ErrNotFound if there is no such mount.
func Unmount(ctx context.Context, path string) error {
	found, err := mountsAt(path)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(found, func(e entry) bool {
		return e.point == path && e.kind == "tmpfs" && strings.HasPrefix(e.source, ownerPrefix)
	})
	if at < 0 {
		return fmt.Errorf("a backup mounted on %s: %w", path, block.ErrNotFound)
	}
	parts := strings.SplitN(strings.TrimPrefix(found[at].source, ownerPrefix), ":", 3)
	pid, err := strconv.Atoi(parts[0])
	if err != nil || pid <= 1 || len(parts) != 3 {
		return &block.CorruptError{Source: "mount of " + path, Want: "a process and its folder", Got: found[at].source}
	}
	start, folder := parts[1], parts[2]
	if startOf(pid) == start {
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("end process %d, which serves %s: %w", pid, path, err)
		}
		if err := waitGone(ctx, path, pid, start); err != nil {
			return err
		}
	}
	if err := unmountAll(path); err != nil {
		return err
	}
	return removeRest(folder)
}

// waitGone waits until the process has ended.
func waitGone(ctx context.Context, path string, pid int, start string) error {
	for deadline := time.Now().Add(3 * busyTime); startOf(pid) == start; {
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d still serves %s", pid, path)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollEvery):
		}
	}
	return nil
}

// removeRest removes the folder of a process that has died.
func removeRest(folder string) error {
	if !filepath.IsAbs(folder) || !strings.HasPrefix(filepath.Base(folder), "hv-backup-") {
		return nil // none of ours
	}
	if err := removeFuse(filepath.Join(folder, "fuse")); err != nil {
		return err
	}
	for _, name := range []string{"fuse", "nbd.sock", ""} { // and nothing else that might be there
		if err := os.Remove(filepath.Join(folder, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
