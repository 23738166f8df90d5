package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// What a shrink cut off and a growth brought back is what differs, in the table and in the document.
func TestSnapshotDiff(t *testing.T) {
	d := startDaemon(t)
	path, _ := image(t, 5<<20)
	d.must("volume", "import", "v", path)
	d.must("snapshot", "create", "v@a")
	d.must("volume", "resize", "v", "--size", "4MiB", "--shrink")
	d.must("volume", "resize", "v", "--size", "5MiB")
	d.must("snapshot", "create", "v@b")
	d.must("volume", "clone", "v@a", "c")
	none := func(kind string) bool { return kind == "zero" || kind == "hole" } // which, depends on whether it is in the log yet
	for _, to := range [][]string{nil, {"v@b"}, {"v"}} {
		table := d.must(append([]string{"snapshot", "diff", "v@a"}, to...)...)
		lines := strings.Split(table, "\n")
		if len(lines) != 4 || !strings.HasPrefix(lines[2], "1 range, 1.00 MiB: 0 B data, ") || !none(strings.Fields(lines[1])[2]) {
			t.Fatalf("%v: %s", to, table)
		}
		var document struct {
			From, To string
			Changes  []struct {
				Offset, Length uint64
				Kind           string
			}
			Total struct{ Ranges, Bytes, DataBytes uint64 }
		}
		if err := json.Unmarshal([]byte(d.must(append([]string{"snapshot", "diff", "v@a", "-o", "json"}, to...)...)), &document); err != nil {
			t.Fatal(err)
		}
		c := document.Changes
		if len(c) != 1 || c[0].Offset != 4<<20 || c[0].Length != 1<<20 || !none(c[0].Kind) || fmt.Sprint(document.Total) != "{1 1048576 0}" || document.From != "v@a" {
			t.Errorf("%v: %+v", to, document)
		}
	}
	if table := d.must("snapshot", "diff", "v@a", "c"); table != "0 ranges, 0 B: 0 B data, 0 B zero, 0 B hole\n" {
		t.Errorf("a clone and its origin: %s", table)
	}
	for at, want := range map[string]string{"v@a": "1.00 MiB in 1 range\n", "v@b": "0 B in 0 ranges\n"} {
		if told := d.must("snapshot", "rollback", at, "--dry-run"); !strings.HasSuffix(told, "since: "+want) {
			t.Errorf("rolling back to %s, dry: %s", at, told)
		}
	}
	d.must("volume", "attach", "v")
	if told := d.must("snapshot", "rollback", "v@a", "--dry-run"); !strings.Contains(told, "it is attached") {
		t.Errorf("rolling back what is attached, dry: %s", told)
	}
}
