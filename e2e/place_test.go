package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestLocked starts a second hvd on the same directory, by another path.
func TestLocked(t *testing.T) {
	d := startDaemon(t)
	w := d.watch()
	link := filepath.Join(shortDir(t), "link")
	if err := os.Symlink(d.dir, link); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{d.dir, link} {
		daemonIn(t, dir).refusesToStart(4, dir, "another hvd", "--data-dir")
	}
	w.testify()
}

// TestReadOnlyDirectory starts on a file system that cannot be written, with a store in it and without one.
func TestReadOnlyDirectory(t *testing.T) {
	needsRoot(t, "mount")
	d := mounted(t, "64M")
	d.flags = append(d.flags, "--store-reserve", "1MiB", "--control-socket", filepath.Join(shortDir(t), "c"), "--nbd-socket", filepath.Join(shortDir(t), "n"))
	remount(t, d, "ro")
	d.refusesToStart(1, d.dir, "read-only", "writable")
}

// TestReadOnlyStore is a whole store on a file system that became read-only. It is not harmed.
func TestReadOnlyStore(t *testing.T) {
	needsRoot(t, "mount")
	d := mounted(t, "512M")
	d.start()
	d.disk("disk", "1MiB")
	data := randomBytes(1, 1<<20)
	c := openNBD(t, d.nbdSocket(), "disk")
	if err := c.write(data, 0); err != nil {
		t.Fatal(err)
	}
	d.kill()
	remount(t, d, "ro")
	d.refusesToStart(1, d.dir, "read-only", "writable")
	remount(t, d, "rw")
	d.start()
	mustHold(t, d, "disk", data)
}

