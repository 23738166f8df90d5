package e2e

import (
	"encoding/json"
	"path/filepath"
	"strconv"
	"testing"
)

func TestNBDInfo(t *testing.T) {
	needs(t, "nbdinfo")
	d := startDaemon(t)
	uri := d.disk("disk", "5000KiB")
	d.disk("other", "1MiB")
	var got struct {
		Protocol   string
		Structured bool
		Exports    []map[string]any
	}
	if err := json.Unmarshal([]byte(tool(t, "nbdinfo", "--json", uri)), &got); err != nil {
		t.Fatal(err)
	}
	if got.Protocol != "newstyle-fixed" || !got.Structured || len(got.Exports) != 1 {
		t.Fatalf("nbdinfo: %+v", got)
	}
	for key, want := range map[string]any{
		"export-name": "disk", "export-size": 5000.0 * 1024, "is_read_only": false, "can_flush": true, "can_fua": true, "can_trim": true, "can_zero": true,
		"can_fast_zero": true, "can_multi_conn": true, "can_cache": true, "can_df": true, "block_size_preferred": 4096.0,
	} {
		if got.Exports[0][key] != want {
			t.Errorf("%s is %v, want %v", key, got.Exports[0][key], want)
		}
	}
	if err := json.Unmarshal([]byte(tool(t, "nbdinfo", "--list", "--json", "nbd+unix://?socket="+d.nbdSocket())), &got); err != nil || len(got.Exports) != 2 {
		t.Errorf("list: %v, %v; want two exports", got.Exports, err)
	}
}

// TestNBDCopyBothWays copies an image with holes in and out over several connections: while it is in the log, when it is in segments, and after a restart.
func TestNBDCopyBothWays(t *testing.T) {
	needs(t, "nbdcopy")
	size := int64(256 << 20)
	if testing.Short() {
		size = 64 << 20
	}
	image := sparseImage(t, 1, size)
	d := startDaemon(t)
	d.run("volume", "create", "disk", "--size", strconv.FormatInt(size, 10))
	uri := d.attach("disk")
	tool(t, "nbdcopy", "--connections=4", "--flush", image, uri)
	back := func(when string) {
		t.Helper()
		out := filepath.Join(t.TempDir(), "out.raw")
		tool(t, "nbdcopy", "--connections=8", "--requests=64", uri, out)
		t.Log("copied back", when)
		equalFiles(t, image, out)
	}
	back("from the log")
	d.settle()
	back("from segments")
	d.stop()
	d.start()
	back("after a restart")
}

// TestQemuImg converts a raw and a qcow2 image into volumes, compares, and maps.
func TestQemuImg(t *testing.T) {
	needs(t, "qemu-img")
	image := sparseImage(t, 2, 64<<20)
	qcow := filepath.Join(t.TempDir(), "image.qcow2")
	tool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", image, qcow)
	d := startDaemon(t)
	for format, source := range map[string]string{"raw": image, "qcow2": qcow} {
		uri := d.disk(format, "64MiB")
		tool(t, "qemu-img", "convert", "-n", "-W", "-f", format, "-O", "raw", source, uri)
		tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri)
		d.settle()
		tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri)
		var extents []struct{ Start, Length int64 }
		if err := json.Unmarshal([]byte(tool(t, "qemu-img", "map", "--output=json", "-f", "raw", uri)), &extents); err != nil {
			t.Fatal(err)
		}
		end := int64(0)
		for _, e := range extents {
			if e.Start != end {
				t.Errorf("the map has a gap at %d", end)
			}
			end = e.Start + e.Length
		}
		if end != 64<<20 {
			t.Errorf("the map ends at %d", end)
		}
		out := filepath.Join(t.TempDir(), "out.qcow2")
		tool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, out)
		tool(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", image, out)
	}
	var stats struct{ NonZeroBytes, UniqueBytes uint64 }
	d.json(&stats, "store", "stats")
	if stats.UniqueBytes*19/10 > stats.NonZeroBytes {
		t.Errorf("the same disk twice: %d B refer to %d B of chunks, want about half", stats.NonZeroBytes, stats.UniqueBytes)
	}
}

// TestImportAndExport carries an image through the commands, whole and as a snapshot, by file and by pipe.
func TestImportAndExport(t *testing.T) {
	image := sparseImage(t, 3, 48<<20+512)
	d := startDaemon(t)
	d.run("volume", "import", "disk", image)
	d.run("snapshot", "create", "disk@before")
	d.attach("disk")
	client := openNBD(t, d.nbdSocket(), "disk")
	if err := client.write(randomBytes(4, 1<<20), 3<<20); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out.raw")
	d.run("volume", "export", "disk@before", out)
	equalFiles(t, image, out)
	d.settle()
	d.run("volume", "export", "disk@before", out)
	equalFiles(t, image, out)
	d.run("volume", "clone", "disk@before", "copy")
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", image, d.attach("copy"))
}
