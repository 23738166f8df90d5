package check

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// TestDamagedHistory damages every part of the files of history once, takes a file away, and another's name.
func TestDamagedHistory(t *testing.T) {
	l := newLab(t, 17)
	l.create("a", 8<<20)
	l.create("b", 8<<20)
	for _, name := range []string{"a", "b"} {
		l.must(l.s.SetHistory(context.Background(), name, blockstore.HistoryPolicy{Window: time.Hour}))
	}
	for i := range uint64(3) { // each open begins a file
		l.write("a", i<<20, l.data(200_000))
		l.write("b", i<<20, l.pool[i])
		l.trim("a", 4<<20, 1<<20)
		l.flush("a")
		_, err := l.s.MarkHistory(context.Background(), "a", "mark")
		l.must(err)
		l.close()
		if i < 2 {
			l.open()
		}
	}
	rep := mustBeClean(t, l.dir, "as it was made")
	if rep.Totals.HistoryFiles != 6 || rep.Totals.HistoryBytes == 0 {
		t.Fatalf("%+v", rep.Totals)
	}
	state := filepath.Join(l.dir, historyName, "state")
	flips(t, l.dir, state, 0, []field{
		{"magic", 0, 8}, {"version", 8, 4}, {"volumes", 12, 4}, {"store", 16, 16}, {"next file", 32, 4}, {"reserved 1", 36, 4}, {"seq", 40, 8}, {"reserved 2", 48, 16},
		{"id", 64, 8}, {"window", 72, 8}, {"budget", 80, 8}, {"since", 88, 8}, {"last", 96, 8}, {"reserved 3", 104, 24},
	}, func(b []byte) { fixSum(b, len(b)-4) }, "next file", "seq", "id", "window", "budget", "since", "last")
	files, err := filepath.Glob(filepath.Join(l.dir, historyName, "0000000000000001", "*"+historySuffix))
	if err != nil || len(files) != 3 {
		t.Fatal(files, err)
	}
	d, err := DumpHistory(files[1], "", nil)
	if err != nil || d.Error != "" || !d.Sealed || len(d.Frames) < 2 {
		t.Fatalf("%+v, %v", d, err)
	}
	frame, foot := int(d.Frames[1].Offset), int(d.Size)-historyFoot
	index := int(binary.LittleEndian.Uint64(read(t, files[1])[foot+40:]))
	flips(t, l.dir, files[1], 0, []field{
		{"header magic", 0, 8}, {"header store", 16, 16}, {"header volume", 32, 8}, {"header id", 40, 4}, {"header salt", 48, 32}, {"header after", 80, 8}, {"header reserved", 96, 412},
		{"frame magic", frame, 4}, {"frame ordinal", frame + 4, 4}, {"frame codec", frame + 8, 1}, {"frame lengths", frame + 16, 16}, {"frame last", frame + 32, 8}, {"frame sums", frame + 48, 8}, {"frame chain", frame + 60, 4},
		{"meta", frame + historyFrame, 8}, {"payload", index - 100, 8}, {"index", index, 100}, {"footer magic", foot, 8}, {"footer fields", foot + 12, 48}, {"footer reserved", foot + 64, 60}, {"footer crc", foot + 124, 4},
	}, nil)
	aside := filepath.Join(t.TempDir(), "aside")
	for i, gone := range files[1:] {
		l.must(os.Rename(gone, aside))
		got, err := Run(context.Background(), l.dir, Options{})
		l.must(err)
		if got.Errors == 0 {
			t.Errorf("file %d is gone, and nothing is found", i+1)
		}
		l.must(os.Rename(aside, gone))
	}
	mustBeClean(t, l.dir, "after all was put back")
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
