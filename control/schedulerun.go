package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/internal/retention"
)

// scheduleLook is how long at most until the schedules are looked at again, so that a clock that was set is noticed, and what failed is tried again.
const scheduleLook = 30 * time.Second

// Names of scheduled snapshots: auto-TIME of a volume, auto-GROUP-TIME of a group, TIME being that of the run in UTC.
const (
	scheduledPrefix = "auto-"
	scheduledTime   = "20060102T150405Z"
)

func (r *scheduleRecord) prefix() string {
	if r.Group == "" {
		return scheduledPrefix
	}
	return scheduledPrefix + r.Group + "-"
}

// taken returns when the schedule took a snapshot, if it did.
func (r *scheduleRecord) taken(info blockstore.SnapshotInfo) (time.Time, bool) {
	text, ok := strings.CutPrefix(info.Name, r.prefix())
	if !ok || !info.Automatic {
		return time.Time{}, false
	}
	at, err := time.Parse(scheduledTime, text)
	return at, err == nil
}

// dueAfter is when a schedule runs next that ran last at some time: at the beginning of the next period, however many were missed. A run that lies more than a period ahead is that of a clock that was wrong, and does not count.
func dueAfter(last time.Time, every time.Duration, now time.Time) time.Time {
	if last.After(now.Add(every)) {
		last = time.Time{}
	}
	if last.IsZero() {
		return now
	}
	return last.UTC().Truncate(every).Add(every)
}

// startSchedules runs schedules until Close.
func (c *Control) startSchedules() error {
	done, err := c.begin()
	if err != nil {
		return err
	}
	go func() {
		defer done()
		for c.background.Err() == nil {
			timer := time.NewTimer(min(scheduleLook, max(time.Second, c.runSchedules(c.background))))
			select {
			case <-timer.C:
			case <-c.schedules.changed:
			case <-c.background.Done():
			}
			timer.Stop()
		}
	}()
	return nil
}

// runSchedules takes the snapshots that are due, thins those that the schedules have, and returns how long it is until the next is due.
func (c *Control) runSchedules(ctx context.Context) time.Duration {
	c.schedules.running.Lock()
	defer c.schedules.running.Unlock()
	wait := scheduleLook
	for _, r := range c.schedules.records() {
		now := c.opts.Now()
		due, change := c.schedules.dueAt(r.key())
		if due.IsZero() || due.After(now.Add(r.every())) { // not known, or by a clock that was set since
			due = dueAfter(c.lastRun(&r), r.every(), now)
			c.schedules.setDue(r.key(), due, change)
		}
		if due.After(now) {
			wait = min(wait, due.Sub(now))
			continue
		}
		if ctx.Err() != nil {
			break
		}
		taken, err := c.runSchedule(ctx, &r, now)
		if taken || err == nil { // what could not be deleted is tried with the next one, and no reason to take another now
			due = dueAfter(now, r.every(), now)
			c.schedules.setDue(r.key(), due, change)
			wait = min(wait, due.Sub(now))
		}
		c.noteRun(&r, err)
	}
	return wait
}

// noteRun keeps what became of a run, and logs it if it failed.
func (c *Control) noteRun(r *scheduleRecord, err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	c.schedules.mu.Lock()
	delete(c.schedules.mu.errs, r.key())
	if err != nil {
		c.schedules.mu.errs[r.key()] = err.Error()
	}
	c.schedules.mu.Unlock()
	if err == nil {
		return
	}
	if tell, heldBack := c.repeats.tell("schedule " + r.key() + err.Error()); tell {
		c.log.Error("a schedule failed and will be tried again", "volume", r.Volume, "group", r.Group, "error", err, "heldBack", heldBack)
	}
}

// targets are the volumes that a schedule freezes; none once its volume is gone.
func (c *Control) targets(r *scheduleRecord) ([]string, error) {
	if r.Group != "" {
		g, err := c.Group(r.Group)
		return g.Volumes, err
	}
	if name := c.volumeNames()[r.UUID]; name != "" {
		return []string{name}, nil
	}
	return nil, nil
}

// lastRun is when the schedule took its newest snapshot that is there. The store knows it, so no file has to be written at each run, and neither can be ahead of the other.
func (c *Control) lastRun(r *scheduleRecord) (last time.Time) {
	volumes, _ := c.targets(r) // a group that is gone has none
	for _, volume := range volumes {
		infos, err := c.engine.Snapshots(volume)
		if err != nil {
			continue // deleted just now
		}
		for _, info := range infos {
			if at, ok := r.taken(info); ok && at.After(last) {
				last = at
			}
		}
	}
	return last
}

