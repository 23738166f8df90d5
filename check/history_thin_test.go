package check

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

// dumper returns what dumps bytes as a file of history.
func dumper(t *testing.T) func(b []byte) *HistoryDump {
	path := filepath.Join(t.TempDir(), "00000001.hist")
	return func(b []byte) *HistoryDump {
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
}

// golden reads a file of history that the other reader's tests have.
func golden(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("../blockstore/history/testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A file of history that was thinned to version 2 is read by this reader as it was written by the other, and damage of every part of it is found.
func TestDumpThinnedHistory(t *testing.T) {
	b, dump := golden(t, "thinned.golden"), dumper(t)
	d := dump(b)
	if d.Error != "" || !d.Sealed || d.Level != 2 || d.Through != 1 || d.FirstPoint != 3 || d.LastPoint != 6 || d.LastSeq != 6 || len(d.Frames) != 1 || d.Frames[0].Codec != "zstd" || d.RawBytes != 5*4096 {
		t.Fatalf("%+v", d)
	}
	var text bytes.Buffer
	if err := d.WriteText(&text); err != nil || !bytes.Contains(text.Bytes(), []byte("thinned to minutes, for the files up to 00000001; points 3 to 6")) {
		t.Errorf("%q, %v", text.String(), err)
	}
	damageAll(t, b, dump)
}

// damageAll damages each byte of a file of history once, and cuts it at each length.
func damageAll(t *testing.T, b []byte, dump func([]byte) *HistoryDump) {
	t.Helper()
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

// So is one of version 3. What an index says with a checksum that fits is compared with what is there.
func TestDumpPlacedHistory(t *testing.T) {
	b, dump := golden(t, "placed.golden"), dumper(t)
	d := dump(b)
	if d.Error != "" || !d.Sealed || !d.Placed || d.Level != 2 || d.FirstPoint != 3 || d.LastPoint != 6 || d.LastSeq != 6 || len(d.Frames) != 1 || d.Frames[0].Codec != "zstd" ||
		d.RawBytes != 4*4096 || d.WrittenBytes != 6*4096 || len(d.Sheets) != 1 || d.Sheets[0].Records != 10 || d.Sheets[0].Writes != 5 || d.Sheets[0].Flushes != 2 || len(d.Points) != 1 {
		t.Fatalf("%+v", d)
	}
	var text bytes.Buffer
	if err := d.WriteText(&text); err != nil || !bytes.Contains(text.Bytes(), []byte("payload lies by blocks: of the 24576 B that its records wrote")) || !bytes.Contains(text.Bytes(), []byte("a sheet of 10 records")) {
		t.Errorf("%q, %v", text.String(), err)
	}
	damageAll(t, b, dump)
	le, end := binary.LittleEndian, len(b)-historyFoot
	index := int(le.Uint64(b[end+40:]))
	sheets := index + historyTable
	order := sheets + historySheet
	for name, damage := range map[string]struct {
		at    int
		value uint32
	}{
		"a frame of another length": {index + 8, 3 * 4096},
		"a sheet that is too long":  {sheets, 1 << 20},
		"a sheet that wrote more":   {sheets + 4, 7 * 4096},
		"the payload of another":    {order, le.Uint32(b[order+4:])},
		"a place outside":           {order, 4},
		"fewer sectors":             {end + 80, 5},
		"many sectors":              {end + 80, 1 << 31},
		"no sheets":                 {end + 76, 0},
		"many sheets":               {end + 76, 1 << 31},
		"reserved":                  {end + 84, 1},
		"an earlier last record":    {end + 24, 5},
	} {
		b := bytes.Clone(b)
		le.PutUint32(b[damage.at:], damage.value)
		le.PutUint32(b[end+56:], crc(b[index:end]))
		le.PutUint32(b[end+124:], crcMore(le.Uint32(b[historyHead-4:]), b[end:end+124]))
		if d := dump(b); d.Error == "" {
			t.Errorf("%s is not found", name)
		}
	}
}
