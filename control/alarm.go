package control

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// Kinds of alarms. They are part of the interface: labels of metrics, and the field kind.
const (
	AlarmSpace       = "space"        // how full the file system of the store is
	AlarmQuota       = "quota"        // how full the quota of a volume is
	AlarmUniqueQuota = "unique-quota" // the same of its bound on what it alone holds
	AlarmOvercommit  = "overcommit"   // the volumes promise many times what there is
	AlarmDisk        = "disk"         // less redundancy is there than there shall be
	AlarmDamage      = "damage"       // data was found damaged, and is not mended
)

// AlarmKinds are all kinds.
func AlarmKinds() []string {
	return []string{AlarmSpace, AlarmQuota, AlarmUniqueQuota, AlarmOvercommit, AlarmDisk, AlarmDamage}
}

// stateRaised is the state of an alarm that is there or not.
const stateRaised = "raised"

// Alarm says that something with a bound has become more or less full, or that something is as it should not be, or no longer.
type Alarm struct {
	At         time.Time `json:"at"`
	Kind       string    `json:"kind"`             // one of the constants
	Volume     string    `json:"volume,omitempty"` // of a quota
	State      string    `json:"state"`            // "ok"; of what fills up "near full" and "nearly full" from the marks of the settings on, "full" when writes are refused; else "raised"
	UsedBytes  uint64    `json:"usedBytes,omitempty"`
	LimitBytes uint64    `json:"limitBytes,omitempty"` // of a quota
	FreeBytes  uint64    `json:"freeBytes,omitempty"`  // of the file system
	Detail     string    `json:"detail,omitempty"`     // what is so, where it is not how full something is
}

// Severity is 0 for what is ok, 1 for near full, 2 for nearly full and what is raised, 3 for full.
func (a Alarm) Severity() int {
	switch a.State {
	case blockstore.FillOK.String():
		return 0
	case blockstore.FillNear.String():
		return 1
	case blockstore.FillFull.String():
		return 3
	}
	return 2
}

// String is one line for people: what is so, without what to do.
func (a Alarm) String() string {
	size := func(n uint64) string { return units.Size(n).Human() }
	switch a.Kind {
	case AlarmSpace:
		return fmt.Sprintf("the file system of the store is %s: %s free", a.State, size(a.FreeBytes))
	case AlarmQuota, AlarmUniqueQuota:
		what := "quota of volume " + a.Volume
		if a.Kind == AlarmUniqueQuota {
			what = "quota on unique data of volume " + a.Volume
		}
		if a.LimitBytes == 0 {
			return "the " + what + " was taken away"
		}
		return fmt.Sprintf("the %s is %s: %s of %s", what, a.State, size(a.UsedBytes), size(a.LimitBytes))
	}
	if a.State == blockstore.FillOK.String() {
		return a.Kind + ": no longer"
	}
	return a.Detail
}

// Next is what to do about it; empty where nothing is.
func (a Alarm) Next() string {
	if a.Severity() == 0 {
		return ""
	}
	switch a.Kind {
	case AlarmSpace:
		return "hv-storage-fabric store explain says what holds the space; delete snapshots or volumes and wait for store gc run, or make the file system larger"
	case AlarmQuota:
		return "trim in the guest (fstrim), or raise it: hv-storage-fabric volume quota set " + a.Volume + " --referenced SIZE"
	case AlarmUniqueQuota:
		return "delete snapshots of it, trim in the guest (fstrim), or raise it: hv-storage-fabric volume quota set " + a.Volume + " --unique SIZE"
	case AlarmOvercommit:
		return "add room before the guests use what they were promised, or bound them: hv-storage-fabric volume quota set NAME --referenced SIZE"
	case AlarmDisk:
		return "hv-storage-fabric disk list says which; a disk that comes back is filled by itself, another one takes its place with hv-storage-fabric disk replace OLD NEW"
	case AlarmDamage:
		return "hv-storage-fabric store scrub status says which volumes it affects; hv-storage-fabric store repair tries again, else restore these places from a backup"
	}
	return ""
}

// Line is String and Next.
func (a Alarm) Line() string {
	if next := a.Next(); next != "" {
		return a.String() + "; next: " + next
	}
	return a.String()
}

func (a Alarm) key() string { return a.Kind + " " + a.Volume }

// alarmsHeld is how many alarms a subscriber may be behind before the oldest of them are dropped: states follow each other, so the newest count.
const alarmsHeld = 64

// Alarms tells subscribers what changes. The zero value works.
type Alarms struct {
	mu    sync.Mutex
	now   map[string]Alarm // what is not ok, by kind and volume
	heard map[chan Alarm]bool
}

// raise tells everybody of a change. It does not block.
func (a *Alarms) raise(alarm Alarm) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.now == nil {
		a.now = map[string]Alarm{}
	}
	if alarm.State == blockstore.FillOK.String() {
		delete(a.now, alarm.key())
	} else {
		a.now[alarm.key()] = alarm
	}
	for c := range a.heard {
		for sent := false; !sent; {
			select {
			case c <- alarm:
				sent = true
			default:
				select {
				case <-c:
				default:
				}
			}
		}
	}
}

// rename moves what is known of a volume's quotas to another name, or drops it if that is empty.
func (a *Alarms) rename(volume, to string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, kind := range []string{AlarmQuota, AlarmUniqueQuota} {
		old := Alarm{Kind: kind, Volume: volume}.key()
		alarm, ok := a.now[old]
		delete(a.now, old)
		if alarm.Volume = to; ok && to != "" {
			a.now[alarm.key()] = alarm
		}
	}
}

// condition raises an alarm that has no events of its own, or ends it, and reports whether that is news. What is as it was keeps its time.
func (a *Alarms) condition(alarm Alarm) bool {
	a.mu.Lock()
	was, raised := a.now[alarm.key()]
	a.mu.Unlock()
	if alarm.Severity() == 0 && !raised || raised && was.State == alarm.State && was.Detail == alarm.Detail {
		return false
	}
	a.raise(alarm)
	return true
}

// Now returns what is not ok, ordered by kind and volume.
func (a *Alarms) Now() []Alarm {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.nowLocked()
}

func (a *Alarms) nowLocked() []Alarm {
	all := make([]Alarm, 0, len(a.now))
	for _, alarm := range a.now {
		all = append(all, alarm)
	}
	slices.SortFunc(all, func(x, y Alarm) int { return cmp.Compare(x.key(), y.key()) })
	return all
}

// Subscribe returns what is not ok, and a channel of what changes from then on. The channel ends with ctx.
func (a *Alarms) Subscribe(ctx context.Context) ([]Alarm, <-chan Alarm) {
	c := make(chan Alarm, alarmsHeld)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.heard == nil {
		a.heard = map[chan Alarm]bool{}
	}
	a.heard[c] = true
	context.AfterFunc(ctx, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.heard, c)
		close(c)
	})
	return a.nowLocked(), c
}
