package control

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/retention"
)

// Bounds of schedules.
const (
	maxSchedules = 10_000
	leastEvery   = time.Minute
	mostEvery    = 366 * 24 * time.Hour
)

// ScheduleSpec is what a schedule shall be.
type ScheduleSpec struct {
	Target string        // VOLUME, or @GROUP, whose volumes are frozen at one moment
	Every  time.Duration // a snapshot in each so long, counted from midnight of a Monday (UTC)
	Keep   retention.Rules
}

// Schedule is a schedule and how it is doing.
type Schedule struct {
	ScheduleSpec
	// LastRun is when it took its newest snapshot that is there; zero if there is none.
	LastRun time.Time
	NextRun time.Time
	Error   string // why its last run failed; empty when it did not
}

// scheduleRecord is a schedule in schedules.json (docs/format/control.md).
type scheduleRecord struct {
	Volume           string `json:"volume,omitempty"` // name when the file was written, for people
	UUID             string `json:"uuid,omitempty"`   // of the volume, whatever it is called by now
	Group            string `json:"group,omitempty"`  // in the place of a volume
	EveryNanoseconds int64  `json:"everyNanoseconds"`
	KeepLast         int    `json:"keepLast,omitempty"`
	KeepHourly       int    `json:"keepHourly,omitempty"`
	KeepDaily        int    `json:"keepDaily,omitempty"`
	KeepWeekly       int    `json:"keepWeekly,omitempty"`
	KeepMonthly      int    `json:"keepMonthly,omitempty"`
	KeepYearly       int    `json:"keepYearly,omitempty"`
}

var schedulesHeader = stateHeader{Format: "hyper-nixos schedules", Version: 1}

type schedulesFile struct {
	stateHeader
	Schedules []scheduleRecord `json:"schedules"`
}

// key tells schedules apart, and orders them.
func (r *scheduleRecord) key() string {
	if r.Group != "" {
		return "@" + r.Group
	}
	return r.UUID
}

func (r *scheduleRecord) every() time.Duration { return time.Duration(r.EveryNanoseconds) }

func (r *scheduleRecord) keep() retention.Rules {
	return retention.Rules{Last: r.KeepLast, Hourly: r.KeepHourly, Daily: r.KeepDaily, Weekly: r.KeepWeekly, Monthly: r.KeepMonthly, Yearly: r.KeepYearly}
}

// scheduler runs the schedules.
type scheduler struct {
	running sync.Mutex    // held by whoever takes and thins what is due
	changed chan struct{} // of capacity 1: a schedule was changed

	mu struct {
		sync.Mutex
		all  []scheduleRecord  // replaced, never changed
		errs map[string]string // why the last run of a schedule failed, by key
		// due is when schedules run next, by key, as far as that was found out; change counts what made it worthless.
		due    map[string]time.Time
		change int
	}
}

// dueAt returns when a schedule runs next, if that is known.
func (s *scheduler) dueAt(key string) (at time.Time, change int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.due[key], s.mu.change
}

// setDue notes when a schedule runs next, unless the schedules were changed since.
func (s *scheduler) setDue(key string, at time.Time, change int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if change == s.mu.change {
		s.mu.due[key] = at
	}
}

func (s *scheduler) records() []scheduleRecord {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.all
}

func (s *scheduler) wake() {
	select {
	case s.changed <- struct{}{}:
	default: // it will look anyhow
	}
}

func (c *Control) schedulesPath() string { return filepath.Join(c.stateDir(), "schedules.json") }

// restoreSchedules reads schedules.json.
func (c *Control) restoreSchedules() error {
	file := schedulesFile{}
	if err := readState(c.schedulesPath(), schedulesHeader, &file); err != nil {
		return err
	}
	for _, r := range file.Schedules {
		if err := errors.Join(checkEvery(r.every()), r.keep().Validate()); err != nil {
			return fmt.Errorf("%s: %w", c.schedulesPath(), err)
		}
	}
	c.schedules.changed = make(chan struct{}, 1)
	slices.SortFunc(file.Schedules, func(a, b scheduleRecord) int { return strings.Compare(a.key(), b.key()) })
	m := &c.schedules.mu
	m.all, m.errs, m.due = file.Schedules, map[string]string{}, map[string]time.Time{}
	return nil
}

func checkEvery(every time.Duration) error {
	if every < leastEvery || every > mostEvery || every%time.Second != 0 {
		return fmt.Errorf("every %v: want whole seconds, from %v to %v: %w", every, leastEvery, mostEvery, block.ErrInvalid)
	}
	return nil
}

// changeSchedules replaces the table, durably. Schedules of volumes that are gone fall out.
func (c *Control) changeSchedules(change func([]scheduleRecord) ([]scheduleRecord, error)) error {
	c.saving.Lock()
	defer c.saving.Unlock()
	names := c.volumeNames()
	left := slices.DeleteFunc(slices.Clone(c.schedules.records()), func(r scheduleRecord) bool { return r.Group == "" && names[r.UUID] == "" })
	next, err := change(left)
	if err != nil {
		return err
	}
	for i := range next {
		if next[i].Group == "" {
			next[i].Volume = names[next[i].UUID]
		}
	}
	if err := writeState(c.schedulesPath(), schedulesFile{schedulesHeader, next}); err != nil {
		return err
	}
	c.schedules.mu.Lock()
	c.schedules.mu.all = next
	c.schedules.mu.change++
	clear(c.schedules.mu.due)
	clear(c.schedules.mu.errs)
	c.schedules.mu.Unlock()
	c.schedules.wake()
	return nil
}

