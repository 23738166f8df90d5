package check

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestDumpCopies dumps the golden file of second copies, and the same damaged and cut.
func TestDumpCopies(t *testing.T) {
	const golden = "../blockstore/secondcopy/testdata/copies.golden"
	d, err := DumpCopies(golden)
	if err != nil || d.Error != "" || len(d.Frames) != 2 || d.Frames[0].Damaged || d.Frames[1] != (CopyOfAFrame{Segment: 9, Generation: 3, Offset: 100, Length: 3, At: 5}) {
		t.Errorf("%+v, %v", d, err)
	}
	b, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "copies")
	dump := func(b []byte) *CopiesDump {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := DumpCopies(path)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	bad := bytes.Clone(b)
	bad[6] ^= 1
	if d := dump(bad); d.Error != "" || d.Frames[0].Damaged || !d.Frames[1].Damaged {
		t.Errorf("a frame is damaged: %+v", d)
	}
	for i := range b {
		if d := dump(b[:i]); d.Error == "" {
			t.Errorf("cut to %d B: %+v", i, d)
		}
		if i >= 8 { // behind the frames
			bad := bytes.Clone(b)
			bad[i] ^= 1
			if d := dump(bad); d.Error == "" {
				t.Errorf("byte %d is changed: %+v", i, d)
			}
		}
	}
}
