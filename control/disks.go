package control

import (
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// Disks is how the disks of the store are.
type Disks struct {
	Degraded        bool // less is there than there shall be
	Disks           []blockstore.DiskInfo
	Missed          int    // directories that were in use at the last run and are not there
	SegmentsLacking int    // with fewer shards than they shall have
	SegmentsWaiting int    // not cut as they shall be yet
	BytesLeft       uint64 // of both, and of log files that disks still lack
}

// Disks looks for the disks and returns their state.
func (c *Control) Disks() Disks {
	c.engine.ProbeDisks()
	r := c.engine.Redundancy()
	return Disks{r.Degraded(), r.Disks, r.Missed, r.SegmentsLacking, r.SegmentsWaiting, r.BytesLeft}
}

// ReplaceDisk takes the directory at path in the place of a disk. It returns when that has begun.
func (c *Control) ReplaceDisk(old, path string) (Disks, error) {
	if old == "" || path == "" || len(old) > maxPath || len(path) > maxPath || path[0] != '/' {
		return Disks{}, fmt.Errorf("replace disk %q by %q: want absolute paths: %w", old, path, block.ErrInvalid)
	}
	if err := c.engine.ReplaceDisk(old, path); err != nil {
		return Disks{}, fmt.Errorf("replace disk: %w", err)
	}
	return c.Disks(), nil
}

// maxPath bounds a path from outside, in bytes.
const maxPath = 4096

// diskProblems says what is wrong with disks, and what to do.
func diskProblems(r blockstore.Redundancy) (problems []string) {
	for _, d := range r.Disks {
		for _, part := range []struct{ name, state string }{{"log", d.Log}, {"segments", d.Segments}} {
			switch part.state {
			case "", "in sync":
			case "filling":
				problems = append(problems, fmt.Sprintf("disk %s: its %s are being made anew, %d log files are left", d.Path, part.name, d.LogFiles))
			default:
				text := fmt.Sprintf("disk %s: its %s are %s, the store goes on without", d.Path, part.name, part.state)
				if d.Problem != "" {
					text += " (" + d.Problem + ")"
				}
				problems = append(problems, text+"; when another disk is there, hv-storage-fabric disk replace "+d.Path+" PATH")
			}
		}
	}
	if r.Missed > 0 && len(problems) == 0 {
		problems = append(problems, fmt.Sprintf("%d disks that were in use are not in store.disks, or empty", r.Missed))
	}
	if r.SegmentsLacking > 0 {
		problems = append(problems, fmt.Sprintf("%d segments have fewer shards than they shall have", r.SegmentsLacking))
	}
	return problems
}
