package e2e

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// needsKernelNBD ends a test that cannot run without the kernel's own NBD client, which few kernels of test machines have: it is skipped there, unless HV_REQUIRE_NBD is set.
func needsKernelNBD(t *testing.T) {
	t.Helper()
	lacks := ""
	if _, err := os.Stat("/dev/nbd0"); err != nil {
		lacks = err.Error() + " (modprobe nbd)"
	} else if _, err := exec.LookPath("nbd-client"); err != nil {
		lacks = err.Error() + " (Debian: apt install nbd-client)"
	} else if os.Geteuid() != 0 {
		lacks = "only root can map a volume"
	}
	if lacks != "" && os.Getenv("HV_REQUIRE_NBD") != "" {
		t.Fatal(lacks)
	}
	if lacks != "" {
		t.Skipf("%s; with HV_REQUIRE_NBD=1 this is a failure", lacks)
	}
}

// kernelDisk maps a volume and returns the device. What the test leaves mapped is unmapped at its end.
func (d *daemon) kernelDisk(volume string, flags ...string) string {
	d.t.Helper()
	got := d.try(append([]string{"volume", "map", volume}, flags...)...)
	device := strings.TrimSpace(got.stdout)
	if got.code != 0 || !strings.HasPrefix(device, "/dev/nbd") {
		d.t.Fatalf("map %s ended with %d: %s%s", volume, got.code, got.stdout, got.stderr)
	}
	d.t.Cleanup(func() { _ = exec.Command("nbd-client", "-disconnect", device).Run() })
	return device
}

// unmap ends a device and waits until it is free.
func (d *daemon) unmap(device string) {
	d.t.Helper()
	d.run("volume", "unmap", device)
	eventually(d.t, device+" is free again", func() bool { return sysBlock(device, "pid") == "" })
}

// sysBlock reads a file of a device in /sys/block, "" if it is not there.
func sysBlock(device, name string) string {
	text, _ := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), name))
	return strings.TrimSpace(string(text))
}

// deviceBytes reads a whole device past the page cache: its pages are dropped before.
func deviceBytes(t *testing.T, device string) ([]byte, error) {
	t.Helper()
	_ = execute(t, nil, "blockdev", "--flushbufs", device)
	f, err := os.Open(device)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// TestVolumeMap makes volumes block devices with the real nbd-client and the kernel's driver: size to the sector, bytes both ways, a read-only one, unmap, and a
// kill of hvd under it.
func TestVolumeMap(t *testing.T) {
	needsKernelNBD(t)
	needs(t, "blockdev")
	const size = 8<<20 + 512
	d := startDaemon(t)
	d.disk("disk", bytesText(size))
	d.run("volume", "create", "fixed", "--size", "1MiB")
	d.attach("fixed", "--read-only")

	device, fixed := d.kernelDisk("disk"), d.kernelDisk("fixed")
	if device == fixed {
		t.Fatalf("both are %s", device)
	}
	if got := sysBlock(device, "size"); got != strconv.Itoa(size/512) {
		t.Errorf("%s has %s sectors, want %d", device, got, size/512)
	}
	if rw, ro := sysBlock(device, "ro"), sysBlock(fixed, "ro"); rw != "0" || ro != "1" {
		t.Errorf("read-only: %s of the one, %s of the other", rw, ro)
	}
	d.refuses(4, []string{device}, "volume", "map", "disk", "--device", device)

	content := randomBytes(1, size)
	writeDevice := func(p []byte, off int64) {
		t.Helper()
		f, err := os.OpenFile(device, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		copy(content[off:], p)
	}
	writeDevice(content, 0)
	mustHold(t, d, "disk", content)
	d.kill()
	d.start()
	// Whether the device comes back by itself is up to nbd-client: that of Debian 12 does not. It may fail then, but show nothing else.
	if got, err := deviceBytes(t, device); err == nil && !bytes.Equal(got, content) {
		t.Errorf("after a kill of hvd the device has %d bytes, or others", len(got))
	}
	for _, mapped := range []string{device, fixed} {
		d.unmap(mapped)
	}
	device, fixed = d.kernelDisk("disk"), d.kernelDisk("fixed")
	got, err := deviceBytes(t, device)
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("mapped again after a kill of hvd: %v, %d bytes, or others", err, len(got))
	}
	writeDevice(randomBytes(2, 1<<20), 3<<20)
	mustHold(t, d, "disk", content)

	for _, mapped := range []string{device, fixed} {
		d.unmap(mapped)
	}
	d.refuses(3, []string{"nothing is mapped"}, "volume", "unmap", device)
}
