package backend

import "context"

// Quoter is a Backend at a place that may bound how much it keeps.
type Quoter interface {
	Backend

	// Quota returns what is kept, and how much that may be.
	Quota(ctx context.Context) (Quota, error)
}

// Quota is how much a place keeps. Objects that would be over a limit are block.ErrNoSpace.
type Quota struct {
	UsedBytes, LimitBytes         uint64 // of the repository; LimitBytes 0: there is none, and UsedBytes is not known
	Peer                          string // what the place calls who asks
	PeerUsedBytes, PeerLimitBytes uint64 // of who asks, in all repositories of the place; 0: none
}
