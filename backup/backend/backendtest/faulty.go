package backendtest

import (
	"context"
	"errors"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
)

// ErrFault is what a Faulty backend fails with.
var ErrFault = errors.New("fault on purpose")

// Faulty lets one change of the Backend below fail, or all from one on.
type Faulty struct {
	backend.Backend

	At      int  // the number of the Create or Delete that fails, from 1
	Applied bool // it is carried out all the same, and only its answer is lost
	Dead    bool // whatever comes after it fails too, reads included, as after a kill of the program

	mu struct {
		sync.Mutex
		changes int
	}
}

// Reached reports whether the fault has come.
func (f *Faulty) Reached() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.changes >= f.At
}

// change carries out a change, or not.
func (f *Faulty) change(do func() error) error {
	f.mu.Lock()
	f.mu.changes++
	number := f.mu.changes
	f.mu.Unlock()
	switch {
	case number < f.At, number > f.At && !f.Dead:
		return do()
	case number == f.At && f.Applied:
		if err := do(); err != nil {
			return err
		}
	}
	return ErrFault
}

func (f *Faulty) look(do func() error) error {
	if f.Dead && f.Reached() {
		return ErrFault
	}
	return do()
}

// Create implements backend.Backend.
func (f *Faulty) Create(ctx context.Context, key string, data []byte) error {
	return f.change(func() error { return f.Backend.Create(ctx, key, data) })
}

// Delete implements backend.Backend.
func (f *Faulty) Delete(ctx context.Context, key string) error {
	return f.change(func() error { return f.Backend.Delete(ctx, key) })
}

// ReadAt implements backend.Backend.
func (f *Faulty) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	return f.look(func() error { return f.Backend.ReadAt(ctx, key, p, off) })
}

// Stat implements backend.Backend.
func (f *Faulty) Stat(ctx context.Context, key string) (o backend.Object, err error) {
	err = f.look(func() error { o, err = f.Backend.Stat(ctx, key); return err })
	return o, err
}

// List implements backend.Backend.
func (f *Faulty) List(ctx context.Context, prefix string, visit func(backend.Object) error) error {
	return f.look(func() error { return f.Backend.List(ctx, prefix, visit) })
}
