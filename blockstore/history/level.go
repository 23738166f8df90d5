package history

import "time"

// Level says how much of a stretch of history is left. The values are part of the format.
type Level uint32

const (
	Whole   Level = 0 // every record
	Flushes Level = 1 // what a volume was after each flush, and after the last record of a minute without one
	Minutes Level = 2 // after the last flush of each minute, or the last record of a minute without one
	Hours   Level = 3 // the same of each hour
)

// String is "whole", "flushes", "minutes" or "hours".
func (l Level) String() string {
	if l > Hours {
		return "unknown"
	}
	return [...]string{"whole", "flushes", "minutes", "hours"}[l]
}

// width is the length of the stretches of which one point is left, in ns.
func (l Level) width() int64 {
	if l == Hours {
		return int64(time.Hour)
	}
	return int64(time.Minute)
}

// Root is a state of the volume that the owner can read without history: moments after it, up to the next one, stand on it.
type Root struct {
	Seq  uint64 // no record has it
	Time int64  // ns since the epoch
}

// Thinning says how a stream is thinned.
type Thinning struct {
	// Roots are all that there are up to the last one, oldest first; everything before that was appended. What lies between the last one and the end stays whole.
	Roots []Root
	// Level is how much is left of a stretch whose newest part is of that time, ns since the epoch.
	Level func(newest int64) Level
	// Pace is called before so many bytes are read or written, and ends the work with an error. It may wait.
	Pace func(bytes int) error
	// Room, if not nil, reports whether so many bytes may be written before any are freed; what is larger stays as it is, for the next call.
	Room func(bytes int64) bool
	// Step, if not nil, is called before each step that is durable; tests stop there.
	Step func(ThinStep)
}

// ThinStep is a place in the replacement of a file.
type ThinStep uint8

// The steps, in their order.
const (
	BeforeWrite  ThinStep = iota // nothing is there
	BeforeRename                 // the new file is durable under another name
	BeforeSync                   // it has its name, which is not durable
	BeforeRemove                 // the others that it stands for are still there
	AfterRemove
	Unguarded // between the second and the third, of a file that has parity: that is gone, and the file still there
)

// Thinned says what was done.
type Thinned struct {
	Files         int   // that were made
	Before, After int64 // bytes on disk of what was replaced, and of what replaced it
}

func (t *Thinned) add(o Thinned) {
	t.Files, t.Before, t.After = t.Files+o.Files, t.Before+o.Before, t.After+o.After
}
