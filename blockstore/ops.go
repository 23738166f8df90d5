package blockstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

// maxNameBytes bounds names of volumes and snapshots.
const maxNameBytes = 128

// CheckName reports why a volume or snapshot cannot have a name.
func CheckName(name string) error {
	bad := func(why string) error { return fmt.Errorf("name %q %s: %w", name, why, block.ErrInvalid) }
	switch {
	case name == "":
		return bad("is empty")
	case len(name) > maxNameBytes:
		return fmt.Errorf("name of %d bytes is longer than %d: %w", len(name), maxNameBytes, block.ErrInvalid)
	case strings.Trim(name, ".") == "":
		return bad("consists of dots")
	case name[0] == '-':
		return bad("begins with a dash")
	}
	for _, c := range []byte(name) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-') {
			return bad("has a character that is none of A-Z a-z 0-9 . _ -")
		}
	}
	return nil
}

func checkSize(size uint64) error {
	switch {
	case size < block.SectorSize:
		return fmt.Errorf("size of %d B is below %d B: %w", size, block.SectorSize, block.ErrInvalid)
	case size%block.SectorSize != 0:
		return fmt.Errorf("size of %d B is no multiple of %d B: %w", size, block.SectorSize, block.ErrInvalid)
	case size > block.MaxVolumeSize:
		return fmt.Errorf("size of %d B is above %d B: %w", size, uint64(block.MaxVolumeSize), block.ErrInvalid)
	}
	return nil
}

func (s *Store) cutOf(c Chunking) (cdc.Params, error) {
	p := s.super.Cut
	switch {
	case c.FixedBytes != 0 && c.AverageBytes != 0:
		return p, fmt.Errorf("chunks of %d B and of %d B on average: %w", c.FixedBytes, c.AverageBytes, block.ErrInvalid)
	case c.FixedBytes != 0:
		p = cdc.FixedSize(c.FixedBytes)
	case c.AverageBytes > 1<<20: // no overflow below
		return p, fmt.Errorf("chunks of %d B on average: %w", c.AverageBytes, block.ErrInvalid)
	case c.AverageBytes != 0 && (p.Kind != cdc.CDC || p.Avg != c.AverageBytes):
		p = cdc.Params{Kind: cdc.CDC, Min: c.AverageBytes / 4, Avg: c.AverageBytes, Max: 4 * c.AverageBytes, TableVersion: cdc.TableVersion1}
	}
	return p, p.Validate()
}

// op runs one control operation: prepare validates under Store.tree and fills in the record; the record is logged and applied. Its effect survives the death of the
// process at once, and a power loss after the next sync, which is started here but not waited for. Nothing writes to the volumes whose heads it closes from before prepare until it is applied.
func (s *Store) op(closes []*Volume, prepare func() (*op, error)) (*op, error) {
	for {
		o, err := s.tryOp(closes, prepare)
		if !errors.Is(err, errLogFull) {
			return o, err
		}
		if err := s.space.waitForRoom(s.ctx); err != nil {
			return nil, err
		}
	}
}

// errLogFull says that even the log's reserve is used up for now. Whoever waits for room must hold no lock that destage needs.
var errLogFull = errors.New("the log is full")

func (s *Store) tryOp(closes []*Volume, prepare func() (*op, error)) (*op, error) {
	s.ops.Lock()
	defer s.ops.Unlock()
	if s.closed.Load() {
		return nil, block.ErrClosed
	}
	for _, v := range closes { // in any order, as Store.ops is held and nobody else has two
		v.mu.Lock()
		defer v.mu.Unlock()
	}
	s.tree.RLock()
	o, err := prepare()
	s.tree.RUnlock()
	if err != nil {
		return nil, err
	}
	if err := s.need(o); err != nil {
		return nil, err
	}
	if err := s.numberMembers(o); err != nil {
		return nil, err
	}
	if err := s.logOp(o); err != nil {
		return nil, err
	}
	s.at(afterControl)
	s.tree.Lock()
	err = s.applyLocked(o)
	s.tree.Unlock()
	if err != nil {
		return nil, err
	}
	s.worker.kick()
	return o, nil
}

