package blockstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
)

// A writer puts a number into one volume after another, each when the one before was replied. However often snapshots of all volumes are taken meanwhile, in no set has a later volume a number that an earlier one lacks; and
// it stays so through settles and a restart.
func TestSnapshotSetIsOneMoment(t *testing.T) {
	ctx := context.Background()
	opts := testOptions(t, vfs.Default, t.TempDir())
	s := openTest(t, opts)
	const volumes, sets = 5, 30
	var devices []*Device
	for i := range volumes {
		devices = append(devices, createTest(t, s, fmt.Sprint("v", i), 1<<20))
	}
	var writer sync.WaitGroup
	var stop atomic.Bool
	writer.Go(func() {
		p := make([]byte, block.Size)
		for n := uint64(1); !stop.Load(); n++ {
			binary.LittleEndian.PutUint64(p, n)
			for _, d := range devices {
				if err := d.Write(ctx, []block.Write{{Off: 4 * block.Size, Data: p}}, false); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for i := range sets {
		var names []StateName
		for v := range volumes {
			names = append(names, StateName{fmt.Sprint("v", (v+i)%volumes), fmt.Sprint("s", i)})
		}
		infos, err := s.CreateSnapshots(ctx, names, i%2 == 1)
		if err != nil {
			t.Fatal(err)
		}
		for _, info := range infos {
			if info.Epoch != infos[0].Epoch || info.Automatic != (i%2 == 1) || info.Name != fmt.Sprint("s", i) {
				t.Fatalf("set %d: %+v", i, infos)
			}
		}
		if i%10 == 5 {
			settleTest(t, s)
		}
	}
	stop.Store(true)
	writer.Wait()
	verify := func() {
		t.Helper()
		for i := range sets {
			var last uint64
			for v := range volumes {
				d := deviceTest(t, s, fmt.Sprint("v", v), fmt.Sprint("s", i))
				p := make([]byte, 8)
				if _, err := d.ReadAt(ctx, p, 4*block.Size, nil); err != nil {
					t.Fatal(err)
				}
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
				n := binary.LittleEndian.Uint64(p)
				if v > 0 && n != last && n != last-1 {
					t.Fatalf("set %d: volume %d has %d, the one before %d", i, v, n, last)
				}
				last = n
			}
		}
	}
	verify()
	for _, d := range devices {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	checkWhole(t, opts.Dir, "with sets of snapshots")
	s = openTest(t, opts)
	verify()
	settleTest(t, s)
	verify()
	if err := s.RenameSnapshot(ctx, "v0", "s1", "mine"); err != nil {
		t.Fatal(err)
	}
	if snaps, err := s.Snapshots("v0"); err != nil || len(snaps) != sets || snaps[1].Name != "mine" || snaps[1].Automatic || !snaps[3].Automatic {
		t.Errorf("a schedule still has the snapshot that was renamed, or another one not: %+v, %v", snaps, err)
	}
}

// What is wrong with one snapshot of a set leaves all of it undone.
func TestSnapshotSetRefused(t *testing.T) {
	ctx := context.Background()
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	for _, name := range []string{"a", "b"} {
		if err := createTest(t, s, name, 1<<20).Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.CreateSnapshot(ctx, "b", "old"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		names []StateName
		want  error
	}{
		{nil, block.ErrInvalid},
		{make([]StateName, MaxSnapshotSet+1), block.ErrInvalid},
		{[]StateName{{"a", "x"}, {"a", "y"}}, block.ErrInvalid},
		{[]StateName{{"a", "x"}, {"b", "a/b"}}, block.ErrInvalid},
		{[]StateName{{"a", "x"}, {"b", ""}}, block.ErrInvalid},
		{[]StateName{{"a", "x"}, {"c", "x"}}, block.ErrNotFound},
		{[]StateName{{"a", "old"}, {"b", "old"}}, block.ErrExists},
	} {
		if _, err := s.CreateSnapshots(ctx, c.names, false); !errors.Is(err, c.want) {
			t.Errorf("%v: %v, want %v", c.names, err, c.want)
		}
	}
	if snaps, err := s.Snapshots("a"); err != nil || len(snaps) != 0 {
		t.Errorf("left: %+v, %v", snaps, err)
	}
	infos, err := s.CreateSnapshots(ctx, []StateName{{"b", "one"}}, false)
	if err != nil || len(infos) != 1 || infos[0].Name != "one" {
		t.Errorf("a set of one: %+v, %v", infos, err)
	}
}

// A control record that decodes means the same when it is written again, and holds no more than its bytes could say.
func FuzzControlRecord(f *testing.F) {
	for _, g := range goldens() {
		if o, ok := g.value.(*op); ok {
			f.Add(uint8(o.Kind), g.bytes)
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, b []byte) {
		o, err := decodeOp(journal.Kind(kind), 7, b)
		if err != nil {
			return
		}
		if again, err := decodeOp(o.Kind, 7, o.encode()); err != nil || !reflect.DeepEqual(again, o) || o.Set != nil && !bytes.Equal(o.encode(), b) {
			t.Fatalf("kind %d: %x is written as %x: %v", kind, b, o.encode(), err)
		}
		if o.Set != nil && (len(o.Set.Members) > MaxSnapshotSet || len(o.newNodes()) != len(o.Set.Members)) {
			t.Fatalf("%d members of %d bytes", len(o.Set.Members), len(b))
		}
	})
}
