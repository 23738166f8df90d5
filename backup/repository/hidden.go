package repository

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
)

// Hidden returns the objects of a repository that are locked and hidden by something that was put over them, in order of their keys. It needs no key, and finds none where nothing can be locked.
func Hidden(ctx context.Context, b backend.Backend) ([]backend.Hidden, error) {
	l, err := locker(ctx, b)
	if errors.Is(err, backend.ErrCannotLock) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	prefixes := []string{configKey, slotPrefix, indexPrefix, markPrefix, manifestPrefix}
	const hex = "0123456789abcdef"
	for _, a := range hex {
		for _, b := range hex {
			prefixes = append(prefixes, packPrefix+string(a)+string(b)+"/")
		}
	}
	var found struct {
		sync.Mutex
		all []backend.Hidden
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(lockers)
	for _, prefix := range prefixes {
		g.Go(func() error {
			return l.Hidden(ctx, prefix, func(h backend.Hidden) error {
				found.Lock()
				defer found.Unlock()
				found.all = append(found.all, h)
				return nil
			})
		})
	}
	err = g.Wait()
	slices.SortFunc(found.all, func(a, b backend.Hidden) int { return cmp.Compare(a.Key, b.Key) })
	return found.all, err
}

// Uncover has a hidden object read under its key again.
func Uncover(ctx context.Context, b backend.Backend, h backend.Hidden) error {
	l, err := backend.LockerOf(b)
	if err != nil {
		return err
	}
	return l.Uncover(ctx, h)
}
