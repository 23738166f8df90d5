package api

import "fmt"

// places are for so many requests of a kind at a time.
type places chan struct{}

// take takes one, which leave gives back. What a client reads when there is none begins with busy.
func (p places) take(busy string) (leave func(), err error) {
	select {
	case p <- struct{}{}:
		return func() { <-p }, nil
	default:
		return nil, fmt.Errorf("%s; at most %d at a time, try again when one has ended: %w", busy, cap(p), errBusy)
	}
}
