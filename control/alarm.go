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

// Alarm says that something with a bound has become more or less full.
type Alarm struct {
	At         time.Time `json:"at"`
	Kind       string    `json:"kind"`             // "space": the file system; "quota": of a volume
	Volume     string    `json:"volume,omitempty"` // of a quota
	State      string    `json:"state"`            // "ok", "near full" from 85 % on, "nearly full" from 95 % on, "full" when writes are refused
	UsedBytes  uint64    `json:"usedBytes,omitempty"`
	LimitBytes uint64    `json:"limitBytes,omitempty"` // of a quota
	FreeBytes  uint64    `json:"freeBytes,omitempty"`  // of the file system
}

// String is one line for people.
func (a Alarm) String() string {
	if a.Kind == "quota" {
		return fmt.Sprintf("the quota of volume %s is %s: %s of %s", a.Volume, a.State, units.Size(a.UsedBytes).Human(), units.Size(a.LimitBytes).Human())
	}
	return fmt.Sprintf("the file system of the store is %s: %s free", a.State, units.Size(a.FreeBytes).Human())
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

// rename moves what is known of a volume's quota to another name, or drops it if that is empty.
func (a *Alarms) rename(volume, to string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	old := Alarm{Kind: "quota", Volume: volume}.key()
	alarm, ok := a.now[old]
	delete(a.now, old)
	if alarm.Volume = to; ok && to != "" {
		a.now[alarm.key()] = alarm
	}
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
