package check

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// goldenShard is the golden bytes of tiers/stripe, under the name that they shall have.
func goldenShard(t *testing.T, index string) ([]byte, string) {
	t.Helper()
	b, err := os.ReadFile("../tiers/stripe/testdata/shard-2+1." + index)
	if err != nil {
		t.Fatal(err)
	}
	return b, filepath.Join(t.TempDir(), "0000000000000003.00000002.2+1."+index+".000043e8.shard")
}

func dumpShard(t *testing.T, path string, b []byte) *ShardDump {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := DumpShard(path)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestDumpShard dumps the golden shards, and one of them damaged in each of its parts, cut, and under another name.
func TestDumpShard(t *testing.T) {
	for i, index := range []string{"00", "01", "02"} {
		b, path := goldenShard(t, index)
		d := dumpShard(t, path, b)
		if d.Error != "" || d.OtherName != "" || len(d.DamagedPages)+len(d.DamagedColumns) != 0 || d.Data != 2 || d.Parity != 1 || d.Index != i || d.Segment != 3 || d.Generation != 2 || d.Bytes != 17384 || d.Columns != 3 {
			t.Errorf("shard %s: %+v", index, d)
		}
	}
	b, path := goldenShard(t, "01")
	at := func(off int) *ShardDump {
		c := slices.Clone(b)
		c[off] ^= 4
		return dumpShard(t, path, c)
	}
	for _, off := range []int{0, 8, 12, 14, 15, 20, 33, 45, 50, 60, 4095} {
		if d := at(off); d.Error == "" || d.Columns != 0 {
			t.Errorf("head changed at %d: %+v", off, d)
		}
	}
	if d := at(shardHead + 9); !slices.Equal(d.DamagedPages, []int{0}) || len(d.DamagedColumns) != 3 {
		t.Errorf("a page of sums: %+v", d)
	}
	if d := at(2*shardHead + shardColumn + 1); len(d.DamagedPages) != 0 || !slices.Equal(d.DamagedColumns, []int{1}) {
		t.Errorf("a column: %+v", d)
	}
	if d := dumpShard(t, path, b[:len(b)-1]); !slices.Equal(d.DamagedColumns, []int{2}) {
		t.Errorf("cut: %+v", d)
	}
	for n := range 3 * shardHead / 512 {
		if d := dumpShard(t, path, b[:n*512]); d.Error == "" && len(d.DamagedColumns) == 0 {
			t.Errorf("cut to %d B: %+v", n*512, d)
		}
	}
	if d := dumpShard(t, filepath.Join(t.TempDir(), "renamed.shard"), b); d.OtherName != filepath.Base(path) {
		t.Errorf("renamed: %+v", d)
	}
}

// TestDumpLabel dumps the golden label, and the same with each byte changed.
func TestDumpLabel(t *testing.T) {
	const golden = "../internal/membership/testdata/members.golden"
	d, err := DumpLabel(golden)
	if err != nil || d.Error != "" || d.Kind != "segments" || d.Generation != 1<<40 || d.Since != 7 || len(d.Members) != 3 || !d.Members[0].InSync || d.Members[1].InSync || d.Members[0].ID != d.ID {
		t.Fatalf("%+v, %v", d, err)
	}
	b, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "members")
	for off := 0; off < len(b); off += 1 + off/100 {
		c := slices.Clone(b)
		c[off] ^= 0x10
		if err := os.WriteFile(path, c, 0o600); err != nil {
			t.Fatal(err)
		}
		if d, err := DumpLabel(path); err != nil || d.Error == "" || len(d.Members) != 0 {
			t.Errorf("changed at %d: %+v, %v", off, d, err)
		}
	}
	if err := os.WriteFile(path, append(b, 0), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := DumpLabel(path); err == nil {
		t.Error("a label that is too long")
	}
}