// mounted returns a daemon whose directory is a tmpfs of its own.
func mounted(t *testing.T, size string) *daemon {
	t.Helper()
	dir := shortDir(t)
	if err := syscall.Mount("hv-e2e", dir, "tmpfs", 0, "mode=700,size="+size); err != nil {
		missing(t, "cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return daemonIn(t, dir)
}

// remount changes options of the file system that a daemon lies on.
func remount(t *testing.T, d *daemon, option string) {
	t.Helper()
	flags := uintptr(syscall.MS_REMOUNT)
	if option == "ro" {
		flags |= syscall.MS_RDONLY
	}
	if option == "ro" || option == "rw" {
		option = ""
	}
	if err := syscall.Mount("hv-e2e", d.dir, "tmpfs", flags, option); err != nil {
		t.Fatalf("remount: %v", err)
	}
}

// mustHold reads the beginning of an export.
func mustHold(t *testing.T, d *daemon, export string, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if err := openNBD(t, d.nbdSocket(), export).read(got, 0); err != nil {
		t.Fatalf("read %s: %v", export, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s differs at %d", export, differAt(got, want))
	}
}

// TestOtherVersions starts on stores of a format of tomorrow.
func TestOtherVersions(t *testing.T) {
	d := startDaemon(t)
	d.disk("disk", "1MiB")
	d.stop()
	for _, c := range []struct {
		name string
		at   int // of a u32 or the low half of a u64
	}{{"version", 8}, {"incompatible feature", 72}, {"feature that forbids writing", 64}} {
		whole := map[string][]byte{}
		for _, name := range []string{"super.0", "super.1"} {
			path := filepath.Join(d.dir, name)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			whole[path] = bytes.Clone(b)
			binary.LittleEndian.PutUint32(b[c.at:], 77)
			binary.LittleEndian.PutUint32(b[4092:], crc32.Checksum(b[:4092], crc32.MakeTable(crc32.Castagnoli)))
			put(t, path, b)
		}
		d.refusesToStart(1, filepath.Join(d.dir, "super."), "version")
		for path, b := range whole {
			put(t, path, b)
		}
	}
	d.start()
	d.stop()
}

func put(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestDirectoryThatIsNone starts where no directory can be.
func TestDirectoryThatIsNone(t *testing.T) {
	dir := shortDir(t)
	put(t, filepath.Join(dir, "file"), nil)
	daemonIn(t, filepath.Join(dir, "file")).refusesToStart(1, filepath.Join(dir, "file"))
	daemonIn(t, filepath.Join(dir, "file", "below")).refusesToStart(1, filepath.Join(dir, "file"))
	long := filepath.Join(dir, strings.Repeat("d", 110))
	daemonIn(t, long).refusesToStart(2, "107", "control-socket")
	foreign := filepath.Join(dir, "foreign") // somebody's files, but no store
	if err := os.MkdirAll(filepath.Join(foreign, "log"), 0o700); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(foreign, "log", "syslog"), []byte("Nov 23 00:00:00 host kernel: hello\n"))
	daemonIn(t, foreign).refusesToStart(1, foreign)
}

// TestFullStore fills a small file system over NBD. A full store answers ENOSPC, loses nothing, can be trimmed, deleted from, restarted, and recovers when space returns.
func TestFullStore(t *testing.T) {
	needsRoot(t, "mount")
	d := mounted(t, "256M")
	d.start()
	d.disk("big", "1GiB")
	d.disk("other", "8MiB")
	other := randomBytes(2000, 8<<20)
	c := openNBD(t, d.nbdSocket(), "big")
	if err := openNBD(t, d.nbdSocket(), "other").write(other, 0); err != nil {
		t.Fatal(err)
	}
	written, first := fillUp(t, d)
	t.Logf("%d MiB fit into a file system of 256 MiB, %d of them before the first ENOSPC", written, first)
	if first < written*9/10 {
		t.Errorf("the first ENOSPC came after %d MiB, but %d fit: what waited for destage was counted as lost", first, written)
	}
	if written < 128 {
		t.Errorf("only %d MiB fit into a file system of 256 MiB", written)
	}
	holds := func(when string) {
		t.Helper()
		mustHold(t, d, "other", other)
		mustHoldSeeds(t, d, written, when)
	}
	if err := c.flush(); err != nil {
		t.Errorf("flush of a full store: %v", err)
	}
	holds("when full")
	d.refusesNoSpace("volume", "import", "more", sparseImage(t, 1, 64<<20))
	d.settle()
	holds("settled when full")
	d.kill()
	d.start()
	holds("after a kill when full")
	d.stop()
	d.start()
	holds("after a stop when full")
	d.recovers(t, "trim", func() {
		if err := openNBD(t, d.nbdSocket(), "big").trim(uint64(written/2)<<20, 512<<20); err != nil {
			t.Errorf("trim in a full store: %v", err)
		}
	})
	written /= 2
	holds("after a trim")
	d.recovers(t, "a larger file system", func() {
		fillUp(t, d)
		remount(t, d, "size=512M")
	})
	d.recovers(t, "delete", func() {
		fillUp(t, d)
		d.run("volume", "detach", "big", "--force")
		d.run("volume", "delete", "big", "--yes")
	})
	mustHold(t, d, "other", other)
	d.stop()
	d.check()
}

// TestSettleOnAFullDisk fills the file system with a foreign file: destage cannot go on, settle says so and what to do, nothing is lost, and it goes on with room.
func TestSettleOnAFullDisk(t *testing.T) {
	needsRoot(t, "mount")
	d := mounted(t, "256M")
	d.flags = append(d.flags, "--store-destage-after", "1h")
	d.start()
	d.disk("disk", "64MiB")
	data := randomBytes(3, 16<<20)
	c := openNBD(t, d.nbdSocket(), "disk")
	for off := 0; off < len(data); off += 1 << 20 {
		if err := c.write(data[off:off+1<<20], uint64(off)); err != nil {
			t.Fatal(err)
		}
	}
	foreign := filepath.Join(d.dir, "foreign")
	fillWith(t, foreign, 8<<20)
	d.mustRefuse(d.try("store", "settle", "--wait"), 1, []string{"settle", "make room", "space"}, "settle on a full disk")
	mustHold(t, d, "disk", data)
	if err := os.Remove(foreign); err != nil {
		t.Fatal(err)
	}
	d.settle()
	mustHold(t, d, "disk", data)
	var stats struct{ UndestagedBytes uint64 }
	if d.json(&stats, "store", "stats"); stats.UndestagedBytes != 0 {
		t.Errorf("%d bytes are not destaged", stats.UndestagedBytes)
	}
	d.stop()
	d.check()
}

// fillWith makes a file that leaves so many bytes of its file system.
func fillWith(t *testing.T, path string, leave int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	piece := make([]byte, 256<<10)
	for {
		var fs syscall.Statfs_t
		if err := syscall.Statfs(path, &fs); err != nil {
			t.Fatal(err)
		}
		if int64(fs.Bavail)*fs.Bsize <= leave {
			return
		}
		if _, err := f.Write(piece); err != nil {
			t.Fatal(err)
		}
	}
}

// fillUp writes random bytes, a MiB at a time, until the store is full even when it is settled, and returns how many MiB lie there from the beginning on, and how many
// did at the first refusal.
func fillUp(t *testing.T, d *daemon) (full, first int) {
	t.Helper()
	c := openNBD(t, d.nbdSocket(), "big")
	refused := -1
	for n := 0; n < 1024; n++ {
		err := c.write(randomBytes(n, 1<<20), uint64(n)<<20)
		switch {
		case err == nil:
			continue
		case !errors.Is(err, errNoSpace):
			t.Fatalf("write of MiB %d: %v, want ENOSPC", n, err)
		case n == refused:
			return n, first
		}
		if refused < 0 {
			first = n
		}
		refused = n
		n--
		d.settle()
	}
	t.Fatal("a GiB fits into a full store")
	return 0, 0
}

func mustHoldSeeds(t *testing.T, d *daemon, n int, when string) {
	t.Helper()
	c := openNBD(t, d.nbdSocket(), "big")
	got := make([]byte, 1<<20)
	for i := range n {
		if err := c.read(got, uint64(i)<<20); err != nil || !bytes.Equal(got, randomBytes(i, 1<<20)) {
			t.Fatalf("%s: MiB %d: %v, or other bytes", when, i, err)
		}
	}
}

func (d *daemon) refusesNoSpace(args ...string) {
	d.t.Helper()
	d.mustRefuse(d.try(args...), 1, []string{"space", "delete"}, args...)
}

// recovers does what makes room in a full store, and then wants a write to succeed.
func (d *daemon) recovers(t *testing.T, by string, makeRoom func()) {
	t.Helper()
	makeRoom()
	d.settle()
	c := openNBD(t, d.nbdSocket(), "other")
	p := make([]byte, 64<<10)
	if err := c.read(p, 0); err != nil {
		t.Fatal(err)
	}
	var err error
	for range 100 { // free space is looked at now and then
		if err = c.write(p, 0); err == nil {
			return
		}
		d.settle()
	}
	t.Errorf("after %s: %v", by, err)
}
