package control

import (
	"context"
	"fmt"
	"time"

	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// Bitmap is what a user sees of a named bitmap: what changed in a volume since a moment. Clients ask for it by NBD, as the metadata context qemu:dirty-bitmap:NAME.
type Bitmap struct {
	Volume string
	Name   string
	Since  time.Time // when it was added, or cleared last
	// Sequence is the place in the order of all changes of the store from which on changes count.
	Sequence     uint64
	All          bool   // everything counts as changed: the volume was rolled back since
	GranuleBytes uint64 // how finely it tells what changed
}

// AddBitmap begins to remember what changes in a volume, attached or not. Its name is that of no other bitmap and of no snapshot of the volume.
func (c *Control) AddBitmap(ctx context.Context, volume, name string) (added Bitmap, err error) {
	err = c.onBitmap(ctx, "add", volume, name, func() error {
		if err := c.refuseRestoring("add a bitmap to", volume); err != nil {
			return err // what comes from the backup would count as changed
		}
		info, err := c.engine.AddBitmap(ctx, volume, name)
		added = bitmapOf(volume, info)
		return err
	})
	return added, err
}

// ClearBitmap lets a bitmap begin again from now.
func (c *Control) ClearBitmap(ctx context.Context, volume, name string) (cleared Bitmap, err error) {
	err = c.onBitmap(ctx, "clear", volume, name, func() error {
		info, err := c.engine.ClearBitmap(ctx, volume, name)
		cleared = bitmapOf(volume, info)
		return err
	})
	return cleared, err
}

// RemoveBitmap forgets a bitmap. Clients that asked for it get errors when they ask again.
func (c *Control) RemoveBitmap(ctx context.Context, volume, name string) error {
	return c.onBitmap(ctx, "remove", volume, name, func() error { return c.engine.RemoveBitmap(ctx, volume, name) })
}

// Bitmaps lists the bitmaps of a volume, those first that began first.
func (c *Control) Bitmaps(volume string) ([]Bitmap, error) {
	if err := checkVolume(volume); err != nil {
		return nil, fmt.Errorf("list bitmaps: %w", err)
	}
	infos, err := c.engine.Bitmaps(volume)
	if err != nil {
		return nil, err
	}
	all := make([]Bitmap, 0, len(infos))
	for _, info := range infos {
		all = append(all, bitmapOf(volume, info))
	}
	return all, nil
}

// onBitmap runs do while it holds the volume's name. What do returns says itself what failed.
func (c *Control) onBitmap(ctx context.Context, verb, volume, name string, do func() error) error {
	err := checkVolume(volume)
	if err == nil {
		err = CheckName("bitmap", name)
	}
	if err != nil {
		return fmt.Errorf("%s bitmap: %w", verb, err)
	}
	release, err := c.names.hold(ctx, "bitmap work", volume)
	if err != nil {
		return fmt.Errorf("%s bitmap %s of volume %s: %w", verb, name, volume, err)
	}
	defer release()
	return do()
}

func bitmapOf(volume string, info blockstore.BitmapInfo) Bitmap {
	return Bitmap{Volume: volume, Name: info.Name, Since: info.Since, Sequence: uint64(info.Epoch), All: info.All, GranuleBytes: blockstore.BitmapGranule}
}
