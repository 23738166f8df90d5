package backend

import (
	"context"
	"time"
)

// Keeper is a Backend that sees to it itself that backups are not deleted while they are young: Delete of an object that is held returns block.ErrInUse until it has been there for so long. Held are all objects but those that can be made
// anew: runs of the index, marks, probes and what measurements store.
type Keeper interface {
	Backend

	// Keep returns for how long, by the clock of the backend. 0: objects are not held.
	Keep(ctx context.Context) (time.Duration, error)
}
