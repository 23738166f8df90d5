package stripe

import (
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers"
)

// TestOpenSegmentIsGivenCopiesAgain loses a directory with a copy of an open segment, unnoticed by its writer, and then the other one.
func TestOpenSegmentIsGivenCopiesAgain(t *testing.T) {
	mem := vfs.NewCrashableMem()
	b := openOver(t, mem, shape(3, 1), dirs...)
	key, data := tiers.SegmentKey(1, 1), bytesOf(1, 3_000_001) // in d1 and d2
	w, err := b.Create(key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data[:1_000_001]); err != nil {
		t.Fatal(err)
	}
	if err := mem.RemoveAll("d1"); err != nil {
		t.Fatal(err)
	}
	if missing, _ := b.Lacking(); missing != 0 {
		t.Fatal("it is noticed already")
	}
	b.Probe()
	if missing, _ := b.Lacking(); missing != 1 || b.Dirs()[1].State != "failed" {
		t.Fatal(missing, b.Dirs())
	}
	if did, err := b.HealOpen(); !did || err != nil {
		t.Fatal(did, err)
	}
	if missing, _ := b.Lacking(); missing != 0 {
		t.Fatal("it lacks a copy still")
	}
	if _, err := w.Write(data[1_000_001:]); err != nil {
		t.Fatal(err)
	}
	if err := w.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := b.ReplaceDir("d1", "d1", nil); err != nil {
		t.Fatal(err)
	}
	if err := mem.RemoveAll("d2"); err != nil {
		t.Fatal(err)
	}
	if err := compare(openOver(t, mem, shape(3, 1), dirs...), key, data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// HealOpen adds no copy to a segment that is just being created: it used to see the first copy and write to a list that Create was still making.
func TestHealingLeavesSegmentsAloneThatBegin(t *testing.T) {
	b := openOver(t, vfs.NewCrashableMem(), shape(3, 1), dirs...)
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-quit:
				return
			default:
				if did, err := b.HealOpen(); did || err != nil {
					t.Errorf("healed a segment that lacks nothing, %v", err)
					return
				}
			}
		}
	}()
	for id := range 300 {
		w, err := b.Create(tiers.SegmentKey(block.SegmentID(id+1), 1))
		if err != nil {
			t.Fatal(err)
		}
		if n := len(w.(*writer).copies); n != 2 {
			t.Fatalf("segment %d has %d copies, want 2", id+1, n)
		}
		if err := w.Sync(); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	close(quit)
	<-ended
}
