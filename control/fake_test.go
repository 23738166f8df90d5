package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// fakeEngine is a store in memory. It outlives its Control, as a data directory does.
type fakeEngine struct {
	mu      sync.Mutex
	volumes map[string]*fakeVolume
	nextID  block.VolumeID
	closed  int
	// writeErr, when set, is what writes to devices return.
	writeErr error
	// fua counts the writes that were to be durable.
	fua int
	// settling, when set, is called by each Settle, which ends with its result.
	settling func() error
	// collecting is the same for CollectGarbage.
	collecting func(context.Context) error
	gcPaused   atomic.Bool
	// restoring, when set, is called by each RestorePoint when the volume is there, which ends with its result.
	restoring func(name string) error
	// undeletable makes DeleteSnapshot fail.
	undeletable atomic.Bool
	// colder counts the calls of SettleCold.
	colder int
	// explaining, when set, is called by each Explain, which ends with its error.
	explaining func(ctx context.Context) error
	alarms     Alarms
	encryption *blockstore.Encryption
	// state, when set, changes what Stats, Redundancy and Damages say.
	state func(*blockstore.Stats, *blockstore.Redundancy, *[]blockstore.Damage)
	// changes is what every Diff tells.
	changes []blockstore.Change
}

type fakeVolume struct {
	info      blockstore.VolumeInfo
	blocks    map[uint64][]byte // by block number
	snapshots []*fakeSnapshot
	bitmaps   []blockstore.BitmapInfo
	open      int
}

type fakeSnapshot struct {
	info   blockstore.SnapshotInfo
	blocks map[uint64][]byte
	open   int
}

var _ Engine = (*fakeEngine)(nil)

func newFakeEngine() *fakeEngine { return &fakeEngine{volumes: map[string]*fakeVolume{}} }

func (e *fakeEngine) find(name string) (*fakeVolume, error) {
	if v := e.volumes[name]; v != nil {
		return v, nil
	}
	return nil, fmt.Errorf("volume %q: %w", name, block.ErrNotFound)
}

func (v *fakeVolume) find(name string) (*fakeSnapshot, error) {
	for _, s := range v.snapshots {
		if s.info.Name == name {
			return s, nil
		}
	}
	return nil, fmt.Errorf("snapshot %q of volume %q: %w", name, v.info.Name, block.ErrNotFound)
}

func (v *fakeVolume) now() blockstore.VolumeInfo {
	info := v.info
	info.Snapshots = len(v.snapshots)
	info.Bitmaps = nil
	for _, b := range v.bitmaps {
		info.Bitmaps = append(info.Bitmaps, b.Name)
	}
	return info
}

func (e *fakeEngine) CreateVolume(_ context.Context, spec blockstore.VolumeSpec) (blockstore.VolumeInfo, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.volumes[spec.Name] != nil {
		return blockstore.VolumeInfo{}, fmt.Errorf("create volume %q: %w", spec.Name, block.ErrExists)
	}
	e.nextID++
	v := &fakeVolume{blocks: map[uint64][]byte{}, info: blockstore.VolumeInfo{
		ID: e.nextID, UUID: block.UUID{15: byte(e.nextID)}, Name: spec.Name, SizeBytes: spec.SizeBytes,
		Chunking: spec.Chunking, Mode: spec.Mode, CreatedAt: time.Unix(1700000000, 0).UTC(),
	}}
	e.volumes[spec.Name] = v
	return v.info, nil
}

