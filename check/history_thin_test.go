package check

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// A thinned file of history is read by this reader as it was written by the other, and damage of every part of it is found.
func TestDumpThinnedHistory(t *testing.T) {
	b, err := os.ReadFile("../blockstore/history/testdata/thinned.golden")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "00000001.hist")
	dump := func(b []byte) *HistoryDump {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := DumpHistory(path, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	d := dump(b)
	if d.Error != "" || !d.Sealed || d.Level != 2 || d.Through != 1 || d.FirstPoint != 3 || d.LastPoint != 6 || d.LastSeq != 6 || len(d.Frames) != 1 || d.Frames[0].Codec != "zstd" || d.RawBytes != 5*4096 {
		t.Fatalf("%+v", d)
	}
	var text bytes.Buffer
	if err := d.WriteText(&text); err != nil || !bytes.Contains(text.Bytes(), []byte("thinned to minutes, for the files up to 00000001; points 3 to 6")) {
		t.Errorf("%q, %v", text.String(), err)
	}
	for at := range b {
		bad := bytes.Clone(b)
		bad[at] ^= 0x10
		if got := dump(bad); got.Error == "" {
			t.Errorf("damage at %d of %d is not found", at, len(b))
		}
	}
	for cut := range len(b) {
		if got := dump(b[:cut]); got.Error == "" && cut >= historyHead {
			t.Errorf("cut to %d of %d B, and it is not found", cut, len(b))
		}
	}
}
