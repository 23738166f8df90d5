package control

import (
	"context"
	"fmt"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// reporting tells NBD clients what the engine knows of a device: holes, the state that bytes come from, and what changed since each older snapshot and in each bitmap.
type reporting struct{ Device }

// MetaContexts implements nbd.StatusReporter.
func (d reporting) MetaContexts() []string {
	names := []string{nbd.ContextAllocation, nbd.ContextDepth}
	for _, base := range d.ChangeBases() {
		if !hidden(base) {
			names = append(names, nbd.ContextDirtyPrefix+base)
		}
	}
	return names
}

// BlockStatus implements nbd.StatusReporter.
func (d reporting) BlockStatus(ctx context.Context, metaContext string, r block.Range, emit func(length uint64, status uint32) bool) error {
	switch metaContext {
	case nbd.ContextAllocation:
		return d.Depths(ctx, r, func(n uint64, depth uint32) bool {
			if depth == 0 {
				return emit(n, nbd.StatusHole|nbd.StatusZero)
			}
			return emit(n, 0)
		})
	case nbd.ContextDepth:
		return d.Depths(ctx, r, emit)
	}
	base, ok := strings.CutPrefix(metaContext, nbd.ContextDirtyPrefix)
	if !ok {
		return fmt.Errorf("metadata context %q: %w", metaContext, block.ErrNotFound)
	}
	return d.Changes(ctx, base, r, func(n uint64, changed bool) bool {
		if changed {
			return emit(n, nbd.StatusDirty)
		}
		return emit(n, 0)
	})
}
