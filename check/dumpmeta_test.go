package check

import (
	"bytes"
	"strings"
	"testing"
)

// What is dead in a region, and in a segment, is what the maps do not refer to: a block that was overwritten inside of a chunk, and chunks that were replaced whole.
func TestDumpsSayWhatIsDead(t *testing.T) {
	l := newLab(t, 51)
	l.create("v", 16<<20)
	l.write("v", 0, l.pool[0])
	l.settle()
	l.write("v", 8192, l.data(4096))
	l.settle()
	l.close()
	volumes, err := DumpVolumes(l.dir, "v")
	if err != nil {
		t.Fatal(err)
	}
	root := uint64(0)
	for _, n := range volumes.Nodes {
		if n.ID == volumes.Volumes[0].Head {
			root = n.Root.ID
		}
	}
	d, err := DumpPage(l.dir, root)
	for err == nil && d.Node != nil {
		d, err = DumpPage(l.dir, d.Node.Children[0].ID)
	}
	if err != nil {
		t.Fatal(err)
	}
	h := d.Held
	if h == nil || h.Missing != 0 || h.ReferencedBytes != uint64(len(l.pool[0])) || h.ChunkBytes != h.ReferencedBytes+h.DeadBytes || h.DeadBytes != 4096 || h.Fragments < h.Chunks {
		t.Errorf("a block was overwritten inside of a chunk: %+v", h)
	}
	var text bytes.Buffer
	if err := d.WriteText(&text); err != nil || !strings.Contains(text.String(), "4096 B dead") {
		t.Errorf("%v: %s", err, text.String())
	}

	l.open()
	l.write("v", 0, l.pool[1])
	l.settle()
	l.close()
	segments, err := DumpSegments(l.dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range segments {
		if dead := s.Row.TotalRaw - s.Row.LiveRaw; (dead > 0) != (s.DeadBytes > 0) || s.DeadBytes > s.Row.Size {
			t.Errorf("segment %d: %d B of %d raw are dead, %d B of %d", s.ID, dead, s.Row.TotalRaw, s.DeadBytes, s.Row.Size)
		}
	}
}
