package control

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/control/transfer"
)

// Prefixes of names that control keeps for itself; what has them at a start was left by a crash.
const (
	importPrefix = ".import-"
	exportPrefix = ".export-"
)

// firstImportSize is the size of a volume whose content has no known size, when it begins. It doubles as needed.
const firstImportSize = 64 << 20

// ImportSpec is what an imported volume shall be. Its size comes with the stream.
type ImportSpec struct {
	Name        string
	Chunking    string // empty: cdc
	Mode        string // empty: writeback
	KeepPartial bool   // keep what came when the stream fails
}

// Import makes a volume from a stream (package transfer). The volume appears under its name when it is complete and durable; a failure,
// of this process too, leaves nothing of it unless KeepPartial says so. It holds the name all the time.
func (c *Control) Import(ctx context.Context, spec ImportSpec, body io.Reader) (Volume, error) {
	volume, err := c.importVolume(ctx, spec, body)
	if err != nil {
		return Volume{}, fmt.Errorf("import volume %q: %w", spec.Name, err)
	}
	return volume, nil
}

func (c *Control) importVolume(ctx context.Context, spec ImportSpec, body io.Reader) (Volume, error) {
	ctx, done, err := c.work(ctx)
	if err != nil {
		return Volume{}, err
	}
	defer done()
	checked, err := VolumeSpec{Name: spec.Name, Chunking: spec.Chunking, Mode: spec.Mode}.checkButSize()
	if err != nil {
		return Volume{}, err
	}
	release, err := c.names.holdLong(ctx, "import", spec.Name)
	if err != nil {
		return Volume{}, err
	}
	defer release()
	if _, err := c.engine.Volume(spec.Name); !errors.Is(err, block.ErrNotFound) {
		return Volume{}, errors.Join(err, block.ErrExists)
	}
	stream, err := transfer.NewReader(body)
	if err != nil {
		return Volume{}, err
	}
	checked.Name = importPrefix + strings.ToLower(rand.Text())
	if checked.SizeBytes, err = importSize(stream.Size()); err != nil {
		return Volume{}, err
	}
	if _, err := c.engine.CreateVolume(ctx, checked); err != nil {
		return Volume{}, err
	}
	if err := c.fill(ctx, checked, stream, spec); err != nil {
		return Volume{}, err
	}
	info, err := c.engine.Volume(spec.Name)
	return c.volume(info), err
}

// importSize is the size that a volume begins with.
func importSize(announced uint64) (uint64, error) {
	switch {
	case announced == transfer.UnknownSize:
		return firstImportSize, nil
	case announced > block.MaxVolumeSize:
		return 0, checkSize(announced)
	}
	return roundUp(announced), checkSize(roundUp(announced))
}

// fill takes the stream into the hidden volume and gives it its name, or deletes it.
func (c *Control) fill(ctx context.Context, hidden blockstore.VolumeSpec, stream *transfer.Reader, spec ImportSpec) error {
	size, err := c.receive(ctx, hidden, stream)
	keep := err == nil || spec.KeepPartial && size > 0
	cleanup := context.WithoutCancel(ctx) // the hidden volume must go, or get its name, whoever hung up
	var finish error
	if keep {
		finish = c.name(cleanup, hidden, size, spec.Name)
	}
	if !keep || finish != nil {
		return errors.Join(err, finish, c.discard(cleanup, hidden.Name))
	}
	if err != nil {
		return fmt.Errorf("only the first %d bytes came and are kept: %w", size, err)
	}
	return nil
}

// discard deletes a hidden volume, unless it has got its name already.
func (c *Control) discard(ctx context.Context, name string) error {
	if err := c.engine.DeleteVolume(ctx, name); !errors.Is(err, block.ErrNotFound) {
		return err
	}
	return nil
}

// receive writes the stream to the volume and makes it durable. The size of the content is returned with an error too.
func (c *Control) receive(ctx context.Context, hidden blockstore.VolumeSpec, stream *transfer.Reader) (uint64, error) {
	device, err := c.engine.OpenDevice(hidden.Name, "")
	if err != nil {
		return 0, err
	}
	have := hidden.SizeBytes
	target := transfer.Target{
		Write: func(ctx context.Context, batch []block.Write) error { return device.Write(ctx, batch, false) },
		Reserve: func(ctx context.Context, need uint64) (uint64, error) {
			if need <= have {
				return have, nil
			}
			next := min(max(roundUp(need), 2*have), block.MaxVolumeSize)
			if err := c.engine.ResizeVolume(ctx, hidden.Name, next); err != nil {
				return have, err
			}
			have = next
			return have, nil
		},
	}
	size, err := transfer.Receive(ctx, stream, target, nil)
	return size, errors.Join(err, device.Flush(context.WithoutCancel(ctx)), device.Close())
}

