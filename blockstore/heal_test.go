package blockstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// beyondParity damages a segment under an open store by more than parity reaches, has that found, and returns the lost chunks.
func beyondParity(t *testing.T, s *Store, opts Options) []LostChunk {
	t.Helper()
	var path string
	var row segmentRow
	for _, r := range s.segments.all() {
		if r.State == segmentSealed && !isMetadata(&r) && r.Size > row.Size {
			row = r
			path = filepath.Join(opts.Dir, "segments", fmt.Sprintf("%02x", uint8(r.ID)), r.Placement[0].Key)
		}
	}
	columns := (int(row.Size) + 4095) / 4096
	stripes := (columns + 15) / 16
	for i := range 3 {
		change(t, path, int64((i*4*stripes+7)*4096), func(b []byte) { b[9] ^= 0xff })
	}
	if n := scrubTest(t, s, false); n.Damaged != 1 || n.Mended != 0 {
		t.Fatalf("scrub: %+v", n)
	}
	lost, more, err := s.LostChunks(context.Background(), 0)
	if err != nil || more || len(lost) == 0 {
		t.Fatalf("%d chunks are lost, more: %v, %v", len(lost), more, err)
	}
	return lost
}

// unreadable counts the blocks that cannot be read, and wants all others to be right.
func unreadable(t *testing.T, d *Device, data []byte) (n int) {
	t.Helper()
	buf := make([]byte, 4096)
	for off := 0; off < len(data); off += len(buf) {
		_, err := d.ReadAt(context.Background(), buf, uint64(off), nil)
		switch {
		case errors.Is(err, block.ErrCorrupt):
			n++
		case err != nil:
			t.Fatal(err)
		case !bytes.Equal(buf, data[off:off+len(buf)]):
			t.Fatalf("wrong bytes at %d", off)
		}
	}
	return n
}

// lostStore is a store with a volume a and a snapshot of it, of which chunks are lost.
func lostStore(t *testing.T, opts Options) (*Store, *Device, *Device, []byte, []LostChunk) {
	t.Helper()
	opts.Events.Corruption = func(error) {}
	s, d, data := sealedStore(t, opts, 24)
	if _, err := s.CreateSnapshot(context.Background(), "a", "snap"); err != nil {
		t.Fatal(err)
	}
	settleTest(t, s)
	lost := beyondParity(t, s, opts)
	snap := deviceTest(t, s, "a", "snap")
	if unreadable(t, d, data) == 0 || unreadable(t, snap, data) == 0 {
		t.Fatal("everything can be read")
	}
	return s, d, snap, data, lost
}

// Bytes that somebody has of lost chunks are taken if they are those, and volume and snapshot are whole right after, and after a restart. Anything else is refused.
func TestHeal(t *testing.T) {
	opts, _ := keptOptions(t, vfs.Default, t.TempDir())
	opts.Events.Corruption = func(error) {}
	s, d, snap, data, lost := lostStore(t, opts)
	ctx := context.Background()
	var right, wrong []ChunkBytes
	for _, c := range lost {
		if len(c.Places) != 2 {
			t.Fatalf("%+v has not the places of a volume and its snapshot", c)
		}
		raw := bytes.Clone(data[c.Places[0].Offset:][:c.Length])
		right = append(right, ChunkBytes{c.ID, raw}, ChunkBytes{c.ID, raw})
		bad := bytes.Clone(raw)
		bad[len(bad)/2] ^= 1
		wrong = append(wrong, ChunkBytes{c.ID, bad}, ChunkBytes{c.ID, raw[:len(raw)-1]}, ChunkBytes{c.ID, nil}, ChunkBytes{c.ID + 1<<40, raw}, ChunkBytes{lost[0].ID - 1, raw})
	}
	before := s.Stats()
	if healed, err := s.Heal(ctx, wrong); err != nil || len(healed) != 0 {
		t.Fatalf("of wrong bytes %d chunks were taken, %v", len(healed), err)
	}
	if n := unreadable(t, d, data); n == 0 {
		t.Fatal("wrong bytes have changed what can be read")
	}
	healed, err := s.Heal(ctx, right)
	if err != nil || len(healed) != len(lost) {
		t.Fatalf("%d of %d chunks are healed, %v", len(healed), len(lost), err)
	}
	expect(t, d, 0, data)
	expect(t, snap, 0, data)
	if again, err := s.Heal(ctx, right); err != nil || len(again) != 0 {
		t.Errorf("chunks that are whole are healed: %v, %v", again, err)
	}
	if err := s.Repair(ctx); err != nil {
		t.Fatal(err)
	}
	for _, x := range s.Damages() {
		if !x.Mended {
			t.Errorf("what is left is %v", &x)
		}
	}
	if after := s.Stats(); after.UniqueBytes != before.UniqueBytes {
		t.Errorf("unique bytes were %d and are %d", before.UniqueBytes, after.UniqueBytes)
	}
	if left, _, err := s.LostChunks(ctx, 0); err != nil || len(left) != 0 {
		t.Errorf("%d chunks are lost still, %v", len(left), err)
	}
	report, err := s.Audit(ctx, nil)
	if err != nil || report.WrongSegments != 0 || report.Missing != 0 {
		t.Errorf("the audit finds %+v, %v", report, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, opts)
	expect(t, deviceTest(t, s, "a", ""), 0, data)
	expect(t, deviceTest(t, s, "a", "snap"), 0, data)
}

// What is written again heals snapshots, too, by a repair: while it is in the log alone, and when it is a chunk of its own.
func TestHealOfItself(t *testing.T) {
	for _, settled := range []bool{false, true} {
		t.Run(map[bool]string{false: "log", true: "twin"}[settled], func(t *testing.T) {
			opts, _ := keptOptions(t, vfs.Default, t.TempDir())
			opts.DestageAfter = time.Hour
			s, d, snap, data, lost := lostStore(t, opts)
			for _, c := range lost {
				begin := c.Places[0].Offset / 4096 * 4096
				end := min(uint64(len(data)), (c.Places[0].Offset+uint64(c.Length)+4095)/4096*4096)
				writeTest(t, d, begin, make([]byte, end-begin)) // other bytes before
				writeTest(t, d, begin, data[begin:end])
			}
			if settled {
				// Cut where the lost chunks were: from the beginning of the volume on.
				writeTest(t, d, 0, data)
				settleTest(t, s)
			}
			if n := unreadable(t, snap, data); n == 0 {
				t.Fatal("the snapshot was whole before the repair")
			}
			if err := s.Repair(context.Background()); err != nil {
				t.Fatal(err)
			}
			expect(t, snap, 0, data)
			expect(t, d, 0, data)
		})
	}
}
