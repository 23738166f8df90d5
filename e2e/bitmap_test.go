package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// qemuDirty is what QEMU, which is given a bitmap by its option x-dirty-bitmap, takes for changed: it shows that as absence of data.
func (d *daemon) qemuDirty(export, bitmap string, size uint64) (runs []mapped) {
	d.t.Helper()
	image := "driver=nbd,server.type=unix,server.path=" + d.nbdSocket() + ",export=" + export + ",x-dirty-bitmap=qemu:dirty-bitmap:" + bitmap
	out := tool(d.t, "qemu-img", "map", "--output=json", "--image-opts", image)
	var told []struct {
		Start, Length uint64
		Data          bool
	}
	if err := json.Unmarshal([]byte(out), &told); err != nil {
		d.t.Fatalf("qemu-img map: %v: %s", err, out)
	}
	at := uint64(0)
	for _, r := range told {
		kind := uint32(1)
		if r.Data {
			kind = 0
		}
		if k := len(runs); k > 0 && runs[k-1].Type == kind {
			runs[k-1].Length += r.Length
		} else {
			runs = append(runs, mapped{at, r.Length, kind})
		}
		at += r.Length
	}
	if at != size {
		d.t.Fatalf("qemu-img map tells of %d of %d B: %s", at, size, out)
	}
	return runs
}

// A bitmap tells nbdinfo and QEMU what changed since it was added: in the log and in segments, after kill -9, and of a snapshot. Copies of no more than that follow the volume; what a rollback does is told; and a store with bitmaps passes its check.
func TestNamedBitmaps(t *testing.T) {
	const mib, size, g = 1 << 20, 64 << 20, 64 << 10
	d := newDaemon(t, "--store-destage-after", "1h")
	d.start()
	d.disk("v", "64MiB")
	io := func(commands ...string) {
		t.Helper()
		args := []string{"-f", "raw"}
		for _, c := range commands {
			args = append(args, "-c", c)
		}
		tool(t, "qemu-io", append(args, d.uri("v"))...)
	}
	io("write -P 1 0 20M", "write -P 2 40M 1M", "flush")
	d.run("volume", "bitmap", "add", "v", "first")
	d.run("snapshot", "create", "v@full")
	image := filepath.Join(t.TempDir(), "copy.raw")
	tool(t, "nbdcopy", d.uri("v@full"), image)

	io("write -P 3 1M 4k", "discard 40M 128k", "write -z 50M 64k", "write -P 4 60M 2M")
	want := func() []mapped {
		return []mapped{{0, mib, 0}, {0, g, 1}, {0, 39*mib - g, 0}, {0, 2 * g, 1}, {0, 10*mib - 2*g, 0}, {0, g, 1}, {0, 10*mib - g, 0}, {0, 2 * mib, 1}, {0, 2 * mib, 0}}
	}
	equalMap(t, "in the log", d.nbdMap("v", "qemu:dirty-bitmap:first"), want()...)
	d.kill()
	d.start()
	for _, where := range []string{"after kill -9", "in segments"} {
		equalMap(t, where, d.nbdMap("v", "qemu:dirty-bitmap:first"), want()...)
		equalMap(t, where+", by QEMU", d.qemuDirty("v", "first", size), want()...)
		d.settle()
	}

	// An increment: the next bitmap, then a snapshot, then what the first bitmap says of that.
	d.run("volume", "bitmap", "add", "v", "second")
	d.run("snapshot", "create", "v@next")
	io("write -P 5 30M 1M") // while it is copied
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	client, copied := openNBD(t, d.nbdSocket(), "v@next"), uint64(0)
	for _, r := range d.nbdMap("v@next", "qemu:dirty-bitmap:first") {
		for at := r.Offset; r.Type == 1 && at < r.Offset+r.Length; at += g {
			p := make([]byte, min(g, r.Offset+r.Length-at))
			if err := client.read(p, at); err != nil {
				t.Fatal(err)
			}
			if _, err := file.WriteAt(p, int64(at)); err != nil {
				t.Fatal(err)
			}
			copied += uint64(len(p))
		}
	}
	if copied > 4*mib {
		t.Errorf("the increment is %d B", copied)
	}
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", image, d.uri("v@next"))
	equalMap(t, "since the second bitmap", d.nbdMap("v", "qemu:dirty-bitmap:second"), mapped{0, 30 * mib, 0}, mapped{0, mib, 1}, mapped{0, 33 * mib, 0})

	var v struct{ Bitmaps []string }
	if d.json(&v, "volume", "show", "v"); fmt.Sprint(v.Bitmaps) != "[first second]" {
		t.Errorf("bitmaps %v", v.Bitmaps)
	}
	d.refuses(4, []string{"snapshot", "name"}, "volume", "bitmap", "add", "v", "next")
	d.refuses(4, []string{"bitmap", "name"}, "snapshot", "create", "v@second")
	d.run("volume", "bitmap", "clear", "v", "second")
	d.run("volume", "bitmap", "remove", "v", "first")
	equalMap(t, "cleared", d.nbdMap("v", "qemu:dirty-bitmap:second"), mapped{0, size, 0})
	if got := tryTool(t, "nbdinfo", "--map=qemu:dirty-bitmap:first", d.uri("v")); got.code == 0 {
		t.Errorf("a bitmap that was removed is told of: %s", got.stdout)
	}
	io("write -P 6 8M 4k", "flush")
	d.run("volume", "detach", "v", "--force")
	d.run("snapshot", "rollback", "v@full")
	var bitmaps []struct {
		Name string
		All  bool
	}
	if d.json(&bitmaps, "volume", "bitmap", "list", "v"); len(bitmaps) != 1 || bitmaps[0].Name != "second" || !bitmaps[0].All {
		t.Errorf("after the rollback: %+v", bitmaps)
	}
	d.attach("v")
	equalMap(t, "rolled back", d.nbdMap("v", "qemu:dirty-bitmap:second"), mapped{0, size, 1})
	d.stop()
	d.check()
	if got := execute(t, nil, fabricPath, "store", "dump", "volume", d.dir, "v"); got.code != 0 || !strings.Contains(got.stdout, `"second": epoch`) {
		t.Errorf("the dump has no bitmap: %s%s", got.stdout, got.stderr)
	}
}