// name makes a filled volume visible.
func (c *Control) name(ctx context.Context, hidden blockstore.VolumeSpec, size uint64, name string) error {
	if size == 0 {
		return fmt.Errorf("the input is empty: %w", block.ErrInvalid)
	}
	info, err := c.engine.Volume(hidden.Name)
	if err != nil {
		return err
	}
	if roundUp(size) != info.SizeBytes {
		if err := c.engine.ResizeVolume(ctx, hidden.Name, roundUp(size)); err != nil {
			return err
		}
	}
	if err := c.engine.RenameVolume(ctx, hidden.Name, name); err != nil {
		return err
	}
	// One log has both, so a flush of the volume makes its new name durable.
	device, err := c.engine.OpenDevice(name, "")
	if err != nil {
		return err
	}
	return errors.Join(device.Flush(ctx), device.Close())
}

// Export writes the content of a snapshot as a stream, or of the volume as it is now when snapshot is empty; writers are not disturbed. If there are parts only these ranges of a snapshot are
// sent, one after the other, as if they were all of its content. An error before the first byte is returned; a later one is written into the stream too.
func (c *Control) Export(ctx context.Context, volume, snapshot string, parts []block.Range, w io.Writer) error {
	if err := c.exportVolume(ctx, volume, snapshot, parts, w); err != nil {
		return fmt.Errorf("export volume %q: %w", volume, err)
	}
	return nil
}

func (c *Control) exportVolume(ctx context.Context, volume, snapshot string, parts []block.Range, w io.Writer) (err error) {
	ctx, done, err := c.work(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := checkVolume(volume); err != nil {
		return err
	}
	if err := c.refuseRestoring("export", volume); err != nil {
		return err
	}
	point := ""
	if snapshot == "" && len(parts) == 0 {
		if point, err = c.stateToRead(volume); err != nil {
			return err
		}
		snapshot = point
	}
	if snapshot == "" {
		if len(parts) > 0 {
			return fmt.Errorf("a part of what the volume is now: name a snapshot: %w", block.ErrInvalid)
		}
		if _, err := c.engine.Volume(volume); err != nil {
			return err // that names the volume only
		}
		snapshot = exportPrefix + strings.ToLower(rand.Text())
		if _, err := c.engine.CreateSnapshot(ctx, volume, snapshot); err != nil {
			return err
		}
		defer func() {
			err = errors.Join(err, c.engine.DeleteSnapshot(context.WithoutCancel(ctx), volume, snapshot))
		}()
	} else if err := checkSnapshot(snapshot); err != nil && point == "" {
		return err
	}
	device, err := c.engine.OpenDevice(volume, snapshot)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	if len(parts) == 0 {
		parts = []block.Range{{Len: device.Size()}}
	}
	source, err := newSparse(ctx, device, parts)
	if err != nil {
		return err
	}
	return send(ctx, source, w)
}

func send(ctx context.Context, source *sparse, w io.Writer) error {
	stream, err := transfer.NewWriter(w, source.size)
	if err != nil {
		return err
	}
	if err := transfer.Send(ctx, stream, source, source.size, nil); err != nil {
		return errors.Join(err, stream.Fail(err.Error()))
	}
	return nil
}

// removeLeftovers deletes what imports, exports and clones left that were cut short by the death of the process.
func (c *Control) removeLeftovers(ctx context.Context) error {
	for _, v := range c.engine.Volumes() {
		if strings.HasPrefix(v.Name, importPrefix) {
			c.log.Info("deleting a volume whose import was cut short", "name", v.Name)
			if err := c.engine.DeleteVolume(ctx, v.Name); err != nil {
				return fmt.Errorf("delete the unfinished import %q: %w", v.Name, err)
			}
			continue
		}
		if v.Snapshots == 0 {
			continue
		}
		if err := c.removeHiddenSnapshots(ctx, v.Name); err != nil {
			return err
		}
	}
	return nil
}

// removeHiddenSnapshots deletes those that an export or a clone of a volume's present content made.
func (c *Control) removeHiddenSnapshots(ctx context.Context, volume string) error {
	snapshots, err := c.engine.Snapshots(volume)
	if err != nil {
		return fmt.Errorf("list snapshots of %q: %w", volume, err)
	}
	for _, s := range snapshots {
		if !hidden(s.Name) || strings.HasPrefix(s.Name, pointPrefix) {
			continue
		}
		if err := c.engine.DeleteSnapshot(ctx, volume, s.Name); err != nil {
			return fmt.Errorf("delete the snapshot %s@%s of unfinished work: %w", volume, s.Name, err)
		}
	}
	return nil
}
