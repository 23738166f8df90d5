package control

import (
	"context"
	"fmt"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// Differences sums up what a Diff told, in bytes.
type Differences struct {
	Ranges                          uint64
	DataBytes, ZeroBytes, HoleBytes uint64
}

// TotalBytes is what changed.
func (d Differences) TotalBytes() uint64 { return d.DataBytes + d.ZeroBytes + d.HoleBytes }

// parseState reads VOLUME@SNAPSHOT, or VOLUME for what it is now.
func parseState(text string) (blockstore.StateName, error) {
	volume, snapshot, has := strings.Cut(text, "@")
	if !has {
		return blockstore.StateName{Volume: volume}, checkVolume(volume)
	}
	return blockstore.StateName{Volume: volume, Snapshot: snapshot}, checkVolumeSnapshot(volume, snapshot)
}

// Diff calls tell with the ranges in which to differs from from, in order, until tell fails. Each is VOLUME@SNAPSHOT, or VOLUME for what it is now; both are states of one volume, or of a clone and its origin. It costs
// what has changed. Neither can be deleted meanwhile.
func (c *Control) Diff(ctx context.Context, from, to string, tell func(blockstore.Change) error) (sum Differences, err error) {
	ctx, done, err := c.work(ctx)
	if err != nil {
		return sum, err
	}
	defer done()
	a, err := parseState(from)
	if err != nil {
		return sum, fmt.Errorf("differences: %w", err)
	}
	b, err := parseState(to)
	if err != nil {
		return sum, fmt.Errorf("differences: %w", err)
	}
	if a == b {
		return sum, fmt.Errorf("differences from %v to itself: name two states: %w", a, block.ErrInvalid)
	}
	var failed error
	err = c.engine.Diff(ctx, a, b, func(change blockstore.Change) bool {
		sum.Ranges++
		switch change.Kind {
		case blockstore.ChangeData:
			sum.DataBytes += change.Len
		case blockstore.ChangeZero:
			sum.ZeroBytes += change.Len
		default:
			sum.HoleBytes += change.Len
		}
		failed = tell(change)
		return failed == nil
	})
	if err == nil {
		err = failed
	}
	return sum, err
}
