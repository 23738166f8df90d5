package control

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend/throttle"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/control/replica"
)

// pointPrefix begins the names of the snapshots that both sides of a replication have in common, or will.
const pointPrefix = ".point-"

func pointName(id string) string { return pointPrefix + id }

// newID names a pair or a point: 130 random bits.
func newID() string { return strings.ToLower(rand.Text()) }

// Roles of a volume in a replication, as they are on disk.
const (
	roleSource    = "source"    // is sent to a target
	roleReplica   = "replica"   // is received
	rolePromoting = "promoting" // is to become a primary, and may not be one yet
	rolePrimary   = "primary"   // was a replica
)

// replicationRecord is a volume's part of a replication in replications.json (docs/format/control.md).
type replicationRecord struct {
	Volume    string           `json:"volume"`
	UUID      string           `json:"uuid"`
	Pair      string           `json:"pair"`
	Epoch     uint64           `json:"epoch"`
	Role      string           `json:"role"`
	Points    []replicaPoint   `json:"points"`                        // complete on both sides, as far as this side knows; oldest first
	Target    string           `json:"target,omitempty"`              // of a source
	Interval  time.Duration    `json:"intervalNanoseconds,omitempty"` // of a source
	Sending   *replicaPoint    `json:"sending,omitempty"`             // of a source: a point that the target may have
	FencedBy  uint64           `json:"fencedBy,omitempty"`            // of a source or primary: the epoch of the other side, which is one
	Peer      string           `json:"peer,omitempty"`                // of a replica: a name in the certificate of who may send it
	Receiving *receivingRecord `json:"receiving,omitempty"`           // of a replica: its content is no point
	Group     *replicaGroup    `json:"group,omitempty"`               // whose points are of one moment; of a replica since the first of these is complete

	LimitBytes uint64 `json:"limitBytesPerSecond,omitempty"` // of a source; 0: none
}

// replicaGroup is a group of volumes that are replicated together. The names of the two sides may differ.
type replicaGroup struct {
	Name string `json:"name"` // here, without its @
	ID   string `json:"id"`   // 130 random bits, on both sides
}

// replicaPoint is a state of a volume that has, or gets, a snapshot on both sides.
type replicaPoint struct {
	ID string    `json:"id"`
	At time.Time `json:"at"` // by the clock of the side that was the source; every write that was replied before is in it
}

// receivingRecord is a point of which a part has come. Without an id the content is of no use, and goes.
type receivingRecord struct {
	ID           string    `json:"id,omitempty"`
	At           time.Time `json:"at"`
	Base         string    `json:"base,omitempty"`
	SizeBytes    uint64    `json:"sizeBytes,omitempty"`
	ReachedBytes uint64    `json:"reachedBytes,omitempty"` // what changed before has come, and is durable
	Complete     bool      `json:"complete,omitempty"`     // all of it has, and it has its snapshot: the other members of the group are awaited
}

// newest is the last complete point, or the zero value.
func (r *replicationRecord) newest() replicaPoint {
	if len(r.Points) == 0 {
		return replicaPoint{}
	}
	return r.Points[len(r.Points)-1]
}

func (r *replicationRecord) has(id string) bool {
	return slices.ContainsFunc(r.Points, func(p replicaPoint) bool { return p.ID == id })
}

// needs reports whether the snapshot of a point is needed.
func (r *replicationRecord) needs(id string) bool {
	return r.has(id) || r.Sending != nil && r.Sending.ID == id || r.holds(id)
}

// holds reports whether a point is complete here, and awaits the other members of its group.
func (r *replicationRecord) holds(id string) bool {
	return r.Receiving != nil && r.Receiving.Complete && r.Receiving.ID == id
}

// name is what users call the replication: the volume, or @ and the group.
func (r *replicationRecord) name() string {
	if r.Group != nil {
		return "@" + r.Group.Name
	}
	return r.Volume
}

// isOf reports whether the volume is one of a group.
func (r *replicationRecord) isOf(group string) bool { return r.Group != nil && r.Group.ID == group }

// points is how many snapshots are needed.
func (r *replicationRecord) points() int {
	n := len(r.Points)
	if r.Sending != nil {
		n++
	}
	if r.Receiving != nil && r.Receiving.Complete {
		n++
	}
	return n
}

// receives reports whether the content of the volume may be none that any client has seen.
func (r *replicationRecord) receives() bool {
	return r.Role == roleReplica || r.Role == rolePromoting
}

