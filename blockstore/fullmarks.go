package blockstore

import (
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// FullMarks are the parts, in percent, from which on something with a bound counts as near full and as nearly full. 0 is the default: 85 and 95.
type FullMarks struct {
	SpaceNear, SpaceCritical int // of the file system under the store
	QuotaNear, QuotaCritical int // of a quota
}

// twoMarks are two marks in percent.
type twoMarks struct{ near, critical int }

func (m FullMarks) space() twoMarks { return twoMarks{m.SpaceNear, m.SpaceCritical}.withDefaults() }
func (m FullMarks) quota() twoMarks { return twoMarks{m.QuotaNear, m.QuotaCritical}.withDefaults() }

func (t twoMarks) withDefaults() twoMarks {
	if t.near == 0 {
		t.near = 85
	}
	if t.critical == 0 {
		t.critical = 95
	}
	return t
}

// Validate reports marks out of order: both must be from 5 to 100, and the first one not above the second.
func (m FullMarks) Validate() error {
	for _, t := range []twoMarks{m.space(), m.quota()} {
		if t.near < 5 || t.critical > 100 || t.near > t.critical {
			return fmt.Errorf("near full from %d %% and nearly full from %d %% on: want 5 to 100, in this order: %w", t.near, t.critical, block.ErrInvalid)
		}
	}
	return nil
}