// runSchedule takes the snapshots of one schedule and thins them. taken says that they are there, whatever the error.
func (c *Control) runSchedule(ctx context.Context, r *scheduleRecord, now time.Time) (taken bool, err error) {
	volumes, err := c.targets(r)
	if err != nil || len(volumes) == 0 {
		return false, err
	}
	name := r.prefix() + now.UTC().Format(scheduledTime)
	if r.Group != "" {
		_, err = c.freezeGroup(ctx, r.Group, name, true)
	} else {
		err = c.onSnapshot(ctx, "create", volumes[0], name, func() error {
			_, err := c.freeze(ctx, []blockstore.StateName{{Volume: volumes[0], Snapshot: name}}, true)
			return err
		})
	}
	if err != nil {
		return false, err
	}
	for _, volume := range volumes {
		err = errors.Join(err, c.thin(ctx, r, volume))
	}
	return true, err
}

// Verdict is what a schedule's retention thinks of a snapshot.
type Verdict struct {
	Snapshot
	Reasons []string // why it is kept; none: it is deleted
}

// thin deletes the snapshots of a volume that a schedule made and does not keep.
func (c *Control) thin(ctx context.Context, r *scheduleRecord, volume string) error {
	if r.keep().Zero() {
		return nil
	}
	release, err := c.names.hold(ctx, "snapshot work", volume) // what is protected, cloned or renamed meanwhile would not be seen
	if err != nil {
		return fmt.Errorf("delete old snapshots of %q: %w", volume, err)
	}
	defer release()
	verdicts, err := c.judge(r, volume)
	for _, v := range verdicts {
		if len(v.Reasons) > 0 {
			continue
		}
		if e := c.engine.DeleteSnapshot(ctx, volume, v.Name); e != nil && !errors.Is(e, block.ErrInUse) { // a client's goes another time
			err = errors.Join(err, e)
		}
	}
	return err
}

// judge says of each snapshot of a volume that a schedule made whether it is kept, and why; the oldest first.
func (c *Control) judge(r *scheduleRecord, volume string) ([]Verdict, error) {
	infos, err := c.engine.Snapshots(volume)
	if err != nil {
		return nil, err
	}
	var all []Verdict
	var moments []time.Time
	for _, info := range infos {
		if at, ok := r.taken(info); ok {
			all, moments = append(all, Verdict{Snapshot: snapshotOf(volume, info)}), append(moments, at)
		}
	}
	now, order := c.opts.Now(), make([]int, 0, len(all)) // the youngest first, by the times in their names
	for i, at := range moments {
		if at.After(now.Add(leastEvery)) { // by a clock that was wrong: as the youngest it would crowd out all that are taken until then
			all[i].Reasons = []string{"ahead"}
			continue
		}
		order = append(order, i)
	}
	slices.SortStableFunc(order, func(a, b int) int { return moments[b].Compare(moments[a]) })
	sorted := make([]time.Time, 0, len(all))
	for _, i := range order {
		sorted = append(sorted, moments[i])
	}
	keep := r.keep()
	for k, reasons := range keep.Reasons(sorted, time.UTC) {
		all[order[k]].Reasons = spared(&all[order[k]].Snapshot, keep, reasons)
	}
	return all, nil
}

// spared adds the reasons that no rule knows.
func spared(s *Snapshot, keep retention.Rules, reasons []string) []string {
	if keep.Zero() {
		reasons = append(reasons, "all")
	}
	if s.Protected {
		reasons = append(reasons, "protected")
	}
	if s.Clones > 0 {
		reasons = append(reasons, "cloned")
	}
	return reasons
}

// Retention says what a schedule would keep of the snapshots that it has now, if it were as given: a dry run of what it does after each snapshot it takes. It changes nothing.
func (c *Control) Retention(target string, keep retention.Rules) ([]Verdict, error) {
	r, err := c.scheduleRecord(ScheduleSpec{Target: target, Every: leastEvery, Keep: keep})
	if err != nil {
		return nil, fmt.Errorf("retention of %q: %w", target, err)
	}
	volumes, err := c.targets(&r)
	all := []Verdict{}
	for _, volume := range volumes {
		verdicts, e := c.judge(&r, volume)
		all, err = append(all, verdicts...), errors.Join(err, e)
	}
	return all, err
}
