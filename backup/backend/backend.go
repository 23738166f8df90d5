package backend

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Backend is a place that keeps objects. All methods may be called at once from any number of goroutines. An error that more tries may mend is any but those named here.
type Backend interface {
	// Create stores an object and returns when it is durable. If there is one under the key already it returns block.ErrExists, whatever that one holds, and changes nothing; if
	// there is no room, block.ErrNoSpace. A caller that got another error, or none at all, must look whether the object is there. data is not kept.
	Create(ctx context.Context, key string, data []byte) error

	// ReadAt fills p from offset off of an object. block.ErrNotFound if there is none; a range that ends behind the object's end is block.ErrCorrupt.
	ReadAt(ctx context.Context, key string, p []byte, off int64) error

	// Stat returns what List would of one object, or block.ErrNotFound.
	Stat(ctx context.Context, key string) (Object, error)

	// List calls visit with the objects whose keys begin with prefix, in no order, until it returns an error, which List returns. Objects that come or go meanwhile may be missed.
	List(ctx context.Context, prefix string, visit func(Object) error) error

	// Delete removes an object and returns when that is durable; block.ErrNotFound if there is none.
	Delete(ctx context.Context, key string) error

	// Location says where it is, for people, without secrets.
	Location() string

	Close() error
}

// ErrUnreachable means that a backend did not answer, or said that it cannot serve, however often it was asked. It comes beside the reason.
var ErrUnreachable = errors.New("the storage cannot be reached")

// Object is an object as List shows it.
type Object struct {
	Key       string
	SizeBytes int64
	Created   time.Time // by the clock of the backend
}

// Bounds of keys. They are part of the repository format.
const (
	maxKey   = 200 // bytes
	maxParts = 4   // between slashes
)

// CheckKey returns block.ErrInvalid for a key that a backend need not take: keys have 1 to 4 parts with slashes between, each of lower-case letters, digits, dots, dashes and
// underscores, none beginning with a dot, and at most 200 bytes in all.
func CheckKey(key string) error {
	parts := strings.Split(key, "/")
	ok := len(key) <= maxKey && len(parts) <= maxParts
	for _, part := range parts {
		ok = ok && part != "" && part[0] != '.' && onlyKeyBytes(part)
	}
	if !ok {
		return fmt.Errorf("object key %q: %w", key, block.ErrInvalid)
	}
	return nil
}

func onlyKeyBytes(part string) bool {
	for _, c := range []byte(part) {
		lower, digit := 'a' <= c && c <= 'z', '0' <= c && c <= '9'
		if !lower && !digit && c != '.' && c != '-' && c != '_' {
			return false
		}
	}
	return true
}