func (e *fakeEngine) Volumes() []blockstore.VolumeInfo {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []blockstore.VolumeInfo
	for _, v := range e.volumes {
		list = append(list, v.now())
	}
	slices.SortFunc(list, func(a, b blockstore.VolumeInfo) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

func (e *fakeEngine) Volume(name string) (blockstore.VolumeInfo, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	v, err := e.find(name)
	if err != nil {
		return blockstore.VolumeInfo{}, err
	}
	return v.now(), nil
}

func (e *fakeEngine) RenameVolume(_ context.Context, name, newName string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	v, err := e.find(name)
	if err != nil {
		return err
	}
	if e.volumes[newName] != nil {
		return fmt.Errorf("rename volume %q to %q: %w", name, newName, block.ErrExists)
	}
	delete(e.volumes, name)
	v.info.Name = newName
	e.volumes[newName] = v
	return nil
}

func (e *fakeEngine) ResizeVolume(_ context.Context, name string, size uint64) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	v, err := e.find(name)
	if err != nil {
		return err
	}
	v.info.SizeBytes = size
	maps.DeleteFunc(v.blocks, func(n uint64, _ []byte) bool { return n*block.Size >= size })
	return nil
}

func (e *fakeEngine) SetVolumeLimits(name string, limits blockstore.VolumeLimits) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	v, err := e.find(name)
	if err == nil {
		v.info.Limits = limits
	}
	return err
}

func (e *fakeEngine) SetVolumeQuota(name string, quota blockstore.VolumeQuota, _ bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	v, err := e.find(name)
	if err == nil {
		v.info.Quota = quota
	}
	return err
}

func (e *fakeEngine) Alarms() *Alarms                    { return &e.alarms }
func (e *fakeEngine) Encryption() *blockstore.Encryption { return e.encryption }

func (e *fakeEngine) DeleteVolume(_ context.Context, name string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	v, err := e.find(name)
	if err != nil {
		return err
	}
	if v.open > 0 {
		return fmt.Errorf("delete volume %q: %w", name, block.ErrInUse)
	}
	delete(e.volumes, name)
	return nil
}

func (e *fakeEngine) CreateSnapshot(_ context.Context, volume, name string) (blockstore.SnapshotInfo, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	v, err := e.find(volume)
	if err != nil {
		return blockstore.SnapshotInfo{}, err
	}
	if _, err := v.find(name); err == nil {
		return blockstore.SnapshotInfo{}, fmt.Errorf("create snapshot %q: %w", name, block.ErrExists)
	}
	s := &fakeSnapshot{
		info:   blockstore.SnapshotInfo{Name: name, SizeBytes: v.info.SizeBytes, CreatedAt: time.Unix(1700000001, 0).UTC()},
		blocks: maps.Clone(v.blocks),
	}
	v.snapshots = append(v.snapshots, s)
	return s.info, nil
}

func (e *fakeEngine) CreateSnapshots(ctx context.Context, names []blockstore.StateName, automatic bool) (all []blockstore.SnapshotInfo, err error) {
	for _, n := range names {
		if e.volumes[n.Volume] == nil {
			return nil, fmt.Errorf("volume %q: %w", n.Volume, block.ErrNotFound)
		}
	}
	for _, n := range names {
		if _, err := e.CreateSnapshot(ctx, n.Volume, n.Snapshot); err != nil {
			return nil, err
		}
		e.mu.Lock()
		s, _ := e.volumes[n.Volume].find(n.Snapshot)
		s.info.Automatic, s.info.Epoch = automatic, 7
		all = append(all, s.info)
		e.mu.Unlock()
	}
	return all, nil
}

func (e *fakeEngine) Snapshots(volume string) ([]blockstore.SnapshotInfo, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	v, err := e.find(volume)
	if err != nil {
		return nil, err
	}
	var list []blockstore.SnapshotInfo
	for _, s := range v.snapshots {
		list = append(list, s.info)
	}
	return list, nil
}

// edit changes what the engine says of a snapshot, and returns its name.
func (e *fakeEngine) edit(volume string, i int, change func(*blockstore.SnapshotInfo)) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	info := &e.volumes[volume].snapshots[i].info
	change(info)
	return info.Name
}

