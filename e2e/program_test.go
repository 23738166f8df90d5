package e2e

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// packages of Debian that bring the programs.
var packages = map[string]string{
	"nbdinfo": "libnbd-bin", "nbdcopy": "libnbd-bin", "qemu-img": "qemu-utils", "qemu-io": "qemu-utils", "fio": "fio",
	"qemu-system-x86_64": "qemu-system-x86", "setpriv": "util-linux", "mke2fs": "e2fsprogs", "e2fsck": "e2fsprogs", "debugfs": "e2fsprogs",
	"openssl": "openssl", "nbdkit": "nbdkit", "nbdfuse": "libnbd-bin", "fusermount3": "fuse3", "losetup": "mount", "mkfs.xfs": "xfsprogs", "xfs_repair": "xfsprogs", "mkfs.btrfs": "btrfs-progs",
	"mkfs.ext4": "e2fsprogs", "sfdisk": "fdisk", "blkid": "util-linux", "btrfs": "btrfs-progs", "mount": "mount", "blockdev": "util-linux",
}

// missing ends a test that cannot run here: skipped on a developer's machine, failed in CI, which can provide everything.
func missing(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// absent is missing for what make test provides, or has to have: it sets HV_REQUIRE_TOOLS, with which the test fails outside of CI, too.
func absent(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("HV_REQUIRE_TOOLS") != "" {
		t.Fatalf(format, args...)
	}
	missing(t, format, args...)
}

// needs ends a test that cannot run without these programs.
func needs(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			absent(t, "%s is not installed (Debian: apt install %s)", name, packages[name])
		}
	}
}

// needsMounts ends a test that cannot run where nobody can mount: as root, which a plain user of CI is not, it fails there like a test whose programs are missing.
func needsMounts(t *testing.T) {
	t.Helper()
	needsRoot(t, "mount a file system")
	for path, module := range map[string]string{"/dev/fuse": "fuse", "/dev/loop-control": "loop"} {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			absent(t, "nobody can mount here: %v (load the module %s, and give the device to the container, if this is one)", err, module)
			continue
		}
		f.Close()
	}
}

// needsRoot ends a test that cannot run as a plain user, which is no fault of the machine: CI may be one.
func needsRoot(t *testing.T, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("only root can %s", why)
	}
}

// tool runs a program that must succeed and returns its standard output.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	got := tryTool(t, name, args...)
	if got.code != 0 {
		t.Fatalf("%s %s ended with %d\n%s%s", name, strings.Join(args, " "), got.code, got.stdout, got.stderr)
	}
	return got.stdout
}

func tryTool(t *testing.T, name string, args ...string) result {
	t.Helper()
	needs(t, name)
	return execute(t, nil, name, args...)
}
