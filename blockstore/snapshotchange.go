package blockstore

import (
	"context"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// RenameSnapshot gives a snapshot another name, which no other of its volume has. One with an open device is refused with ErrInUse: its clients know it by its name.
func (s *Store) RenameSnapshot(_ context.Context, volume, name, to string) error {
	err := CheckName(to)
	if err == nil {
		_, err = s.op(nil, func() (*op, error) {
			n, err := s.findSnapshotLocked(volume, name)
			if err != nil {
				return nil, err
			}
			if n.users > 0 {
				return nil, fmt.Errorf("%d open devices: %w", n.users, block.ErrInUse)
			}
			if err := s.freeNameLocked(n.volume, to); err != nil {
				return nil, err
			}
			return &op{Kind: opRenameSnapshot, Volume: n.volume.id, Node: n.id, Name: to}, nil
		})
	}
	if err != nil {
		return fmt.Errorf("rename snapshot %q of volume %q to %q: %w", name, volume, to, err)
	}
	return nil
}

// ProtectSnapshot makes a snapshot, and with it its volume, one that cannot be deleted, or takes that back. To repeat it changes nothing.
func (s *Store) ProtectSnapshot(_ context.Context, volume, name string, protect bool) error {
	verb, kind := "protect", opProtectSnapshot
	if !protect {
		verb, kind = "unprotect", opUnprotectSnapshot
	}
	_, err := s.op(nil, func() (*op, error) {
		n, err := s.findSnapshotLocked(volume, name)
		if err != nil {
			return nil, err
		}
		return &op{Kind: kind, Volume: n.volume.id, Node: n.id}, nil
	})
	if err != nil {
		return fmt.Errorf("%s snapshot %q of volume %q: %w", verb, name, volume, err)
	}
	return nil
}

// protectedLocked returns a protected snapshot of the volume, or nil. Store.tree is held.
func (v *Volume) protectedLocked() *node {
	for _, n := range v.nodes {
		if n.flags&nodeProtected != 0 && n.visibleLocked() {
			return n
		}
	}
	return nil
}

// clonesLocked counts the volumes that began as each state of the volume, and still need it or are needed themselves. Store.tree is held.
func (v *Volume) clonesLocked() map[*node]int {
	clones := map[*node]int{}
	for _, n := range v.nodes {
		clones[n] += n.children
		if p := n.parent.Load(); p != nil && p.volume == v {
			clones[p]--
		}
	}
	return clones
}
