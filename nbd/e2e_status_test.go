package nbd

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// TestNBDInfoMap compares nbdinfo's map of each context with the device's own account.
func TestNBDInfoMap(t *testing.T) {
	dev := sparseDevice(8<<20 + 512)
	s := serveDevice(t, dev, Options{})
	for _, name := range allContexts {
		var got []struct {
			Offset, Length uint64
			Type           uint32
		}
		out := tool(t, "nbdinfo", "--json", "--map="+name, s.uri())
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatalf("%s: %v in %s", name, err, out)
		}
		at := uint64(0)
		var extents []extent
		for _, e := range got {
			if e.Offset != at {
				t.Fatalf("%s: extent at %d, want %d", name, e.Offset, at)
			}
			extents = append(extents, extent{e.Length, e.Type})
			at += e.Length
		}
		if want := extentsOf(dev, name, 0, dev.Size()); fmt.Sprint(extents) != fmt.Sprint(want) {
			t.Errorf("%s: %d extents, want %d", name, len(extents), len(want))
		}
	}
	if out := tool(t, "nbdinfo", "--list", "nbd+unix://?socket="+s.addr); !strings.Contains(out, "qemu:dirty-bitmap:since-monday") {
		t.Errorf("contexts are not listed: %s", out)
	}
	if out := tool(t, "nbdinfo", "--map", "--totals", s.uri()); !strings.Contains(out, "hole,zero") {
		t.Errorf("totals: %s", out)
	}
	if out, err := tryTool(t, "nbdinfo", "--map=qemu:dirty-bitmap:nosuch", s.uri()); err == nil {
		t.Errorf("map of a bitmap that is not there: %s", out)
	}
}

// imgMap is the output of qemu-img map.
type imgMap []struct {
	Start, Length uint64
	Present       bool
	Zero, Data    bool
}

// TestQemuImgMap asks QEMU, which sends REQ_ONE, for holes and for what a bitmap marks as dirty (shown as absence of data).
func TestQemuImgMap(t *testing.T) {
	dev := sparseDevice(8 << 20)
	s := serveDevice(t, dev, Options{})
	check := func(image, context string, marked func(zero, data bool) bool, bit uint32) {
		var got imgMap
		if err := json.Unmarshal([]byte(tool(t, "qemu-img", "map", "--output=json", "--image-opts", image)), &got); err != nil {
			t.Fatal(err)
		}
		var extents []extent
		for _, e := range got {
			status := uint32(0)
			if marked(e.Zero, e.Data) {
				status = bit
			}
			extents = append(extents, extent{e.Length, status})
		}
		if want := extentsOf(dev, context, 0, dev.Size()); fmt.Sprint(extents) != fmt.Sprint(want) {
			t.Errorf("%s: %d extents, want %d", context, len(extents), len(want))
		}
	}
	image := "driver=nbd,server.type=unix,server.path=" + s.addr + ",export=disk"
	check(image, ContextAllocation, func(zero, _ bool) bool { return zero }, StatusHole|StatusZero)
	bitmap := ContextDirtyPrefix + "since-monday"
	check(image+",x-dirty-bitmap="+bitmap, bitmap, func(_, data bool) bool { return !data }, StatusDirty)
}

// TestNBDCopySparse: with base:allocation nbdcopy reads data only.
func TestNBDCopySparse(t *testing.T) {
	dev := newMemDevice(64 << 20)
	image(t, dev)
	dev.fill(func(i int) byte { return dev.data[i] * byte(i>>20&1) }) // every other MiB is a hole
	file := filepath.Join(t.TempDir(), "plain.raw")
	s := serveDevice(t, dev, Options{})
	tool(t, "nbdcopy", "--allocated", s.uri(), file)
	read := s.Stats().Read.Bytes
	if read == 0 || read > 40<<20 {
		t.Errorf("nbdcopy read %d MiB of 64, half of which are holes", read>>20)
	}
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", file, s.uri())
	if s.Stats().BlockStatus.Requests == 0 {
		t.Error("nbdcopy did not ask for block status")
	}
}
