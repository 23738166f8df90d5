package throttle

import (
	"context"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
)

// limited is a backend whose objects pass a bucket.
type limited struct {
	backend.Backend
	bucket *Bucket
}

// Limit returns b with what it stores and reads kept within a rate. It counts the bytes of objects, and lets each through as a whole: for a backend that does not count itself.
func Limit(b backend.Backend, bucket *Bucket) backend.Backend {
	if bucket == nil {
		return b
	}
	return &limited{b, bucket}
}

// Unwrap returns the backend that is limited. Locks go to it: they are no bytes of objects.
func (l *limited) Unwrap() backend.Backend { return l.Backend }

// Create implements backend.Backend.
func (l *limited) Create(ctx context.Context, key string, data []byte) error {
	if err := l.bucket.takeAll(ctx, len(data)); err != nil {
		return err
	}
	return l.Backend.Create(ctx, key, data)
}

// ReadAt implements backend.Backend.
func (l *limited) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	if err := l.bucket.takeAll(ctx, len(p)); err != nil {
		return err
	}
	return l.Backend.ReadAt(ctx, key, p, off)
}

// takeAll takes n bytes piece by piece, so that others get their turn.
func (b *Bucket) takeAll(ctx context.Context, n int) error {
	for n > 0 {
		piece := min(n, b.Piece())
		if err := b.Take(ctx, piece); err != nil {
			return err
		}
		n -= piece
	}
	return ctx.Err()
}
