package history

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

const goldenName = "history/0000000000000007/00000001.hist"

// recordsOf lists what a golden file has.
func recordsOf(t *testing.T, b []byte) (got []string) {
	t.Helper()
	fs := vfs.NewCrashableMem()
	writeAll(t, fs, goldenName, bytes.Clone(b))
	s := openSet(t, fs, nil)
	must(t, s.Stream(testVolume).Each(0, ^uint64(0), func(r *Record) error {
		text := fmt.Sprint(r.Kind, " ", r.Seq, " ", r.Off/sectorSize, " ", r.Label, r.Thinned)
		if r.Kind == Write {
			p := make([]byte, r.Len)
			if err := s.ReadAt(p, r.Pos, r.Sums); err != nil {
				return err
			}
			for at := 0; at < len(p); at += sectorSize {
				text += " " + string(p[at])
			}
		}
		got = append(got, text)
		return nil
	}))
	must(t, s.Close())
	return got
}

// The golden file of a stretch that was thinned to version 2, which nothing writes any more, stays readable for ever.
func TestThinnedGolden(t *testing.T) {
	const golden = "testdata/thinned.golden"
	b, err := os.ReadFile(golden)
	must(t, err)
	h, _, err := ParseHeader(b[:headerSize])
	must(t, err)
	if h.Level != Minutes || h.Through != 1 || h.FirstPoint != 3 || h.LastPoint != 6 || le.Uint32(b[8:]) != thinnedVersion {
		t.Errorf("%+v", h)
	}
	got := recordsOf(t, b)
	want := []string{"1 2 0 true a", "1 2 2 true c", "1 3 1 true d", "240 3 0 true", "2 4 0 true", "241 4 0 goldentrue", "1 5 0 true e", "240 5 0 true", "1 6 0 true f", "242 6 0 true"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for name, damage := range map[string]func(b []byte) []byte{
		"a level that there is not": func(b []byte) []byte { b[96] = 9; return b },
		"no footer":                 func(b []byte) []byte { return b[:len(b)-footerSize] },
		"the other version":         func(b []byte) []byte { b[8] = formatVersion; return b },
		"the next version":          func(b []byte) []byte { b[8] = placedVersion; return b },
		"a newer version":           func(b []byte) []byte { b[8] = placedVersion + 1; return b },
	} {
		b := damage(bytes.Clone(b))
		le.PutUint32(b[headerSize-4:], crc32.Checksum(b[:headerSize-4], castagnoli))
		fs := vfs.NewCrashableMem()
		writeAll(t, fs, goldenName, b)
		s, bad, err := Open(Options{FS: fs, Dir: "history", StoreID: block.UUID{1}})
		if err != nil || !errors.Is(bad[testVolume], block.ErrCorrupt) && !errors.Is(bad[testVolume], block.ErrVersion) {
			t.Errorf("%s: %v, %v", name, err, bad)
		}
		must(t, s.Close())
	}
}

// The golden file of version 3 stays readable for ever. It has two versions of a block, and one payload at two blocks.
func TestPlacedGolden(t *testing.T) {
	const golden = "testdata/placed.golden"
	if *update {
		fs := vfs.NewCrashableMem()
		s := openSet(t, fs, nil)
		st, err := s.Create(testVolume)
		must(t, err)
		minute := int64(time.Minute)
		for _, r := range []Record{
			{Kind: Write, Seq: 2, Time: 1, Len: 3 * sectorSize, Payload: sectors('a', 'b', 'c')},
			{Kind: Write, Seq: 3, Time: 2, Off: sectorSize, Len: sectorSize, Payload: sectors('d')}, // the second sector of the one before is superseded
			{Kind: Barrier, Seq: 3, Time: 3},
			{Kind: Mark, Seq: 3, Time: 5, Label: "golden"},
			{Kind: Write, Seq: 4, Time: 2 * minute, Off: 2 * sectorSize, Len: 2 * sectorSize, Payload: sectors('e', 'a')},
			{Kind: Trim, Seq: 5, Time: 2*minute + 1, Len: sectorSize},
			{Kind: Barrier, Seq: 5, Time: 2*minute + 2},
			{Kind: Write, Seq: 6, Time: 3 * minute, Len: sectorSize, Payload: sectors('c')}, // a minute without a flush
		} {
			must(t, st.Append(&r))
		}
		must(t, st.Roll())
		_, _, err = st.Thin(&Thinning{Roots: []Root{{Seq: 1}, {Seq: 7}}, Level: func(int64) Level { return Minutes }, Pace: func(int) error { return nil }})
		must(t, err)
		must(t, os.WriteFile(golden, readAll(t, fs, goldenName), 0o644))
		must(t, s.Close())
	}
	b, err := os.ReadFile(golden)
	must(t, err)
	h, _, err := ParseHeader(b[:headerSize])
	must(t, err)
	if !h.Placed || h.Level != Minutes || h.Through != 1 || h.FirstPoint != 3 || h.LastPoint != 6 || le.Uint32(b[8:]) != placedVersion || le.Uint32(b[len(b)-footerSize+20:]) != 4*sectorSize {
		t.Errorf("%+v", h)
	}
	want := []string{"1 2 0 true a", "1 2 2 true c", "1 3 1 true d", "240 3 0 true", "241 3 0 goldentrue", "1 4 2 true e a", "2 5 0 true", "240 5 0 true", "1 6 0 true c", "242 6 0 true"}
	if got := recordsOf(t, b); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func sectors(of ...byte) (b []byte) {
	for _, c := range of {
		b = append(b, bytes.Repeat([]byte{c}, sectorSize)...)
	}
	return b
}

// What was thinned to version 2 becomes one of version 3 when it grows older.
func TestThinnedAgain(t *testing.T) {
	b, err := os.ReadFile("testdata/thinned.golden")
	must(t, err)
	fs := vfs.NewCrashableMem()
	writeAll(t, fs, goldenName, b)
	s := openSet(t, fs, nil)
	st := s.Stream(testVolume)
	done, _, err := st.Thin(&Thinning{Roots: []Root{{Seq: 1}, {Seq: 7}}, Level: func(int64) Level { return Hours }, Pace: func(int) error { return nil }})
	must(t, err)
	if done.Files != 1 || !st.files[0].header.Placed {
		t.Fatalf("%+v, %+v", done, st.files[0].header)
	}
	must(t, s.Close())
	want := []string{"1 2 2 true c", "1 3 1 true d", "2 4 0 true", "241 4 0 goldentrue", "1 5 0 true e", "240 5 0 true"}
	if got := recordsOf(t, readAll(t, fs, goldenName)); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
