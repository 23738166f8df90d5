package control

import (
	"cmp"
	"context"
	"fmt"
)

// ResizeSpec says what size a volume shall have, and what may be done for it.
type ResizeSpec struct {
	SizeBytes uint64
	// Shrink allows a smaller size, which loses what lies beyond it.
	Shrink bool
	// Force allows that for a volume that is attached, whose clients do not expect it.
	Force bool
	// KeepConnections leaves the clients of a volume alone. They go on with the size they know.
	KeepConnections bool
}

// ResizeVolume sets the size of a volume, attached or not. NBD tells a client the size when it connects, and no client listens for news of it, so the connections are ended after
// the requests in flight: who comes back sees the new size. The size is durable before that.
func (c *Control) ResizeVolume(ctx context.Context, name string, spec ResizeSpec) (Volume, error) {
	if err := checkSize(spec.SizeBytes); err != nil {
		return Volume{}, fmt.Errorf("resize volume %q: %w", name, err)
	}
	err := c.change(ctx, "resize", name, nil, func() error { return c.resize(ctx, name, spec) })
	if err != nil {
		return Volume{}, err
	}
	return c.Volume(name)
}

func (c *Control) resize(ctx context.Context, name string, spec ResizeSpec) error {
	info, err := c.visible(name)
	if err == nil {
		err = cmp.Or(c.refuseRestoring("resize", name), c.refuseReplica("resize", name))
	}
	if err != nil {
		return err
	}
	attached := c.attachmentOf(name) != nil
	if spec.SizeBytes < info.SizeBytes {
		if err := refuseShrink(name, info.SizeBytes, attached, spec); err != nil {
			return err
		}
	}
	if err := c.engine.ResizeVolume(ctx, name, spec.SizeBytes); err != nil {
		return err
	}
	if !attached || spec.KeepConnections || spec.SizeBytes == info.SizeBytes {
		return nil
	}
	return c.reconnect(ctx, name)
}

func refuseShrink(name string, sizeBytes uint64, attached bool, spec ResizeSpec) error {
	switch {
	case !spec.Shrink:
		return fmt.Errorf("resize volume %q: %d bytes are less than its %d, and what lies beyond would be lost: %w", name, spec.SizeBytes, sizeBytes, ErrRefused)
	case attached && !spec.Force:
		return fmt.Errorf("shrink volume %q: it is attached, and a guest that uses what goes away meets errors; detach it first, or use force: %w", name, ErrRefused)
	}
	return nil
}

// reconnect makes the volume as it is durable and ends the connections of its clients after the requests in flight. Who comes back is let in.
func (c *Control) reconnect(ctx context.Context, volume string) error {
	device, err := c.engine.OpenDevice(volume, "")
	if err != nil {
		return fmt.Errorf("resize volume %q: it has its new size, but its clients were not told: %w", volume, err)
	}
	err = device.Flush(ctx)
	if closed := device.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("resize volume %q: it has its new size, but its clients were not told: %w", volume, err)
	}
	drain, cancel := context.WithTimeout(ctx, c.opts.Config.NBD.DrainTimeout)
	defer cancel()
	if err := c.nbd.DropConnections(drain, volume); err != nil {
		c.log.Warn("connections were cut off", "volume", volume, "reason", err)
	}
	return nil
}
