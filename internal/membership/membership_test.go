package membership

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"hash/crc32"
	"os"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

var update = flag.Bool("update", false, "write the golden bytes anew")

var testStore = block.UUID{1, 2, 3}

func goldenLabel() Label {
	return Label{Kind: Segments, StoreID: testStore, Self: block.UUID{9}, Generation: 1 << 40, Since: 7, Members: []Member{{block.UUID{9}, true}, {block.UUID{8}, false}, {block.UUID{7}, true}}}
}

func TestGolden(t *testing.T) {
	l := goldenLabel()
	got := l.Append(nil)
	const name = "testdata/members.golden"
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("a label is not written as it was")
	}
	if again, err := Parse(want); err != nil || !bytes.Equal(again.Append(nil), want) {
		t.Error(again, err)
	}
}

// Fields that are wrong under a right checksum. Offsets are those of docs/format/members.md.
func TestHostileLabels(t *testing.T) {
	le := binary.LittleEndian
	for name, change := range map[string]func(b []byte){
		"version":       func(b []byte) { b[8] = 2 },
		"kind":          func(b []byte) { b[12] = 3 },
		"no self":       func(b []byte) { clear(b[32:48]) },
		"since":         func(b []byte) { le.PutUint64(b[56:], 1<<41) },
		"33 members":    func(b []byte) { le.PutUint32(b[64:], 33) },
		"2^32 members":  func(b []byte) { le.PutUint32(b[64:], 1<<32-1) },
		"fewer members": func(b []byte) { le.PutUint32(b[64:], 2) },
		"more members":  func(b []byte) { le.PutUint32(b[64:], 4) },
		"twice":         func(b []byte) { copy(b[112:128], b[80:96]) },
		"flag":          func(b []byte) { b[96] = 2 },
		"reserved":      func(b []byte) { b[97] = 1 },
		"reserved 68":   func(b []byte) { b[68] = 1 },
		"reserved end":  func(b []byte) { b[4091] = 1 },
	} {
		l := goldenLabel()
		b := l.Append(nil)
		change(b)
		if _, err := Parse(b); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("%s, with the wrong checksum: %v", name, err)
		}
		le.PutUint32(b[labelSize-4:], crc32.Checksum(b[:labelSize-4], castagnoli))
		if _, err := Parse(b); !errors.Is(err, block.ErrCorrupt) && !errors.Is(err, block.ErrVersion) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func open(t *testing.T, fs vfs.FS, want string, paths ...string) *Group {
	t.Helper()
	for _, p := range paths {
		if err := fs.MkdirAll(p, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	g, err := Open(fs, Log, testStore, paths)
	if err != nil {
		t.Fatal(err)
	}
	expectStates(t, g, want)
	return g
}

func expectStates(t *testing.T, g *Group, want string) {
	t.Helper()
	var got []string
	for _, d := range g.Directories() {
		got = append(got, d.State.String())
	}
	if strings.Join(got, ",") != want {
		t.Fatalf("states %q, want %q", got, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestLives(t *testing.T) {
	fs := vfs.NewCrashableMem()
	g := open(t, fs, "in sync", "a")
	must(t, g.Begin())
	g = open(t, fs, "in sync,new,new", "a", "b", "c")
	must(t, g.Begin())
	for i := 1; i < 3; i++ {
		must(t, g.Prepare(i))
		must(t, g.Join(i))
	}
	g = open(t, fs, "in sync,in sync,in sync", "a", "b", "c")
	must(t, g.Begin())
	must(t, g.Drop(1, errors.New("it failed")))
	g = open(t, fs, "in sync,stale,in sync", "a", "b", "c")
	must(t, g.Begin())
	// b is gone: an empty directory in its place waits for somebody, and stays so.
	must(t, fs.RemoveAll("b"))
	for range 2 {
		g = open(t, fs, "in sync,vacant,in sync", "a", "b", "c")
		if g.Missed() != 1 {
			t.Fatal(g.Missed())
		}
		must(t, g.Begin())
	}
	must(t, g.Prepare(1))
	must(t, g.Join(1))
	g = open(t, fs, "in sync,in sync,in sync", "a", "b", "c")
	if g.Missed() != 0 {
		t.Fatal(g.Missed())
	}
	// One that is taken out of the list is not missed.
	g = open(t, fs, "in sync,in sync", "a", "c")
	if g.Missed() != 0 {
		t.Fatal(g.Missed())
	}
	must(t, g.Begin())
	open(t, fs, "in sync,in sync,stale", "a", "c", "b")
	if _, err := Open(fs, Segments, testStore, []string{"a"}); !errors.Is(err, block.ErrInvalid) {
		t.Fatalf("another kind: %v", err)
	}
	if _, err := Open(fs, Log, block.UUID{5}, []string{"a"}); !errors.Is(err, block.ErrInvalid) {
		t.Fatalf("another store: %v", err)
	}
	if _, err := Open(fs, Log, testStore, []string{"a", "a"}); !errors.Is(err, block.ErrInvalid) {
		t.Fatalf("twice: %v", err)
	}
}

// TestPowerLossWhileLabelsChange cuts the power before each operation of dropping and joining: what is called in sync then had been, and was not dropped before.
func TestPowerLossWhileLabelsChange(t *testing.T) {
	mem := vfs.NewCrashableMem()
	phase, cuts := 0, 0
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if phase == 0 || op.Kind.ReadOrWrite() == errorfs.OpIsRead {
			return nil
		}
		cuts++
		clone := mem.CrashClone(vfs.CrashCloneCfg{})
		for _, lost := range []string{"", "a", "c"} {
			var paths []string
			for _, p := range []string{"a", "b", "c"} {
				if p != lost {
					paths = append(paths, p)
				}
			}
			g, err := Open(clone, Log, testStore, paths)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range g.Directories() {
				current := d.State == Current
				switch {
				case d.Path != "b" && !current:
					t.Errorf("phase %d, %s lost: %s is %v", phase, lost, d.Path, d.State)
				case d.Path == "b" && phase == 2 && current:
					t.Errorf("b was dropped, and is in sync without %q", lost)
				}
			}
		}
		return nil
	}))
	g := open(t, fs, "in sync,new,new", "a", "b", "c")
	must(t, vfs.SyncDir(fs, "/"))
	g.Admit(1)
	g.Admit(2)
	must(t, g.Begin())
	phase = 1 // it is being dropped
	must(t, g.Drop(1, errors.New("it failed")))
	phase = 2 // it is
	must(t, g.Begin())
	must(t, g.Prepare(1))
	phase = 3
	must(t, g.Join(1))
	if cuts < 20 {
		t.Fatalf("only %d cuts", cuts)
	}
}
