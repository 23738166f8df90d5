package backup

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/backendtest"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// keeper holds packs and manifests for some time, as a host does.
type keeper struct {
	*backendtest.Memory
	keep time.Duration
}

var _ backend.Keeper = (*keeper)(nil)

// Keep implements backend.Keeper.
func (k *keeper) Keep(context.Context) (time.Duration, error) { return k.keep, nil }

// Delete implements backend.Backend.
func (k *keeper) Delete(ctx context.Context, key string) error {
	o, err := k.Stat(ctx, key)
	if err == nil && (strings.HasPrefix(key, "packs/") || strings.HasPrefix(key, "manifests/")) && time.Since(o.Created) < k.keep {
		err = fmt.Errorf("%s: %w", key, block.ErrInUse)
	}
	if err != nil {
		return err
	}
	return k.Memory.Delete(ctx, key)
}

// A prune leaves alone what its place holds, says until when, and gives back the rest; it never fails for it.
func TestPruneWherePacksAreHeld(t *testing.T) {
	const held = 10 * grace
	p, m := newMemoryPlace(t)
	p.in = &keeper{m, held}
	old, err := keep(t, p.open(), noise(2, 3<<20))
	if err != nil {
		t.Fatal(err)
	}
	m.Wait(9 * grace)
	young, err := keep(t, p.open(), noise(3, 3<<20))
	if err != nil {
		t.Fatal(err)
	}
	kept := image(1, RegionSize)
	first, err := keep(t, p.open(), kept)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range []*repository.Manifest{old, young} { // by somebody else, before these were held
		if err := m.Delete(context.Background(), "manifests/"+b.Name); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range []repository.PruneOptions{{}, {Alone: true}} {
		got := p.prune(o)
		if got.DeletedPacks != 0 || o.Alone && got.MarkedPacks != 1 {
			t.Fatalf("the prune of %+v did %+v", o, got)
		}
		if left := time.Until(got.DeletableAt); left < grace-time.Minute || left > grace+time.Minute {
			t.Errorf("the first may be deleted in %v, want %v", left, grace)
		}
	}
	m.Wait(grace)
	if got := p.prune(repository.PruneOptions{}); got.DeletedPacks != 1 || got.WaitingPacks != 1 {
		t.Fatalf("when the older pack is held no more the prune did %+v", got)
	}
	if got := p.prune(repository.PruneOptions{Alone: true}); got.DeletedPacks != 0 {
		t.Fatalf("the younger one is held, and the prune did %+v", got)
	}
	m.Wait(9 * grace)
	if got := p.prune(repository.PruneOptions{}); got.DeletedPacks != 1 || got.WaitingPacks != 0 {
		t.Fatalf("when all of it is over the prune did %+v", got)
	}
	sound(t, p.open(), 1)
	sameContent(t, p.open(), first, kept)
}
