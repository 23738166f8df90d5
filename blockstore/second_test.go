package blockstore

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/secondcopy"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// muchUsed returns a store with a volume whose first 64 KiB were written 80 times, in places apart, and 20 MiB that were written once, all sealed; with second copies.
func muchUsed(t *testing.T, opts Options) (*Store, *Device, []byte) {
	t.Helper()
	opts.secondEvery = 10 * time.Millisecond
	s, d, once := sealedStore(t, opts, 20)
	data := make([]byte, 32<<20)
	copy(data, once)
	for i := range 80 {
		copy(data[(20<<20)+i*(128<<10):], once[:64<<10])
		writeTest(t, d, uint64(20<<20+i*(128<<10)), once[:64<<10])
	}
	settleTest(t, s)
	s.keeper.kick()
	waitFor(t, "second copies", func() bool { s.keeper.kick(); return s.Stats().SecondCopyBytes > 16<<10 })
	return s, d, data
}

// placesOf returns the frames that have a second copy, and the file of the segment that they are in.
func placesOf(t *testing.T, s *Store) (places []secondcopy.Place, path string) {
	t.Helper()
	if places = s.keeper.seconds.places(); len(places) == 0 {
		t.Fatal("no copies")
	}
	for _, p := range places {
		if p.Segment != places[0].Segment {
			t.Fatalf("copies of several segments: %v", places)
		}
	}
	row, there := s.segments.get(places[0].Segment)
	if !there {
		t.Fatal("copies of a segment that is not there")
	}
	found, err := filepath.Glob(filepath.Join(s.opts.Dir, "segments", "*", row.Placement[0].Key))
	if err != nil || len(found) != 1 {
		t.Fatalf("files of segment %v: %v, %v", row.ID, found, err)
	}
	return places, found[0]
}

// TestSecondCopyMends destroys frames that many references lead to, which parity does not reach: reads of guests are answered, and the segment is mended to what it was.
func TestSecondCopyMends(t *testing.T) {
	opts, found := keptOptions(t, vfs.Default, t.TempDir())
	s, _, data := muchUsed(t, opts)
	places, path := placesOf(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Far more than two columns of each stripe: all frames that have a copy.
	for _, p := range places {
		for at := int64(p.Off); at < int64(p.Off+p.Len); at += 512 {
			change(t, path, at, func(b []byte) { b[0] ^= 0x55 })
		}
	}
	if err := os.Remove(path[:len(path)-len(".seg")] + ".par"); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, opts)
	d := deviceTest(t, s, "a", "")
	expect(t, d, 0, data[:64<<10])
	waitFor(t, "the segment to be as it was", func() bool {
		now, err := os.ReadFile(path)
		return err == nil && bytes.Equal(now, whole)
	})
	expect(t, d, 0, data)
	waitFor(t, "the damage to be reported as mended", func() bool {
		found.mu.Lock()
		defer found.mu.Unlock()
		return len(found.all) > 0 && found.all[len(found.all)-1].Mended
	})
	if st := s.Stats(); st.DamageLost > 0 || st.Corruptions > 0 {
		t.Errorf("lost %d, corruptions %d", st.DamageLost, st.Corruptions)
	}
}

// TestSecondCopyOfLostFile removes the file of a segment and its parity: what has a second copy is still read, also after a restart and after the choice was looked at again, and is not lost with the rest.
func TestSecondCopyOfLostFile(t *testing.T) {
	opts, _ := keptOptions(t, vfs.Default, t.TempDir())
	opts.Events.Corruption = func(error) {}
	s, _, data := muchUsed(t, opts)
	places, path := placesOf(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, gone := range []string{path, path[:len(path)-len(".seg")] + ".par"} {
		if err := os.Remove(gone); err != nil {
			t.Fatal(err)
		}
	}
	opts.secondEvery = 10 * time.Millisecond
	for range 2 {
		s = openTest(t, opts)
		d := deviceTest(t, s, "a", "")
		before := readable(t, d, data, 21<<20)
		if before < 32<<10 || before != readable(t, d, data, 22<<20) {
			t.Errorf("%d of 64 KiB can be read", before)
		}
		if err := s.Repair(t.Context()); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "another choice", func() bool { s.keeper.kick(); return s.keeper.seconds.choices.Load() > 1 })
		if after := readable(t, d, data, 21<<20); after != before {
			t.Errorf("%d B can be read, %d before the choice was looked at again", after, before)
		}
		if now := copiesOf(s); now < len(places) {
			t.Errorf("%d of %d copies are left", now, len(places))
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSecondCopyThatIsTheLast destroys frames that have a second copy, leaves their segment unmended for lack of anybody who looks, and takes away the references that they were copied for: the copies stay as long as they are
// all there is, also after a restart that knows of no damage.
func TestSecondCopyThatIsTheLast(t *testing.T) {
	opts, _ := keptOptions(t, vfs.Default, t.TempDir())
	opts.Events.Corruption = func(error) {}
	s, d, data := muchUsed(t, opts)
	places, path := placesOf(t, s)
	other := data[1<<20 : 1<<20+10<<20]
	writeTest(t, d, 20<<20, other)
	copy(data[20<<20:], other)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, gone := range []string{path, path[:len(path)-len(".seg")] + ".par"} {
		if err := os.Remove(gone); err != nil {
			t.Fatal(err)
		}
	}
	opts.secondEvery = 10 * time.Millisecond
	s = openTest(t, opts)
	d = deviceTest(t, s, "a", "")
	s.destager.all.Add(1) // what was written over takes the references away
	waitFor(t, "the references to go", func() bool {
		s.destager.kick()
		found, err := s.keeper.manyReferences(context.Background())
		return err == nil && len(found) == 0
	})
	choices := s.keeper.seconds.choices.Load()
	waitFor(t, "another choice", func() bool { s.keeper.kick(); return s.keeper.seconds.choices.Load() > choices+1 })
	if now := copiesOf(s); now != len(places) {
		t.Errorf("%d of %d copies are left", now, len(places))
	}
	if n := readable(t, d, data, 0); n < 32<<10 {
		t.Errorf("%d of 64 KiB can be read", n)
	}
}

// readable returns how many of the 64 KiB at off can be read, and fails if one byte is wrong.
func readable(t *testing.T, d *Device, data []byte, off int) (n int) {
	t.Helper()
	buf := make([]byte, block.Size)
	for at := off; at < off+64<<10; at += len(buf) {
		_, err := d.ReadAt(context.Background(), buf, uint64(at), nil)
		switch {
		case err == nil && !bytes.Equal(buf, data[at:at+len(buf)]):
			t.Fatalf("wrong bytes at %d", at)
		case err == nil:
			n += len(buf)
		case !errors.Is(err, block.ErrCorrupt):
			t.Fatal(err)
		}
	}
	return n
}

func copiesOf(s *Store) int { return len(s.keeper.seconds.places()) }