var replicationsHeader = stateHeader{Format: "hyper-nixos replications", Version: 1}

type replicationsFile struct {
	stateHeader
	Replications []replicationRecord `json:"replications"`
}

// replication is a volume's part of a replication while hvd runs. All of it is guarded by Control.mu.
type replication struct {
	record   replicationRecord // replaced, never changed within
	session  *replicaSession   // sends or receives; nil: nobody does
	busy     bool              // its role is being changed: no session begins
	over     bool              // it is forgotten
	progress replicaProgress
}

// replicaSession is a goroutine that sends a volume, or all of a group, or a connection that receives.
type replicaSession struct {
	cancel context.CancelFunc
	over   chan struct{}   // closed when its devices are closed
	wake   chan struct{}   // of one that sends: look at want
	want   time.Time       // of one that sends: a point that is not older shall be made now; guarded by Control.mu
	bucket throttle.Bucket // of one that sends: bytes of streams; its rate is set under Control.mu
}

func (c *Control) replicationsPath() string {
	return filepath.Join(c.stateDir(), "replications.json")
}

// openReplications goes on with the replications of replications.json: promotes what was being promoted, and deletes snapshots that none of them needs.
func (c *Control) openReplications(ctx context.Context) error {
	file := replicationsFile{}
	if err := readState(c.replicationsPath(), replicationsHeader, &file); err != nil {
		return err
	}
	names := c.volumeNames()
	for _, record := range file.Replications {
		if names[record.UUID] != record.Volume {
			c.log.Info("forgetting a replication whose volume is gone", "volume", record.Volume)
			continue
		}
		if !slices.Contains([]string{roleSource, roleReplica, rolePromoting, rolePrimary}, record.Role) {
			return &block.CorruptError{Source: c.replicationsPath(), Want: "a role", Got: fmt.Sprintf("%q", record.Role)}
		}
		c.mu.replications[record.Volume] = &replication{record: record}
	}
	if len(c.mu.replications) < len(file.Replications) {
		if err := c.writeReplications(); err != nil {
			return err
		}
	}
	for _, v := range c.engine.Volumes() {
		if v.Snapshots == 0 {
			continue
		}
		if err := c.removePoints(ctx, v.Name); err != nil {
			return err
		}
	}
	for volume, r := range c.mu.replications {
		if r.record.Role == rolePromoting {
			if err := c.finishPromotion(ctx, r); err != nil {
				c.log.Error("a volume that was being promoted is not served", "volume", volume, "error", err)
			}
		}
	}
	return nil
}

// removePoints deletes the points of a volume that its replication, if it has one, does not need.
func (c *Control) removePoints(ctx context.Context, volume string) error {
	snapshots, err := c.engine.Snapshots(volume)
	if err != nil {
		return fmt.Errorf("list snapshots of %q: %w", volume, err)
	}
	record, found := c.replicationRecordOf(volume)
	for _, s := range snapshots {
		id, isPoint := strings.CutPrefix(s.Name, pointPrefix)
		if !isPoint || found && record.needs(id) {
			continue
		}
		if err := c.engine.DeleteSnapshot(ctx, volume, s.Name); err != nil {
			return fmt.Errorf("delete the point %s of volume %q, which is not needed: %w", id, volume, err)
		}
	}
	return nil
}

// tidyPoints is removePoints after a change that is durable: what fails is tried by the next one.
func (c *Control) tidyPoints(ctx context.Context, volume string) {
	if err := c.removePoints(context.WithoutCancel(ctx), volume); err != nil {
		c.log.Warn("a point of a replication could not be deleted; the next one will be tried with it", "volume", volume, "error", err)
	}
}

// writeReplications writes the replications as they are. Control.saving is held, or nothing else runs yet.
func (c *Control) writeReplications() error {
	file := replicationsFile{stateHeader: replicationsHeader, Replications: []replicationRecord{}}
	c.mu.Lock()
	for _, r := range c.mu.replications {
		if !r.over {
			file.Replications = append(file.Replications, r.record)
		}
	}
	c.mu.Unlock()
	slices.SortFunc(file.Replications, func(a, b replicationRecord) int { return cmp.Compare(a.Volume, b.Volume) })
	return writeState(c.replicationsPath(), file)
}

// replicationChange is what changes in replications.json at once.
type replicationChange struct {
	records []*replication
	how     func(i int, record *replicationRecord) error // gets a copy, and replaces what slices and pointers it changes
	add     []*replication
	drop    []*replication // no session of theirs runs
}

