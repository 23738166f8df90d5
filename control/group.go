package control

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// Bounds of groups.
const (
	maxGroups    = 1000
	maxGroupName = 64 // bytes: names of a schedule's snapshots have it in them
)

// VolumeGroup is a name for volumes that are frozen at one moment.
type VolumeGroup struct {
	Name    string
	Volumes []string // by what they are called now, ordered; those that were deleted are not there
}

// groupRecord is a group in groups.json (docs/format/control.md). Its volumes are those with these ids, whatever they are called by now.
type groupRecord struct {
	Name    string        `json:"name"`
	Volumes []groupMember `json:"volumes"`
}

type groupMember struct {
	Volume string `json:"volume"` // name when the file was written, for people
	UUID   string `json:"uuid"`
}

var groupsHeader = stateHeader{Format: "hyper-nixos groups", Version: 1}

type groupsFile struct {
	stateHeader
	Groups []groupRecord `json:"groups"`
}

func checkGroup(name string) error {
	if len(name) > maxGroupName {
		return fmt.Errorf("group name has %d bytes, at most %d are allowed: %w", len(name), maxGroupName, block.ErrInvalid)
	}
	return CheckName("group", name)
}

func (c *Control) groupsPath() string { return filepath.Join(c.stateDir(), "groups.json") }

// restoreGroups reads groups.json.
func (c *Control) restoreGroups() error {
	file := groupsFile{}
	if err := readState(c.groupsPath(), groupsHeader, &file); err != nil {
		return err
	}
	c.mu.groups = file.Groups
	return nil
}

// groups returns the table, which is replaced and never changed.
func (c *Control) groups() []groupRecord {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.groups
}

// changeGroups replaces the table, durably.
func (c *Control) changeGroups(change func([]groupRecord) ([]groupRecord, error)) error {
	c.saving.Lock()
	defer c.saving.Unlock()
	next, err := change(slices.Clone(c.groups()))
	if err != nil {
		return err
	}
	if err := writeState(c.groupsPath(), groupsFile{groupsHeader, next}); err != nil {
		return err
	}
	c.mu.Lock()
	c.mu.groups = next
	c.mu.Unlock()
	return nil
}

// volumeNames are what volumes are called now, by their ids.
func (c *Control) volumeNames() map[string]string {
	names := map[string]string{}
	for _, v := range c.engine.Volumes() {
		if !hidden(v.Name) {
			names[v.UUID.String()] = v.Name
		}
	}
	return names
}

func (r groupRecord) now(names map[string]string) VolumeGroup {
	g := VolumeGroup{Name: r.Name, Volumes: []string{}}
	for _, m := range r.Volumes {
		if name, ok := names[m.UUID]; ok {
			g.Volumes = append(g.Volumes, name)
		}
	}
	slices.Sort(g.Volumes)
	return g
}

// Groups lists all groups, ordered by name.
func (c *Control) Groups() []VolumeGroup {
	names, all := c.volumeNames(), []VolumeGroup{}
	for _, r := range c.groups() {
		all = append(all, r.now(names))
	}
	return all
}

// Group describes one group.
func (c *Control) Group(name string) (VolumeGroup, error) {
	for _, r := range c.groups() {
		if r.Name == name {
			return r.now(c.volumeNames()), nil
		}
	}
	return VolumeGroup{}, fmt.Errorf("group %q: %w", name, block.ErrNotFound)
}

// SetGroup makes a group of volumes, or makes them the volumes of one that is there. A volume can be in several.
func (c *Control) SetGroup(name string, volumes []string) (VolumeGroup, error) {
	record, err := c.newGroup(name, volumes)
	if err == nil {
		err = c.changeGroups(func(all []groupRecord) ([]groupRecord, error) {
			i, there := slices.BinarySearchFunc(all, name, func(r groupRecord, name string) int { return strings.Compare(r.Name, name) })
			if there {
				all[i] = record
				return all, nil
			}
			if len(all) == maxGroups {
				return nil, fmt.Errorf("there are %d groups already: %w", maxGroups, ErrRefused)
			}
			return slices.Insert(all, i, record), nil
		})
	}
	if err != nil {
		return VolumeGroup{}, fmt.Errorf("set group %q: %w", name, err)
	}
	return c.Group(name)
}

