package e2e

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestFilesystem puts a file system of this machine's kernel on a volume: nbdfuse shows the volume as a file, a loop device makes it a disk. The file system is made, filled,
// changed and checked, with a detach and a kill of hvd between, and every file is read again. xfs and btrfs are asked for by make nightly, and else run where they are installed.
func TestFilesystem(t *testing.T) {
	needsMounts(t)
	for _, fs := range []struct {
		name, size  string
		nightly     bool
		make, check []string // the device comes behind
	}{
		{"ext4", "96MiB", false, []string{"mkfs.ext4", "-q"}, []string{"e2fsck", "-fn"}},
		{"xfs", "512MiB", true, []string{"mkfs.xfs", "-q"}, []string{"xfs_repair", "-n"}},
		{"btrfs", "512MiB", true, []string{"mkfs.btrfs", "-q"}, []string{"btrfs", "check", "--readonly"}},
	} {
		t.Run(fs.name, func(t *testing.T) {
			if _, err := exec.LookPath(fs.make[0]); fs.nightly && err != nil && !nightly() {
				t.Skipf("%s is not installed; make nightly installs it", fs.make[0])
			}
			needs(t, "nbdfuse", "fusermount3", "losetup", "mount", fs.make[0], fs.check[0])
			d := startDaemon(t)
			uri := d.disk("disk", fs.size)
			files := newTree(1)

			b := d.blockDevice(uri)
			tool(t, fs.make[0], append(fs.make[1:], b.device)...)
			b.mounted(fs.name, func(root string) { files.change(t, root, 400) })
			tool(t, fs.check[0], append(fs.check[1:], b.device)...)
			b.close()

			d.settle()
			d.mustDetach("disk")
			d.attach("disk")
			b = d.blockDevice(uri)
			b.mounted(fs.name, func(root string) {
				files.verify(t, root, "after a detach")
				files.change(t, root, 200)
			})
			b.close()

			d.kill()
			d.start()
			b = d.blockDevice(uri)
			tool(t, fs.check[0], append(fs.check[1:], b.device)...)
			b.mounted(fs.name, func(root string) { files.verify(t, root, "after a kill") })
			b.close()
			d.stop()
			d.check()
		})
	}
}

// nightly reports whether this is a run of make nightly, which has time, and what it needs is there.
func nightly() bool { return os.Getenv("HV_NIGHTLY") != "" }

// blockDevice is a volume as a disk of this machine.
type blockDevice struct {
	t      *testing.T
	dir    string
	file   string // the volume, by nbdfuse
	device string // the disk, a loop device
	fuse   *exec.Cmd
	exited chan struct{}
	said   *transcript
}

// blockDevice makes a disk of an export. It ends with close, and at the latest with the test.
func (d *daemon) blockDevice(uri string) *blockDevice {
	d.t.Helper()
	b := &blockDevice{t: d.t, dir: shortDir(d.t), exited: make(chan struct{}), said: &transcript{}}
	mountpoint, ready := filepath.Join(b.dir, "fuse"), filepath.Join(b.dir, "pid")
	if err := os.Mkdir(mountpoint, 0o700); err != nil {
		d.t.Fatal(err)
	}
	b.file = filepath.Join(mountpoint, "disk")
	b.fuse = exec.Command("nbdfuse", "--pidfile", ready, b.file, uri)
	b.fuse.Stderr = b.said
	if err := b.fuse.Start(); err != nil {
		d.t.Fatal(err)
	}
	go func() {
		_ = b.fuse.Wait() // the state is read from fuse
		close(b.exited)
	}()
	d.t.Cleanup(b.abandon)
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(b.file); err == nil {
			break
		}
		select {
		case <-b.exited:
			d.t.Fatalf("nbdfuse ended: %s", b.said)
		default:
		}
		if time.Since(began) > patience {
			d.t.Fatalf("nbdfuse shows nothing: %s", b.said)
		}
	}
	b.device = strings.TrimSpace(tool(d.t, "losetup", "--find", "--show", b.file))
	return b
}

// mounted runs work with the file system on the disk mounted.
func (b *blockDevice) mounted(kind string, work func(root string)) {
	b.t.Helper()
	root := filepath.Join(b.dir, "root")
	if err := os.MkdirAll(root, 0o700); err != nil {
		b.t.Fatal(err)
	}
	got := execute(b.t, nil, "mount", "-t", kind, b.device, root)
	if strings.Contains(got.stderr, "unknown filesystem type") {
		if kind == "ext4" || nightly() {
			absent(b.t, "this kernel has no %s", kind)
		}
		b.t.Skipf("this kernel has no %s, which only make nightly asks for", kind)
	}
	if got.code != 0 {
		b.t.Fatalf("mount ended with %d: %s", got.code, got.stderr)
	}
	defer eventually(b.t, "nobody uses the file system any more", func() bool { return execute(b.t, nil, "umount", root).code == 0 })
	work(root)
}

// close takes the disk apart; what was written to it has reached hvd then.
func (b *blockDevice) close() {
	b.t.Helper()
	tool(b.t, "losetup", "--detach", b.device)
	b.device = ""
	eventually(b.t, "nobody uses the file any more", func() bool { // somebody who looks at new devices may still hold the loop device open, and so the file
		return execute(b.t, nil, "fusermount3", "-u", filepath.Dir(b.file)).code == 0
	})
	select {
	case <-b.exited:
	case <-time.After(patience):
		b.t.Fatal("nbdfuse does not end")
	}
}

// abandon takes apart what a test that failed has left.
func (b *blockDevice) abandon() {
	select {
	case <-b.exited:
		return
	default:
	}
	_ = exec.Command("umount", filepath.Join(b.dir, "root")).Run()
	if b.device != "" {
		_ = exec.Command("losetup", "--detach", b.device).Run()
	}
	_ = exec.Command("fusermount3", "-u", "-z", filepath.Dir(b.file)).Run()
	_ = b.fuse.Process.Kill()
	<-b.exited
}

// tree is what a directory must hold.
type tree struct {
	rng  *rand.Rand
	seed int
	sums map[string][32]byte // by path below the directory
}

func newTree(seed uint64) *tree {
	return &tree{rng: rand.New(rand.NewPCG(seed, 3)), sums: map[string][32]byte{}}
}

// change makes, overwrites, appends to and removes files, so many in all.
func (f *tree) change(t *testing.T, root string, n int) {
	t.Helper()
	for range n {
		name := fmt.Sprintf("d%d/f%d", f.rng.IntN(8), f.rng.IntN(40))
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, there := f.sums[name]; there && f.rng.IntN(3) == 0 {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			delete(f.sums, name)
			continue
		}
		f.seed++
		content := randomBytes(f.seed, f.rng.IntN(1<<(8+f.rng.IntN(12))))
		if f.rng.IntN(2) == 0 {
			clear(content[len(content)/2:]) // half of it compresses
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		f.sums[name] = sha256.Sum256(content)
	}
}

// verify reads every file.
func (f *tree) verify(t *testing.T, root, when string) {
	t.Helper()
	for name, sum := range f.sums {
		if sha256.Sum256(contents(t, filepath.Join(root, name))) != sum {
			t.Errorf("%s: %s has changed", when, name)
		}
	}
	there, err := filepath.Glob(filepath.Join(root, "d*", "f*"))
	if err != nil || len(there) != len(f.sums) {
		t.Errorf("%s: there are %d files, want %d; %v", when, len(there), len(f.sums), err)
	}
}
