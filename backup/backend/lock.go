package backend

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Locker is a Backend that can keep an object from being deleted or replaced until a time, whoever asks for it: also who has all keys of the place. What is locked stays readable under its key, or, where somebody put
// something else over it, can be uncovered.
type Locker interface {
	Backend

	// CanLock returns nil if objects of this place can be locked. It changes nothing. ErrCannotLock says that they cannot, and why.
	CanLock(ctx context.Context) error

	// Lock sees to it that an object, as it is read now, is locked until a time at least, and returns until when it is. A lock that lasts as long, or longer, stays as it is; one that ends earlier, or none, becomes one until that
	// time and spare more, in whole seconds, so that the next one who asks for a little more need not change it. No lock ever ends earlier than it did. block.ErrNotFound if there is no such object.
	Lock(ctx context.Context, key string, until time.Time, spare time.Duration) (time.Time, error)

	// LockedUntil returns until when an object, as it is read now, is locked, which may be in the past; the zero time if it never was. block.ErrNotFound if there is no such object.
	LockedUntil(ctx context.Context, key string) (time.Time, error)

	// Hidden calls visit with each object under prefix that is locked at this moment and is not what is read under its key, until it returns an error, which Hidden returns.
	Hidden(ctx context.Context, prefix string, visit func(Hidden) error) error

	// Uncover makes a hidden object what is read under its key again. What lay over it is removed, or, where that is locked too, covered by the object once more, with the same lock.
	Uncover(ctx context.Context, h Hidden) error
}

// Hidden is a locked object that somebody has put something else over: a mark that it is deleted, or another object.
type Hidden struct {
	Object
	Version     string // what the place calls it
	LockedUntil time.Time
	Deleted     bool // else another object is read under its key
}

// ErrCannotLock means that a place cannot keep objects from being deleted.
var ErrCannotLock = errors.New("objects cannot be locked there")

// LockedError means that an object is locked, so that it could not be deleted.
type LockedError struct {
	Key   string
	Until time.Time
}

// Error says until when.
func (e *LockedError) Error() string {
	return fmt.Sprintf("%s is locked until %s", e.Key, e.Until.Local().Format(time.DateTime))
}

// Unwrap returns block.ErrInUse.
func (e *LockedError) Unwrap() error { return block.ErrInUse }

// LockerOf returns what locks the objects of a backend, or of the one that it stands before; ErrCannotLock if nothing does. Whether the place does, CanLock says.
func LockerOf(b Backend) (Locker, error) {
	for at := b; ; {
		if l, ok := at.(Locker); ok {
			return l, nil
		}
		before, ok := at.(interface{ Unwrap() Backend })
		if !ok {
			return nil, fmt.Errorf("%s: %w: that takes object storage, in a bucket that was made with object lock", b.Location(), ErrCannotLock)
		}
		at = before.Unwrap()
	}
}