func (c *Control) newGroup(name string, volumes []string) (groupRecord, error) {
	record := groupRecord{Name: name}
	if err := checkGroup(name); err != nil {
		return record, err
	}
	if n := len(volumes); n == 0 || n > blockstore.MaxSnapshotSet {
		return record, fmt.Errorf("%d volumes: want 1 to %d: %w", n, blockstore.MaxSnapshotSet, block.ErrInvalid)
	}
	for _, volume := range volumes {
		info, err := c.visible(volume)
		if err != nil {
			return record, err
		}
		record.Volumes = append(record.Volumes, groupMember{volume, info.UUID.String()})
	}
	slices.SortFunc(record.Volumes, func(a, b groupMember) int { return cmp.Compare(a.Volume, b.Volume) })
	if len(slices.Compact(slices.Clone(record.Volumes))) < len(volumes) {
		return record, fmt.Errorf("a volume is named twice: %w", block.ErrInvalid)
	}
	return record, nil
}

// DeleteGroup forgets a group that has no schedule. Its volumes and their snapshots stay.
func (c *Control) DeleteGroup(name string) error {
	err := c.changeGroups(func(all []groupRecord) ([]groupRecord, error) {
		i := slices.IndexFunc(all, func(r groupRecord) bool { return r.Name == name })
		if i < 0 {
			return nil, block.ErrNotFound
		}
		if err := c.refuseScheduled(name); err != nil {
			return nil, err
		}
		return slices.Delete(all, i, i+1), nil
	})
	if err != nil {
		return fmt.Errorf("delete group %q: %w", name, err)
	}
	return nil
}

// CreateSnapshots freezes several volumes at one moment: all or none.
func (c *Control) CreateSnapshots(ctx context.Context, names []blockstore.StateName) ([]Snapshot, error) {
	var volumes []string
	for _, n := range names {
		if err := checkVolumeSnapshot(n.Volume, n.Snapshot); err != nil {
			return nil, fmt.Errorf("create snapshots: %w", err)
		}
		volumes = append(volumes, n.Volume)
	}
	release, err := c.names.hold(ctx, "snapshot work", volumes...)
	if err != nil {
		return nil, fmt.Errorf("create snapshots: %w", err)
	}
	defer release()
	return c.freeze(ctx, names, false)
}

// freeze takes snapshots of several volumes, whose names are held.
func (c *Control) freeze(ctx context.Context, names []blockstore.StateName, automatic bool) ([]Snapshot, error) {
	for _, n := range names {
		if err := cmp.Or(c.refuseRestoring("snapshot", n.Volume), c.refuseReplica("snapshot", n.Volume)); err != nil {
			return nil, err
		}
	}
	infos, err := c.engine.CreateSnapshots(ctx, names, automatic)
	if err != nil {
		return nil, err
	}
	taken := make([]Snapshot, 0, len(infos))
	for i, info := range infos {
		taken = append(taken, snapshotOf(names[i].Volume, info))
	}
	return taken, nil
}

// CreateGroupSnapshot freezes all volumes of a group at one moment, each under the same name.
func (c *Control) CreateGroupSnapshot(ctx context.Context, group, name string) ([]Snapshot, error) {
	taken, err := c.freezeGroup(ctx, group, name, false)
	if err != nil {
		return nil, fmt.Errorf("create snapshot %q of group %q: %w", name, group, err)
	}
	return taken, nil
}

func (c *Control) freezeGroup(ctx context.Context, group, name string, automatic bool) ([]Snapshot, error) {
	if err := checkSnapshot(name); err != nil {
		return nil, err
	}
	for {
		g, err := c.Group(group)
		if err != nil {
			return nil, err
		}
		if len(g.Volumes) == 0 {
			return nil, fmt.Errorf("all its volumes were deleted: %w", block.ErrNotFound)
		}
		release, err := c.names.hold(ctx, "snapshot work", g.Volumes...)
		if err != nil {
			return nil, err
		}
		if now, err := c.Group(group); err != nil || !slices.Equal(now.Volumes, g.Volumes) {
			release() // it was changed, or a volume renamed, before the names were held
			continue
		}
		names := make([]blockstore.StateName, 0, len(g.Volumes))
		for _, volume := range g.Volumes {
			names = append(names, blockstore.StateName{Volume: volume, Snapshot: name})
		}
		taken, err := c.freeze(ctx, names, automatic)
		release()
		return taken, err
	}
}
