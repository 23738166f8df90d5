package control

import (
	"fmt"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// conditionsEvery is how often is looked at what has no events of its own; whoever asks for the status looks, too.
const conditionsEvery = 5 * time.Second

// watchConditions looks at them until Close.
func (c *Control) watchConditions() error {
	done, err := c.begin()
	if err != nil {
		return err
	}
	go func() {
		defer done()
		tick := time.NewTicker(conditionsEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				c.checkConditions()
			case <-c.background.Done():
				return
			}
		}
	}()
	return nil
}

// checkConditions raises and ends the alarms of overcommit, disks and damage by the marks of the settings. It costs no scan.
func (c *Control) checkConditions() {
	marks := c.opts.Config.Alarms
	stats, now := c.engine.Stats(), c.opts.Now()
	c.tellCondition(AlarmOvercommit, overcommitted(stats, marks.Overcommit))
	c.tellCondition(AlarmDisk, c.degradedFor(now, marks.DegradedAfter, c.engine.Redundancy()))
	c.tellCondition(AlarmDamage, damaged(stats, c.engine.Damages(), marks.Damage))
}

// tellCondition raises an alarm with what is so, or ends it if that is nothing.
func (c *Control) tellCondition(kind, detail string) {
	alarm := Alarm{At: c.opts.Now().UTC(), Kind: kind, State: stateRaised, Detail: detail}
	if detail == "" {
		alarm.State = blockstore.FillOK.String()
	}
	if !c.Alarms().condition(alarm) {
		return
	}
	if detail == "" {
		c.log.Info("alarm ended", "kind", kind)
		return
	}
	c.log.Warn("alarm", "kind", kind, "detail", detail, "next", alarm.Next())
}

// overcommitted says that the volumes promise at least times what is stored and free together; 0 is never.
func overcommitted(s blockstore.Stats, times int) string {
	capacity := s.StoredBytes + s.FreeBytes
	if times == 0 || capacity == 0 || float64(s.LogicalBytes) < float64(times)*float64(capacity) {
		return ""
	}
	size := func(n uint64) string { return units.Size(n).Human() }
	return fmt.Sprintf("the volumes promise %s, at least %d times the %s that are stored and free (alarms.overcommit)", size(s.LogicalBytes), times, size(capacity))
}

// degradedFor says which disks are not as they should be, once that has lasted.
func (c *Control) degradedFor(now time.Time, least time.Duration, r blockstore.Redundancy) string {
	c.degraded.Lock()
	defer c.degraded.Unlock()
	if !r.Degraded() {
		c.degraded.since = time.Time{}
		return ""
	}
	if c.degraded.since.IsZero() {
		c.degraded.since = now
	}
	if now.Sub(c.degraded.since) < least {
		return ""
	}
	var all []string
	for _, d := range r.Disks {
		for _, part := range []struct{ name, state string }{{"log", d.Log}, {"segments", d.Segments}} {
			if part.state != "" && part.state != "in sync" {
				all = append(all, fmt.Sprintf("%s of disk %s: %s", part.name, d.Path, part.state))
			}
		}
	}
	if r.Missed > 0 {
		all = append(all, fmt.Sprintf("%d disks that were in use are not there", r.Missed))
	}
	if len(all) == 0 {
		all = append(all, "segments have fewer shards than they shall have")
	}
	return "redundancy is degraded: " + strings.Join(all, ", ")
}

// damaged says how much was found damaged since the start and is not mended, if that are at least so many findings; 0 is never.
func damaged(s blockstore.Stats, damages []blockstore.Damage, least int) string {
	segments, files := 0, 0
	for _, d := range damages {
		switch {
		case d.Mended:
		case d.History != nil:
			files++
		default:
			segments++
		}
	}
	if least == 0 || segments+files == 0 && s.Corruptions == 0 || uint64(segments+files)+s.Corruptions < uint64(least) {
		return ""
	}
	what := fmt.Sprintf("%d segments", segments)
	if files > 0 {
		what += fmt.Sprintf(", %d files of history", files)
	}
	return fmt.Sprintf("damage was found since the start that is not mended: %s, and %d times data failed its check", what, s.Corruptions)
}
