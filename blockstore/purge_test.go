package blockstore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Nodes that go in one batch are no neighbours: what the removal of one changes in the tree the removal of another must not have read before. And many go in one batch, or
// whoever deletes would be faster than the store for ever.
func TestPurgesOfOneBatch(t *testing.T) {
	s := openTest(t, smallLog(t))
	d := createTest(t, s, "v", 16<<20)
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(3, 1))
	const snapshots = 120
	for n := range snapshots {
		writeTest(t, d, uint64(n)*block.Size, guestData(rng, block.Size))
		if _, err := s.CreateSnapshot(ctx, "v", fmt.Sprint("s", n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Settle(ctx, nil); err != nil {
		t.Fatal(err)
	}
	s.meta.Lock() // nothing is removed until it is released
	order := rng.Perm(snapshots)
	for _, n := range order {
		if err := s.DeleteSnapshot(ctx, "v", fmt.Sprint("s", n)); err != nil {
			t.Fatal(err)
		}
	}
	due := s.purgeable(purgesPerStep)
	if len(due) < snapshots/4 {
		t.Errorf("of %d deleted snapshots in a row %d go in one batch", snapshots, len(due))
	}
	near := map[*node]int{}
	for i, p := range due {
		for _, n := range []*node{p.n, p.child, p.n.parent.Load()} {
			if j, taken := near[n]; n != nil && taken && (p.n == n || due[j].n == n) {
				t.Errorf("removal %d of node %d touches what removal %d of node %d needs", i, p.n.id, j, due[j].n.id)
			}
			near[n] = i
		}
	}
	mark := due[len(due)-1].n.id
	s.dueFirst.node.Store(uint64(mark))
	if first := s.purgeable(1); len(first) != 1 || first[0].n.id > mark {
		t.Errorf("a settle waits for nodes up to %d, and %v is removed first", mark, first)
	}
	s.dueFirst.nothing()
	s.meta.Unlock()
	if err := s.Settle(ctx, nil); err != nil {
		t.Fatal(err)
	}
	s.tree.RLock()
	left := len(s.nodes)
	s.tree.RUnlock()
	if left != 1 {
		t.Errorf("%d nodes are left of a volume without snapshots", left)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}