func (e *fakeEngine) DeleteSnapshot(_ context.Context, volume, name string) error {
	if e.undeletable.Load() {
		return errors.New("fake: no snapshot is deleted")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	v, err := e.find(volume)
	if err != nil {
		return err
	}
	s, err := v.find(name)
	if err != nil {
		return err
	}
	if s.open > 0 {
		return fmt.Errorf("delete snapshot %q: %w", name, block.ErrInUse)
	}
	if s.info.Protected {
		return fmt.Errorf("delete snapshot %q: %w", name, block.ErrProtected)
	}
	v.snapshots = slices.DeleteFunc(v.snapshots, func(other *fakeSnapshot) bool { return other == s })
	return nil
}

func (e *fakeEngine) RenameSnapshot(_ context.Context, volume, name, newName string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	v, err := e.find(volume)
	if err != nil {
		return err
	}
	if _, err := v.find(newName); err == nil {
		return fmt.Errorf("rename snapshot %q: %w", name, block.ErrExists)
	}
	s, err := v.find(name)
	if err == nil {
		s.info.Name = newName
	}
	return err
}

func (e *fakeEngine) ProtectSnapshot(_ context.Context, volume, name string, protect bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	v, err := e.find(volume)
	if err != nil {
		return err
	}
	s, err := v.find(name)
	if err == nil {
		s.info.Protected = protect
	}
	return err
}

// bitmap runs do with a volume and the place of a bitmap among its bitmaps, -1 if there is none.
func (e *fakeEngine) bitmap(volume, name string, do func(v *fakeVolume, i int) error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	v, err := e.find(volume)
	if err != nil {
		return err
	}
	return do(v, slices.IndexFunc(v.bitmaps, func(b blockstore.BitmapInfo) bool { return b.Name == name }))
}

func (e *fakeEngine) AddBitmap(_ context.Context, volume, name string) (info blockstore.BitmapInfo, err error) {
	err = e.bitmap(volume, name, func(v *fakeVolume, i int) error {
		if i >= 0 {
			return fmt.Errorf("add bitmap %q: %w", name, block.ErrExists)
		}
		info = blockstore.BitmapInfo{Name: name, Epoch: 3, Since: time.Unix(1700000002, 0).UTC()}
		v.bitmaps = append(v.bitmaps, info)
		return nil
	})
	return info, err
}

func (e *fakeEngine) ClearBitmap(_ context.Context, volume, name string) (info blockstore.BitmapInfo, err error) {
	err = e.bitmap(volume, name, func(v *fakeVolume, i int) error {
		if i < 0 {
			return fmt.Errorf("clear bitmap %q: %w", name, block.ErrNotFound)
		}
		v.bitmaps[i].Epoch++
		info = v.bitmaps[i]
		return nil
	})
	return info, err
}

func (e *fakeEngine) RemoveBitmap(_ context.Context, volume, name string) error {
	return e.bitmap(volume, name, func(v *fakeVolume, i int) error {
		if i < 0 {
			return fmt.Errorf("remove bitmap %q: %w", name, block.ErrNotFound)
		}
		v.bitmaps = slices.Delete(v.bitmaps, i, i+1)
		return nil
	})
}

func (e *fakeEngine) Bitmaps(volume string) (all []blockstore.BitmapInfo, err error) {
	err = e.bitmap(volume, "", func(v *fakeVolume, _ int) error {
		all = slices.Clone(v.bitmaps)
		return nil
	})
	return all, err
}

func (e *fakeEngine) Diff(_ context.Context, from, to blockstore.StateName, emit func(blockstore.Change) bool) error {
	for _, n := range []blockstore.StateName{from, to} {
		d, err := e.OpenDevice(n.Volume, n.Snapshot)
		if err != nil {
			return err
		}
		if err := d.Close(); err != nil {
			return err
		}
	}
	for _, c := range e.changes {
		if !emit(c) {
			break
		}
	}
	return nil
}

func (e *fakeEngine) SnapshotFrees(_ context.Context, volume, name string) (uint64, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	v, err := e.find(volume)
	if err != nil {
		return 0, err
	}
	s, err := v.find(name)
	if err != nil {
		return 0, err
	}
	return uint64(len(s.blocks)) * block.Size, nil
}

func (e *fakeEngine) Rollback(_ context.Context, volume, name string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	v, err := e.find(volume)
	if err != nil {
		return err
	}
	s, err := v.find(name)
	if err != nil {
		return err
	}
	v.blocks, v.info.SizeBytes = maps.Clone(s.blocks), s.info.SizeBytes
	return nil
}

func (e *fakeEngine) Clone(ctx context.Context, volume, snapshot, newName string) (blockstore.VolumeInfo, error) {
	e.mu.Lock()
	v, err := e.find(volume)
	if err != nil {
		e.mu.Unlock()
		return blockstore.VolumeInfo{}, err
	}
	blocks, size := v.blocks, v.info.SizeBytes
	if snapshot != "" {
		s, err := v.find(snapshot)
		if err != nil {
			e.mu.Unlock()
			return blockstore.VolumeInfo{}, err
		}
		blocks, size = s.blocks, s.info.SizeBytes
	}
	blocks = maps.Clone(blocks)
	e.mu.Unlock()
	if _, err := e.CreateVolume(ctx, blockstore.VolumeSpec{Name: newName, SizeBytes: size}); err != nil {
		return blockstore.VolumeInfo{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	clone := e.volumes[newName]
	clone.blocks = blocks
	clone.info.Origin = &blockstore.Origin{Volume: volume, Snapshot: snapshot}
	return clone.now(), nil
}

func (e *fakeEngine) OpenDevice(volume, snapshot string) (Device, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	v, err := e.find(volume)
	if err != nil {
		return nil, err
	}
	d := &fakeDevice{engine: e, volume: v}
	if snapshot != "" {
		if d.snapshot, err = v.find(snapshot); err != nil {
			return nil, err
		}
		d.snapshot.open++
	}
	v.open++
	return d, nil
}

func (e *fakeEngine) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed++
	for name, v := range e.volumes {
		if v.open > 0 {
			return fmt.Errorf("%d devices of %q are open", v.open, name)
		}
	}
	return nil
}

// The fake keeps no history: what it is asked for is tested with the real engine (e2e). With restoring set, each moment is the present one.

func noHistory(volume string) error {
	return fmt.Errorf("volume %q keeps no history: %w", volume, block.ErrNotFound)
}

func (e *fakeEngine) HoldHistory(bool) {}

func (e *fakeEngine) SetHistory(_ context.Context, volume string, _ blockstore.HistoryPolicy) error {
	return noHistory(volume)
}

func (e *fakeEngine) History(volume string) (blockstore.HistoryInfo, error) {
	return blockstore.HistoryInfo{}, noHistory(volume)
}

func (e *fakeEngine) HistoryPoints(_ context.Context, volume string, _ blockstore.PointQuery) ([]blockstore.Point, error) {
	return nil, noHistory(volume)
}

func (e *fakeEngine) HistoryLoss(_ context.Context, volume string, _ blockstore.HistoryPolicy) (blockstore.HistoryLoss, error) {
	return blockstore.HistoryLoss{}, noHistory(volume)
}

func (e *fakeEngine) MarkHistory(_ context.Context, volume, label string) (blockstore.Point, error) {
	if e.restoring != nil {
		return blockstore.Point{Kind: "mark", Label: label}, nil
	}
	return blockstore.Point{}, noHistory(volume)
}

func (e *fakeEngine) HistoryActivity(context.Context, string, time.Duration) ([]blockstore.Activity, error) {
	return nil, block.ErrNotFound
}

func (e *fakeEngine) OpenPoint(_ context.Context, volume string, _ blockstore.Moment) (Device, OpenedMoment, error) {
	if e.restoring == nil {
		return nil, OpenedMoment{}, noHistory(volume)
	}
	d, err := e.OpenDevice(volume, "")
	return d, OpenedMoment{Seq: 7}, err
}

func (e *fakeEngine) RestorePoint(ctx context.Context, d Device, name string) error {
	if e.restoring == nil {
		return noHistory(name)
	}
	if _, err := e.CreateVolume(ctx, blockstore.VolumeSpec{Name: name, SizeBytes: d.Size()}); err != nil {
		return err
	}
	return e.restoring(name)
}
