package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/live"
)

// restorePrefix begins the names of the volumes that keep the marks of restores.
const restorePrefix = ".restore-"

// Restoring says how far the live restore of a volume is.
type Restoring struct {
	Backup       string
	Repository   string
	ContentBytes uint64
	ReachedBytes uint64 // what is before has come
	Pulling      bool   // somebody brings the rest
	WaitingReads int    // for what has not come
	Problem      string // why it cannot go on; else empty
}

// restoreRecord is a restore in restores.json (docs/format/control.md).
type restoreRecord struct {
	Volume       string    `json:"volume"`
	UUID         string    `json:"uuid"`
	Marks        string    `json:"marks"` // the volume with the marks
	Backup       string    `json:"backup"`
	Repository   string    `json:"repository"`
	ContentBytes uint64    `json:"contentBytes"`
	ReachedBytes uint64    `json:"reachedBytes"`
	BegunAt      time.Time `json:"begunAt"`
}

var restoresHeader = stateHeader{Format: "hyper-nixos restores", Version: 1}

type restoresFile struct {
	stateHeader
	Restores []restoreRecord `json:"restores"`
}

// restoring is a volume whose content is still coming.
type restoring struct {
	live    *live.Restore // nil if there is a problem
	marks   Device        // likewise
	problem error

	// Guarded by Control.mu.
	record  restoreRecord
	session *restoreSession // nil: nobody pulls
	over    bool            // it is complete or given up, and in restores.json no more
}

// restoreSession is who pulls.
type restoreSession struct {
	cancel context.CancelFunc
	over   chan struct{} // closed when its devices are closed
}

func (c *Control) restoresPath() string { return filepath.Join(c.stateDir(), "restores.json") }

// openRestores goes on with the restores of restores.json, and deletes what was left of others.
func (c *Control) openRestores(ctx context.Context) error {
	file := restoresFile{}
	if err := readState(c.restoresPath(), restoresHeader, &file); err != nil {
		return err
	}
	names, marks := c.volumeNames(), map[string]bool{}
	for _, record := range file.Restores {
		if names[record.UUID] != record.Volume {
			c.log.Info("forgetting a restore whose volume is gone", "volume", record.Volume, "backup", record.Backup)
			continue
		}
		r := &restoring{record: record}
		if err := c.openMarks(ctx, r); err != nil {
			r.problem = fmt.Errorf("what has come of it cannot be told: %w; delete it and restore it anew", err)
			c.log.Error("a volume that is being restored is not served", "volume", record.Volume, "error", r.problem)
		}
		c.mu.restores[record.Volume], marks[record.Marks] = r, true
	}
	if len(c.mu.restores) < len(file.Restores) {
		if err := c.saveRestores(); err != nil {
			return err
		}
	}
	for _, v := range c.engine.Volumes() {
		if strings.HasPrefix(v.Name, restorePrefix) && !marks[v.Name] {
			if err := c.engine.DeleteVolume(ctx, v.Name); err != nil {
				return fmt.Errorf("delete the marks of a restore that has ended: %w", err)
			}
		}
	}
	return nil
}

// openMarks opens what a restore knows of its volume.
func (c *Control) openMarks(ctx context.Context, r *restoring) error {
	info, err := c.engine.Volume(r.record.Volume)
	if err != nil {
		return err
	}
	device, err := c.engine.OpenDevice(r.record.Marks, "")
	if err != nil {
		return err
	}
	if got, want := device.Size(), live.MarksSize(info.SizeBytes); got != want {
		return errors.Join(&block.CorruptError{Source: "volume " + r.record.Marks, Want: fmt.Sprintf("%d bytes", want), Got: fmt.Sprint(got)}, device.Close())
	}
	r.live, err = live.Open(ctx, live.Options{
		ContentBytes: r.record.ContentBytes, ReachedBytes: r.record.ReachedBytes, Marks: device,
		Waits: func() { c.noteWait(r) },
	})
	if err != nil {
		r.live = nil
		return errors.Join(err, device.Close())
	}
	r.marks = device
	return nil
}

// noteWait logs that a read waits although nobody pulls.
func (c *Control) noteWait(r *restoring) {
	volume, backup := r.record.Volume, r.record.Backup // these two do not change
	if tell, heldBack := c.repeats.tell("restore waits " + volume); tell {
		c.log.Warn("a read waits for what has not come of a volume that is being restored: run hv-backup restore --live again", "volume", volume, "backup", backup, "heldBack", heldBack)
	}
}