// CreateVolume makes an empty volume.
func (s *Store) CreateVolume(_ context.Context, spec VolumeSpec) (VolumeInfo, error) {
	fail := func(err error) (VolumeInfo, error) {
		return VolumeInfo{}, fmt.Errorf("create volume %q: %w", spec.Name, err)
	}
	if err := CheckName(spec.Name); err != nil {
		return fail(err)
	}
	if err := checkSize(spec.SizeBytes); err != nil {
		return fail(err)
	}
	cut, err := s.cutOf(spec.Chunking)
	if err != nil {
		return fail(err)
	}
	_, err = s.op(nil, func() (*op, error) {
		if s.names[spec.Name] != nil {
			return nil, block.ErrExists
		}
		return &op{Kind: opCreate, Volume: block.VolumeID(s.nextVolume), UUID: block.UUID(uuid.New()), Size: spec.SizeBytes, Mode: spec.Mode, Cut: cut, Name: spec.Name}, nil
	})
	if err != nil {
		return fail(err)
	}
	return s.Volume(spec.Name)
}

// RenameVolume gives a volume another name.
func (s *Store) RenameVolume(_ context.Context, name, to string) error {
	err := CheckName(to)
	if err == nil {
		_, err = s.op(nil, func() (*op, error) {
			v, err := s.volumeLocked(name)
			if err != nil {
				return nil, err
			}
			if s.names[to] != nil {
				return nil, fmt.Errorf("volume %q: %w", to, block.ErrExists)
			}
			return &op{Kind: opRename, Volume: v.id, Name: to}, nil
		})
	}
	if err != nil {
		return fmt.Errorf("rename volume %q to %q: %w", name, to, err)
	}
	return nil
}

// ResizeVolume changes a volume's size. What a shrink cuts off is gone.
func (s *Store) ResizeVolume(ctx context.Context, name string, size uint64) error {
	err := s.resize(ctx, name, size)
	if err != nil {
		return fmt.Errorf("resize volume %q to %d B: %w", name, size, err)
	}
	return nil
}

func (s *Store) resize(ctx context.Context, name string, size uint64) error {
	if err := checkSize(size); err != nil {
		return err
	}
	v, err := s.lookupVolume(name)
	if err != nil {
		return err
	}
	// A block that the new end cuts through must not show its tail when the volume grows again.
	if old := v.size.Load(); size < old && size%block.Size != 0 {
		end := min(old, (size+block.Size-1)/block.Size*block.Size)
		if err := v.writeOne(ctx, block.Write{Off: size, Data: make([]byte, end-size)}); err != nil {
			return err
		}
	}
	_, err = s.op([]*Volume{v}, func() (*op, error) {
		if v.gone.Load() {
			return nil, block.ErrNotFound
		}
		o := &op{Kind: opResize, Volume: v.id, Size: size}
		if old := v.size.Load(); size < old {
			first, last := (size+block.Size-1)/block.Size, (old+block.Size-1)/block.Size
			o.Gone = block.Range{Off: first * block.Size, Len: (last - first) * block.Size}
		}
		return o, nil
	})
	return err
}

// DeleteVolume removes a volume and its snapshots. Space comes back in the background; what clones still need stays until they are gone. A volume with an open device is
// refused with ErrInUse, one with a protected snapshot with ErrProtected.
func (s *Store) DeleteVolume(_ context.Context, name string) error {
	v, err := s.lookupVolume(name)
	if err == nil {
		_, err = s.op([]*Volume{v}, func() (*op, error) {
			switch {
			case v.gone.Load():
				return nil, block.ErrNotFound
			case v.users > 0:
				return nil, fmt.Errorf("%d open devices: %w", v.users, block.ErrInUse)
			}
			if n := v.protectedLocked(); n != nil {
				return nil, fmt.Errorf("its snapshot %q: %w", n.name, block.ErrProtected)
			}
			return &op{Kind: opDelete, Volume: v.id}, nil
		})
	}
	if err != nil {
		return fmt.Errorf("delete volume %q: %w", name, err)
	}
	return nil
}