func findSchedule(all []scheduleRecord, key string) (int, bool) {
	return slices.BinarySearchFunc(all, key, func(r scheduleRecord, key string) int { return strings.Compare(r.key(), key) })
}

// scheduleRecord checks what came from outside.
func (c *Control) scheduleRecord(spec ScheduleSpec) (scheduleRecord, error) {
	k := spec.Keep
	r := scheduleRecord{
		EveryNanoseconds: int64(spec.Every),
		KeepLast:         k.Last, KeepHourly: k.Hourly, KeepDaily: k.Daily, KeepWeekly: k.Weekly, KeepMonthly: k.Monthly, KeepYearly: k.Yearly,
	}
	if err := errors.Join(checkEvery(spec.Every), k.Validate()); err != nil {
		return r, err
	}
	return r, c.aim(&r, spec.Target)
}

// aim gives a record its target.
func (c *Control) aim(r *scheduleRecord, target string) error {
	if group, ok := strings.CutPrefix(target, "@"); ok {
		if err := checkGroup(group); err != nil {
			return err
		}
		r.Group = group
		_, err := c.Group(group)
		return err
	}
	info, err := c.visible(target)
	r.Volume, r.UUID = target, info.UUID.String()
	return err
}

// SetSchedule makes a schedule, or changes the one that its target has. Its first snapshot is taken before SetSchedule returns, unless there is one of the same period already; if that fails, Schedule.Error says why.
func (c *Control) SetSchedule(spec ScheduleSpec) (Schedule, error) {
	record, err := c.scheduleRecord(spec)
	if err == nil {
		err = c.changeSchedules(func(all []scheduleRecord) ([]scheduleRecord, error) {
			if record.Group != "" { // under the lock that deleting a group takes as well
				if _, err := c.Group(record.Group); err != nil {
					return nil, err
				}
			}
			i, there := findSchedule(all, record.key())
			switch {
			case there:
				all[i] = record
				return all, nil
			case len(all) == maxSchedules:
				return nil, fmt.Errorf("there are %d schedules already: %w", maxSchedules, ErrRefused)
			}
			return slices.Insert(all, i, record), nil
		})
	}
	if err != nil {
		return Schedule{}, fmt.Errorf("set the schedule of %q: %w", spec.Target, err)
	}
	c.runSchedules(c.background)
	return c.schedule(&record, c.volumeNames()), nil
}

// DeleteSchedule ends a schedule. Its snapshots stay.
func (c *Control) DeleteSchedule(target string) error {
	var r scheduleRecord
	err := c.aim(&r, target)
	if err == nil {
		err = c.changeSchedules(func(all []scheduleRecord) ([]scheduleRecord, error) {
			i, there := findSchedule(all, r.key())
			if !there {
				return nil, block.ErrNotFound
			}
			return slices.Delete(all, i, i+1), nil
		})
	}
	if err != nil {
		return fmt.Errorf("delete the schedule of %q: %w", target, err)
	}
	return nil
}

// Schedules lists all schedules, those of volumes first, ordered by target.
func (c *Control) Schedules() []Schedule {
	names, all := c.volumeNames(), []Schedule{}
	for _, r := range c.schedules.records() {
		if r.Group != "" || names[r.UUID] != "" {
			all = append(all, c.schedule(&r, names))
		}
	}
	slices.SortFunc(all, func(a, b Schedule) int {
		if x, y := a.Target[0] == '@', b.Target[0] == '@'; x != y {
			if x {
				return 1
			}
			return -1
		}
		return strings.Compare(a.Target, b.Target)
	})
	return all
}

// schedule describes a schedule.
func (c *Control) schedule(r *scheduleRecord, names map[string]string) Schedule {
	s := Schedule{ScheduleSpec: ScheduleSpec{Target: "@" + r.Group, Every: r.every(), Keep: r.keep()}}
	if r.Group == "" {
		s.Target = names[r.UUID]
	}
	now := c.opts.Now()
	s.LastRun = c.lastRun(r)
	if s.NextRun = dueAfter(s.LastRun, r.every(), now); s.NextRun.Before(now) {
		s.NextRun = now
	}
	c.schedules.mu.Lock()
	defer c.schedules.mu.Unlock()
	s.Error = c.schedules.mu.errs[r.key()]
	return s
}

// refuseScheduled refuses to pull a group away under its schedule. Control.saving is held.
func (c *Control) refuseScheduled(group string) error {
	if _, there := findSchedule(c.schedules.records(), "@"+group); there {
		return fmt.Errorf("a schedule takes its snapshots; delete that first: %w", ErrRefused)
	}
	return nil
}

// scheduleProblems names the schedules whose last run failed.
func (c *Control) scheduleProblems() []string {
	names, problems := c.volumeNames(), []string{}
	c.schedules.mu.Lock()
	defer c.schedules.mu.Unlock()
	for _, r := range c.schedules.mu.all {
		if err := c.schedules.mu.errs[r.key()]; err != "" {
			target := "@" + r.Group
			if r.Group == "" {
				target = names[r.UUID]
			}
			problems = append(problems, fmt.Sprintf("the schedule of %s failed: %s", target, err))
		}
	}
	return problems
}