// saveRestores writes the restores that are not over.
func (c *Control) saveRestores() error {
	c.saving.Lock()
	defer c.saving.Unlock()
	file := restoresFile{stateHeader: restoresHeader, Restores: []restoreRecord{}}
	c.mu.Lock()
	for _, r := range c.mu.restores {
		if !r.over {
			file.Restores = append(file.Restores, r.record)
		}
	}
	c.mu.Unlock()
	slices.SortFunc(file.Restores, func(a, b restoreRecord) int { return cmp.Compare(a.Volume, b.Volume) })
	return writeState(c.restoresPath(), file)
}

// saveOver writes the restores without one that is over. If that fails, it is not.
func (c *Control) saveOver(r *restoring) error {
	set := func(over bool) {
		c.mu.Lock()
		defer c.mu.Unlock()
		r.over = over
	}
	set(true)
	err := c.saveRestores()
	if err != nil {
		set(false)
	}
	return err
}

// restoreOf returns the restore of a volume, nil if there is none.
func (c *Control) restoreOf(volume string) *restoring {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.restores[volume]
}

// restoringOf describes the restore of a volume, nil if there is none.
func (c *Control) restoringOf(volume string) *Restoring {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.mu.restores[volume]
	if r == nil {
		return nil
	}
	d := &Restoring{Backup: r.record.Backup, Repository: r.record.Repository, ContentBytes: r.record.ContentBytes, ReachedBytes: r.record.ReachedBytes}
	if r.problem != nil {
		d.Problem = r.problem.Error()
		return d
	}
	state := r.live.State()
	d.ReachedBytes, d.Pulling, d.WaitingReads = state.ReachedBytes, state.Pulling, state.Waiting
	return d
}

// refuseRestoring refuses what needs the whole content of a volume.
func (c *Control) refuseRestoring(verb, volume string) error {
	r := c.restoringOf(volume)
	if r == nil {
		return nil
	}
	return fmt.Errorf("%s volume %q: it is being restored from backup %s and is not whole yet; wait until that is complete, or delete it: %w", verb, volume, r.Backup, block.ErrInUse)
}

// restoreProblems says which restores nobody goes on with.
func (c *Control) restoreProblems() (all []string) {
	c.mu.Lock()
	var volumes []string
	for volume := range c.mu.restores {
		volumes = append(volumes, volume)
	}
	c.mu.Unlock()
	slices.Sort(volumes)
	for _, volume := range volumes {
		switch r := c.restoringOf(volume); {
		case r == nil:
		case r.Problem != "":
			all = append(all, volume+": "+r.Problem)
		case !r.Pulling:
			percent := 100 * float64(r.ReachedBytes) / float64(max(1, r.ContentBytes))
			all = append(all, fmt.Sprintf("%s: its restore stopped at %.0f %%, and reads of what has not come wait: run `hv-backup restore %s --to-volume %s --live` again", volume, percent, r.Backup, volume))
		}
	}
	return all
}

// dropWaiting ends the connections of clients that wait for what nobody may bring any more: a client that comes back repeats what it was not answered.
func (c *Control) dropWaiting() {
	c.mu.Lock()
	var volumes []string
	for volume, r := range c.mu.restores {
		if r.live != nil && r.live.State().Waiting > 0 {
			volumes = append(volumes, volume)
		}
	}
	c.mu.Unlock()
	now, cancel := context.WithCancel(context.Background())
	cancel()
	for _, volume := range volumes {
		_ = c.nbd.DropConnections(now, volume) // it says that they were cut off, which is meant
	}
}

// drainTime is how long the clients of a volume get for their requests in flight: hardly any if those wait for what nobody brings.
func (c *Control) drainTime(volume string) time.Duration {
	if r := c.restoringOf(volume); r != nil && r.WaitingReads > 0 && !r.Pulling {
		return min(time.Second, c.opts.Config.NBD.DrainTimeout)
	}
	return c.opts.Config.NBD.DrainTimeout
}

// closeRestores closes the devices of marks.
func (c *Control) closeRestores() error {
	c.mu.Lock()
	var devices []Device
	for _, r := range c.mu.restores {
		if r.marks != nil {
			devices = append(devices, r.marks)
			r.marks = nil
		}
	}
	c.mu.Unlock()
	var all []error
	for _, device := range devices {
		all = append(all, device.Close())
	}
	return errors.Join(all...)
}