// CreateSnapshot freezes a volume's present content under a name. It takes microseconds whatever was written before, and waits for no device.
func (s *Store) CreateSnapshot(_ context.Context, volume, name string) (SnapshotInfo, error) {
	err := CheckName(name)
	var v *Volume
	if err == nil {
		v, err = s.lookupVolume(volume)
	}
	var n *node
	if err == nil {
		_, err = s.op([]*Volume{v}, func() (*op, error) {
			if v.gone.Load() {
				return nil, block.ErrNotFound
			}
			if err := s.freeNameLocked(v, name); err != nil {
				return nil, err
			}
			n = v.head.Load()
			return &op{Kind: opSnapshot, Volume: v.id, Name: name}, nil
		})
	}
	if err != nil {
		return SnapshotInfo{}, fmt.Errorf("create snapshot %q of volume %q: %w", name, volume, err)
	}
	s.tree.RLock()
	defer s.tree.RUnlock()
	return n.infoLocked(), nil
}

// DeleteSnapshot removes a snapshot. Space comes back in the background. One with an open device is refused with ErrInUse, a protected one with ErrProtected.
func (s *Store) DeleteSnapshot(_ context.Context, volume, name string) error {
	_, err := s.op(nil, func() (*op, error) {
		n, err := s.findSnapshotLocked(volume, name)
		if err != nil {
			return nil, err
		}
		if n.users > 0 {
			return nil, fmt.Errorf("%d open devices: %w", n.users, block.ErrInUse)
		}
		if n.flags&nodeProtected != 0 {
			return nil, block.ErrProtected
		}
		return &op{Kind: opDeleteSnapshot, Volume: n.volume.id, Node: n.id}, nil
	})
	if err != nil {
		return fmt.Errorf("delete snapshot %q of volume %q: %w", name, volume, err)
	}
	return nil
}

// Rollback makes a volume's content that of one of its snapshots again; what was written since is gone, newer snapshots stay. A volume with an open device is refused.
func (s *Store) Rollback(_ context.Context, volume, name string) error {
	v, err := s.lookupVolume(volume)
	if err == nil {
		_, err = s.op([]*Volume{v}, func() (*op, error) {
			n, err := s.findSnapshotLocked(volume, name)
			if err != nil {
				return nil, err
			}
			if v.users > 0 {
				return nil, fmt.Errorf("%d open devices: %w", v.users, block.ErrInUse)
			}
			return &op{Kind: opRollback, Volume: v.id, Node: n.id}, nil
		})
	}
	if err == nil {
		err = s.historian.rootAfterRollback(v)
	}
	if err != nil {
		return fmt.Errorf("roll volume %q back to snapshot %q: %w", volume, name, err)
	}
	return nil
}

// Clone makes a new, writable volume that begins as a snapshot of another one, or as its present content when snapshot is "". Nothing is copied. Cut parameters and write
// mode are inherited.
func (s *Store) Clone(ctx context.Context, volume, snapshot, name string) (VolumeInfo, error) {
	fail := func(err error) (VolumeInfo, error) {
		return VolumeInfo{}, fmt.Errorf("clone volume %q to %q: %w", volume, name, err)
	}
	if err := CheckName(name); err != nil {
		return fail(err)
	}
	hidden := ""
	if snapshot == "" {
		if _, err := s.lookupVolume(volume); err != nil {
			return fail(err) // that names the volume only
		}
		hidden = ".clone-" + uuid.NewString()
		if _, err := s.CreateSnapshot(ctx, volume, hidden); err != nil {
			return fail(err)
		}
		snapshot = hidden
	}
	_, err := s.op(nil, func() (*op, error) {
		n, err := s.findSnapshotLocked(volume, snapshot)
		if err != nil {
			return nil, err
		}
		if s.names[name] != nil {
			return nil, fmt.Errorf("volume %q: %w", name, block.ErrExists)
		}
		src := n.volume
		return &op{Kind: opClone, Volume: block.VolumeID(s.nextVolume), Node: n.id, UUID: block.UUID(uuid.New()), Size: n.size, Mode: WriteMode(src.mode.Load()), Cut: src.cut, Name: name}, nil
	})
	if hidden != "" {
		// The clone holds the state by itself; the name that made it possible goes away.
		if e := s.DeleteSnapshot(ctx, volume, hidden); err == nil {
			err = e
		}
	}
	if err != nil {
		return fail(err)
	}
	return s.Volume(name)
}

func (s *Store) volumeLocked(name string) (*Volume, error) {
	if v := s.names[name]; v != nil {
		return v, nil
	}
	return nil, fmt.Errorf("volume %q: %w", name, block.ErrNotFound)
}