// changeReplications makes a change durable. On an error nothing has changed.
func (c *Control) changeReplications(change replicationChange) error {
	c.saving.Lock()
	defer c.saving.Unlock()
	before := make([]replicationRecord, len(change.records))
	undo := func() {
		for i, r := range change.records {
			r.record = before[i]
		}
		for _, r := range change.add {
			delete(c.mu.replications, r.record.Volume)
		}
		for _, r := range change.drop {
			r.over = false
			c.mu.replications[r.record.Volume] = r
		}
	}
	c.mu.Lock()
	err := error(nil)
	for i, r := range change.records {
		before[i] = r.record
		if err == nil {
			err = change.how(i, &r.record)
		}
	}
	for _, r := range change.add {
		c.mu.replications[r.record.Volume] = r
	}
	for _, r := range change.drop {
		r.over = true
		delete(c.mu.replications, r.record.Volume)
	}
	if err != nil {
		undo()
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if err = c.writeReplications(); err != nil {
		c.mu.Lock()
		undo()
		c.mu.Unlock()
	}
	return err
}

// changeReplication changes a record, durably. change gets a copy and replaces what slices and pointers it changes. On an error nothing has changed.
func (c *Control) changeReplication(r *replication, change func(*replicationRecord)) error {
	return c.changeReplications(replicationChange{records: []*replication{r}, how: func(_ int, record *replicationRecord) error {
		change(record)
		return nil
	}})
}

// addReplication puts a replication into the table and on disk.
func (c *Control) addReplication(r *replication) error {
	return c.changeReplications(replicationChange{add: []*replication{r}})
}

// forgetReplications takes replications out of the table and off the disk. No session of theirs runs.
func (c *Control) forgetReplications(rs ...*replication) error {
	return c.changeReplications(replicationChange{drop: rs})
}

// replicationOf returns the replication of a volume, nil if it has none.
func (c *Control) replicationOf(volume string) *replication {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.replications[volume]
}

// replicationRecordOf returns the record of a volume.
func (c *Control) replicationRecordOf(volume string) (replicationRecord, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.mu.replications[volume]
	if r == nil {
		return replicationRecord{}, false
	}
	return r.record, true
}

// recordIn returns the record of a replication as it is now.
func (c *Control) recordIn(r *replication) replicationRecord {
	c.mu.Lock()
	defer c.mu.Unlock()
	return r.record
}

// replicatedVolumes are the names of volumes with a replication, in order.
func (c *Control) replicatedVolumes() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.mu.replications))
}

// refuseReplica refuses what needs a content of its own of a volume that is received.
func (c *Control) refuseReplica(verb, volume string) error {
	record, found := c.replicationRecordOf(volume)
	if !found || !record.receives() {
		return nil
	}
	return fmt.Errorf("%s volume %q: it is a replica, and belongs to who sends it; clone it to look at it, or promote it: %w", verb, volume, ErrRefused)
}

// refuseReplicated refuses what would take a volume away under its replication.
func (c *Control) refuseReplicated(verb, volume string) error {
	record, found := c.replicationRecordOf(volume)
	if !found {
		return nil
	}
	return fmt.Errorf("%s volume %q: it is a %s of a replication; `hv-storage-fabric volume replicate stop %s` ends that: %w", verb, volume, record.Role, record.name(), ErrRefused)
}

// stateToRead is the snapshot to read when the present content of a volume is asked for: of a replica its newest point.
func (c *Control) stateToRead(volume string) (snapshot string, err error) {
	record, found := c.replicationRecordOf(volume)
	switch {
	case !found || !record.receives():
		return "", nil
	case record.newest().ID == replica.Empty:
		return "", fmt.Errorf("volume %q is a replica of which nothing is complete yet: %w", volume, block.ErrInUse)
	}
	return pointName(record.newest().ID), nil
}

// flushVolume makes a volume durable, and with it everything that was done to the store before.
func (c *Control) flushVolume(ctx context.Context, volume string) error {
	device, err := c.engine.OpenDevice(volume, "")
	if err != nil {
		return err
	}
	return errors.Join(device.Flush(ctx), device.Close())
}

// takePoint freezes a volume under the name of a point, durably.
func (c *Control) takePoint(ctx context.Context, volume, id string) (info blockstore.SnapshotInfo, err error) {
	if info, err = c.engine.CreateSnapshot(ctx, volume, pointName(id)); err != nil {
		return info, err
	}
	return info, c.flushVolume(ctx, volume)
}
