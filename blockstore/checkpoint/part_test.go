package checkpoint

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

var updateGolden = flag.Bool("update-golden", false, "write golden files that are missing")

// goldenPart is one delta part with a row of each form: set, deleted, live chunks.
func goldenPart() (Header, []byte) {
	h := Header{Kind: Delta, Last: true, Number: 3<<32 | 7, Base: 3<<32 | 2, Part: 1, Rows: 4, RowsBefore: 9, Previous: [16]byte{0x40, 0x41, 0x42}}
	var b Builder
	b.Reset(h)
	var live LiveRow
	for _, id := range []block.ChunkID{513, 514, 1023} {
		live.Add(id)
	}
	key, value, _ := live.Take()
	b.Set([]byte("Mc"), []byte("counters"))
	b.Set(key, value)
	b.Delete([]byte("R\x00\x00\x00\x00\x00\x00\x00\x05"))
	b.Set([]byte("P\x00\x00\x00\x00\x00\x00\x00\x4d"), []byte("page"))
	return h, bytes.Clone(b.Bytes(true))
}

// TestGolden keeps the format of docs/format/checkpoint.md.
func TestGolden(t *testing.T) {
	h, part := goldenPart()
	const path = "testdata/part.golden"
	if _, err := os.Stat(path); *updateGolden && os.IsNotExist(err) {
		var text []byte
		for rest := part; len(rest) > 0; rest = rest[min(32, len(rest)):] {
			text = append(hex.AppendEncode(text, rest[:min(32, len(rest))]), '\n')
		}
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := hex.DecodeString(string(bytes.ReplaceAll(text, []byte("\n"), nil)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(part, want) {
		t.Fatalf("written as\n%x, golden is\n%x", part, want)
	}
	p, err := Decode(want)
	if err != nil || p.Header != h {
		t.Fatalf("read as %+v, %v, want %+v", p.Header, err, h)
	}
	var keys string
	var live LiveSet
	for r := p.Each(); r.Next(); {
		keys += string(r.Key[:1])
		if r.Key[0] == LiveTable {
			live.SetRow(r.Key, r.Value)
		}
		if r.Deleted != (r.Key[0] == 'R') {
			t.Errorf("row %q is deleted: %v", r.Key, r.Deleted)
		}
	}
	if keys != "MLRP" || live.Len() != 3 || !live.Has(513) || !live.Has(514) || !live.Has(1023) {
		t.Errorf("rows %s, %d live chunks", keys, live.Len())
	}
}

// TestDamage changes each byte of a part that a reader checks.
func TestDamage(t *testing.T) {
	_, part := goldenPart()
	for i := range part {
		// The header's numbers and the values are covered by the chunk's hash alone.
		if free := i >= 16 && i < 36 || i >= 40 && i < headerSize || i > headerSize+6; free {
			continue
		}
		bad := bytes.Clone(part)
		bad[i] ^= 0x91
		if _, err := Decode(bad); !errors.Is(err, block.ErrCorrupt) && !errors.Is(err, block.ErrVersion) {
			t.Errorf("byte %d: %v", i, err)
		}
	}
	for n := range part {
		if _, err := Decode(part[:n]); err == nil {
			t.Errorf("%d of %d bytes were read", n, len(part))
		}
	}
}

// made is a complete checkpoint of two parts.
func made(kind Kind, number, base uint64) []Found {
	first := Found{Header: Header{Kind: kind, Number: number, Base: base, Rows: 3}, Hash: [16]byte{byte(number)}, Place: Place{Segment: 1, Len: 10}}
	second := first
	second.Part, second.RowsBefore, second.Previous, second.Last = 1, 3, first.Hash, true
	return []Found{second, first}
}

func TestChoose(t *testing.T) {
	join := func(all ...[]Found) (parts []Found) {
		for _, p := range all {
			parts = append(parts, p...)
		}
		return parts
	}
	torn := func(parts []Found) []Found { return parts[1:] }
	for _, c := range []struct {
		name    string
		parts   []Found
		atLeast uint64
		want    []uint64 // nil is refused
	}{
		{"nothing", nil, 0, nil},
		{"a full one", made(Full, 1, 0), 0, []uint64{1}},
		{"half a full one", torn(made(Full, 1, 0)), 0, nil},
		{"deltas", join(made(Full, 1, 0), made(Delta, 2, 1), made(Delta, 3, 2)), 3, []uint64{1, 2, 3}},
		{"half a delta at the end", join(made(Full, 1, 0), made(Delta, 2, 1), torn(made(Delta, 3, 2))), 2, []uint64{1, 2}},
		{"an end that the superblock knows is missing", join(made(Full, 1, 0), made(Delta, 2, 1), torn(made(Delta, 3, 2))), 3, nil},
		{"a delta that was not noted", join(made(Full, 1, 0), made(Delta, 2, 1), made(Delta, 3, 2), made(Delta, 4, 2)), 0, []uint64{1, 2, 4}},
		{"a missing delta", join(made(Full, 1, 0), made(Delta, 3, 2)), 0, nil},
		{"a newer full one", join(made(Full, 1, 0), made(Delta, 2, 1), made(Full, 3, 0), made(Delta, 4, 2), made(Delta, 5, 4)), 5, []uint64{3, 4, 5}},
		{"a newer full one that is torn", join(made(Full, 1, 0), made(Delta, 2, 1), torn(made(Full, 3, 0)), made(Delta, 4, 2)), 4, []uint64{1, 2, 4}},
		{"nothing after the full one", join(made(Full, 1, 0), made(Delta, 2, 1), made(Full, 3, 0)), 0, []uint64{3}},
		{"older deltas are gone", join(made(Full, 3, 0), made(Delta, 4, 2), made(Delta, 5, 4)), 0, []uint64{3, 4, 5}},
	} {
		t.Run(c.name, func(t *testing.T) {
			way, err := Choose(Collect(c.parts), c.atLeast)
			var got []uint64
			for i := range way {
				got = append(got, way[i].Number)
			}
			if (err == nil) != (c.want != nil) || err != nil && !errors.Is(err, block.ErrCorrupt) || len(got) != len(c.want) {
				t.Fatalf("%v, %v, want %v", got, err, c.want)
			}
			for i := range got {
				if got[i] != c.want[i] {
					t.Fatalf("%v, want %v", got, c.want)
				}
			}
		})
	}
}

func TestCollectChecksTheChain(t *testing.T) {
	for name, change := range map[string]func(second *Found){
		"hash": func(f *Found) { f.Previous[0]++ }, "rows before": func(f *Found) { f.RowsBefore++ }, "kind": func(f *Found) { f.Kind = Delta }, "base": func(f *Found) { f.Base = 1 },
		"part": func(f *Found) { f.Part++ }, "last": func(f *Found) { f.Last = false },
	} {
		parts := made(Full, 2, 0)
		change(&parts[0])
		if n := len(Collect(parts)); n != 0 {
			t.Errorf("%s: %d checkpoints", name, n)
		}
	}
}

func TestLiveSet(t *testing.T) {
	var a, b LiveSet
	for _, id := range []block.ChunkID{1, 2, 70_000, 1 << 40} {
		a.Add(id)
		b.Add(id)
	}
	if _, missing := a.FirstMissing(&b); missing || a.Add(2) || a.Len() != 4 {
		t.Fatal("a set differs from itself")
	}
	var row LiveRow
	row.Begin(LiveKey(nil, 70_000)) // without chunks
	key, value, _ := row.Take()
	b.SetRow(key, value)
	b.SetRow(key, value)
	if id, missing := a.FirstMissing(&b); !missing || id != 70_000 || b.Len() != 3 {
		t.Fatalf("%d, %v", id, missing)
	}
}