func (s *Store) lookupVolume(name string) (*Volume, error) {
	s.tree.RLock()
	defer s.tree.RUnlock()
	return s.volumeLocked(name)
}

// snapshotsLocked returns the visible snapshots of a volume, oldest first.
func (s *Store) snapshotsLocked(v *Volume) []*node {
	var all []*node
	for _, n := range v.nodes {
		if n.visibleLocked() {
			all = append(all, n)
		}
	}
	slices.SortFunc(all, func(a, b *node) int { return int(int64(a.closed) - int64(b.closed)) })
	return all
}

func (s *Store) snapshotLocked(v *Volume, name string) *node {
	for _, n := range v.nodes {
		if n.name == name && n.visibleLocked() {
			return n
		}
	}
	return nil
}

func (s *Store) findSnapshotLocked(volume, name string) (*node, error) {
	v, err := s.volumeLocked(volume)
	if err != nil {
		return nil, err
	}
	if n := s.snapshotLocked(v, name); n != nil {
		return n, nil
	}
	return nil, fmt.Errorf("snapshot %q of volume %q: %w", name, volume, block.ErrNotFound)
}

func (n *node) infoLocked() SnapshotInfo {
	return SnapshotInfo{Name: n.name, SizeBytes: n.size, Epoch: block.Epoch(n.closed), CreatedAt: time.Unix(0, n.created), Protected: n.flags&nodeProtected != 0, Automatic: n.flags&nodeAutomatic != 0}
}

func (v *Volume) infoLocked() VolumeInfo {
	i := VolumeInfo{ID: v.id, UUID: v.uuid, Name: v.name, SizeBytes: v.size.Load(), Mode: WriteMode(v.mode.Load()), CreatedAt: time.Unix(0, v.created), Limits: v.limitsNow(), ReferencedBytes: v.referencedLocked()}
	i.Quota, i.Fill, i.Unique = v.quotaNow()
	i.Bitmaps = v.bitmapNamesLocked()
	switch {
	case v.cut.Kind == cdc.Fixed:
		i.Chunking.FixedBytes = v.cut.Avg
	case v.cut != v.s.super.Cut:
		i.Chunking.AverageBytes = v.cut.Avg
	}
	oldest := v.head.Load()
	for p := oldest.parent.Load(); p != nil && p.volume == v; p = p.parent.Load() {
		oldest = p
	}
	if origin := oldest.parent.Load(); origin != nil {
		i.Origin = &Origin{Volume: origin.volume.name}
		if origin.visibleLocked() {
			i.Origin.Snapshot = origin.name
		}
		if origin.volume.gone.Load() {
			i.Origin.Volume = ""
		}
	}
	return i
}

// Volumes describes all volumes, ordered by name.
func (s *Store) Volumes() []VolumeInfo {
	s.tree.RLock()
	defer s.tree.RUnlock()
	held := s.heldLocked()
	snaps := make(map[*Volume]int)
	for _, n := range s.nodes {
		if n.visibleLocked() {
			snaps[n.volume]++
		}
	}
	all := make([]VolumeInfo, 0, len(s.names))
	for _, v := range s.names {
		i := v.infoLocked()
		i.Snapshots, i.UndestagedBytes = snaps[v], uint64(held[v])
		all = append(all, i)
	}
	slices.SortFunc(all, func(a, b VolumeInfo) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Volume describes one volume, or returns ErrNotFound.
func (s *Store) Volume(name string) (VolumeInfo, error) {
	s.tree.RLock()
	defer s.tree.RUnlock()
	v, err := s.volumeLocked(name)
	if err != nil {
		return VolumeInfo{}, err
	}
	i := v.infoLocked()
	i.Snapshots, i.UndestagedBytes = len(s.snapshotsLocked(v)), uint64(s.heldLocked()[v])
	return i, nil
}

// Snapshots describes the snapshots of a volume, oldest first.
func (s *Store) Snapshots(volume string) ([]SnapshotInfo, error) {
	s.tree.RLock()
	defer s.tree.RUnlock()
	v, err := s.volumeLocked(volume)
	if err != nil {
		return nil, err
	}
	all, clones := []SnapshotInfo{}, v.clonesLocked()
	for _, n := range s.snapshotsLocked(v) {
		i := n.infoLocked()
		i.Clones = clones[n]
		all = append(all, i)
	}
	return all, nil
}
