package crashtest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Config bounds what clients do.
type Config struct {
	VolumeBytes uint64 // most that a volume has; at least 1 MiB
	RecordBytes uint64 // most that one log record of the store takes
	Volumes     int    // most that a client has
	Snapshots   int    // most that a volume has
	// ChangeSnapshots lets clients rename and protect snapshots, and take those of all their volumes at once, as well.
	ChangeSnapshots bool
}

// generator makes the operations of one client.
type generator struct {
	cfg    Config
	client int
	rng    *rand.Rand
}

// next returns an operation that is valid in a store where this client's part is in state s.
func (g *generator) next(n int, s *State) *Op {
	op := &Op{N: n, RecordBytes: g.cfg.RecordBytes}
	names := slices.Sorted(maps.Keys(s.Volumes))
	if len(names) == 0 {
		return g.create(op)
	}
	op.Volume = names[g.rng.IntN(len(names))]
	v := s.Volumes[op.Volume]
	switch k := g.rng.IntN(100); {
	case k < 60:
		g.write(op, v)
	case k < 72:
		g.discard(op, v)
	case k < 78:
		op.Kind = Flush
	default:
		g.control(op, s, v)
	}
	return op
}

func (g *generator) create(op *Op) *Op {
	op.Kind, op.Volume = Create, g.name(op)
	op.Size = g.size()
	return op
}

// name returns a name that was never used before.
func (g *generator) name(op *Op) string { return fmt.Sprintf("%s%d", volumePrefix(g.client), op.N) }

func volumePrefix(client int) string { return fmt.Sprintf("c%d-", client) }

// size returns the size of a volume: mostly a multiple of a block.
func (g *generator) size() uint64 {
	size := g.cfg.VolumeBytes/2 + uint64(g.rng.Int64N(int64(g.cfg.VolumeBytes/2)))
	if g.rng.IntN(4) == 0 {
		return size &^ (sectorBytes - 1)
	}
	return size &^ (block.Size - 1)
}

// place returns a range of at most most bytes: near the beginning, the end, or a border of regions, so that ranges meet each other often.
func (g *generator) place(v *Volume, most uint64) block.Range {
	unit := uint64(block.Size)
	if g.rng.IntN(6) == 0 {
		unit = sectorBytes
	}
	spots := []uint64{0, v.Size / 2, max(v.Size, 256<<10) - 256<<10}
	for b := uint64(block.RegionSize); b < v.Size; b += block.RegionSize {
		spots = append(spots, b-64<<10)
	}
	off := spots[g.rng.IntN(len(spots))] + uint64(g.rng.Int64N(256<<10))
	off = min(off, v.Size-1) / unit * unit
	n := (1 + uint64(g.rng.Int64N(int64(most/unit)))) * unit
	return block.Range{Off: off, Len: min(n, v.Size-off)}
}

func (g *generator) write(op *Op, v *Volume) {
	op.Kind = Write
	op.FUA = g.rng.IntN(12) == 0
	if g.rng.IntN(8) == 0 {
		op.First = poolToken(g.rng.IntN(8))
		op.Ranges = []block.Range{g.place(v, 128<<10)}
		return
	}
	op.First = tokenOf(g.client, op.N)
	for range 1 + g.rng.IntN(3) {
		op.Ranges = append(op.Ranges, g.place(v, 32<<10))
	}
}

func (g *generator) discard(op *Op, v *Volume) {
	op.Kind = Trim + Kind(g.rng.IntN(2))
	op.FUA = g.rng.IntN(12) == 0
	r := g.place(v, 512<<10)
	if g.rng.IntN(12) == 0 {
		r = block.Range{Off: 0, Len: v.Size}
	}
	op.Ranges = []block.Range{r}
}

// control makes an operation that changes the tree of volumes and snapshots.
func (g *generator) control(op *Op, s *State, v *Volume) {
	snaps := slices.DeleteFunc(slices.Sorted(maps.Keys(v.Snapshots)), func(name string) bool { return name == hiddenSnapshot })
	hidden := len(snaps) < len(v.Snapshots)
	if len(snaps) > 0 {
		op.Snapshot = snaps[g.rng.IntN(len(snaps))]
	}
	if g.cfg.ChangeSnapshots && g.rng.IntN(8) == 0 && s.fewerSnapshots(g.cfg.Snapshots) {
		op.Kind, op.Snapshot, op.Volumes = SnapshotAll, fmt.Sprintf("s%d", op.N), slices.Sorted(maps.Keys(s.Volumes))
		return
	}
	if g.cfg.ChangeSnapshots && len(snaps) > 0 && g.rng.IntN(5) == 0 {
		g.changeSnapshot(op, v)
		return
	}
	room := len(s.Volumes) < g.cfg.Volumes
	switch k := g.rng.IntN(22); {
	case k < 7 && len(snaps) < g.cfg.Snapshots:
		op.Kind, op.Snapshot = Snapshot, fmt.Sprintf("s%d", op.N)
	case k < 11 && len(snaps) > 0 && !v.Snapshots[op.Snapshot].Protected:
		op.Kind = DeleteSnapshot
	case k < 14 && len(snaps) > 0:
		op.Kind = Rollback
	case k < 17 && room && len(snaps) > 0:
		op.Kind, op.To = Clone, g.name(op)
	case k < 18 && room && !hidden:
		op.Kind, op.Snapshot, op.To = Clone, "", g.name(op)
	case k < 19:
		op.Kind, op.Snapshot, op.Size = Resize, "", g.size()
	case k < 20 && len(s.Volumes) > 1 && !v.protected():
		op.Kind, op.Snapshot = Delete, ""
	case k < 21:
		op.Kind, op.Snapshot, op.To = Rename, "", g.name(op)
	case room:
		op.Snapshot = ""
		g.create(op)
	default:
		op.Snapshot = ""
		g.write(op, v)
	}
}

// changeSnapshot makes an operation on one that is there.
func (g *generator) changeSnapshot(op *Op, v *Volume) {
	switch {
	case g.rng.IntN(3) == 0:
		op.Kind, op.To = RenameSnapshot, fmt.Sprintf("r%d", op.N)
	case v.Snapshots[op.Snapshot].Protected:
		op.Kind = Unprotect
	default:
		op.Kind = Protect
	}
}
