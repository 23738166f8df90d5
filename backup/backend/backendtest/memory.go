package backendtest

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// Memory keeps objects in memory, which grow older when a test says so. The zero value is ready. Its methods may be called at once.
type Memory struct {
	mu struct {
		sync.Mutex
		objects map[string]memoryObject
	}
}

type memoryObject struct {
	data    []byte
	created time.Time
}

var _ backend.Backend = (*Memory)(nil)

// Wait makes all objects older.
func (m *Memory) Wait(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, o := range m.mu.objects {
		o.created = o.created.Add(-d)
		m.mu.objects[key] = o
	}
}

// Clone returns another one with the same objects, as old as these.
func (m *Memory) Clone() *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	clone := new(Memory)
	clone.mu.objects = maps.Clone(m.mu.objects) // whose bytes nobody changes
	return clone
}

// Bytes returns how many bytes all objects have whose keys begin with prefix.
func (m *Memory) Bytes(prefix string) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, o := range m.mu.objects {
		if strings.HasPrefix(key, prefix) {
			n += len(o.data)
		}
	}
	return n
}

// Create implements backend.Backend.
func (m *Memory) Create(ctx context.Context, key string, data []byte) error {
	if err := backend.CheckKey(key); err != nil {
		return err
	}
	runtime.Gosched() // others get their turn at every step
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, ok := m.mu.objects[key]; ok {
		return fmt.Errorf("object %s: %w", key, block.ErrExists)
	}
	if m.mu.objects == nil {
		m.mu.objects = make(map[string]memoryObject)
	}
	m.mu.objects[key] = memoryObject{append([]byte(nil), data...), time.Now()}
	return nil
}

func (m *Memory) find(ctx context.Context, key string) (memoryObject, error) {
	runtime.Gosched()
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.mu.objects[key]
	if !ok {
		return o, fmt.Errorf("object %s: %w", key, block.ErrNotFound)
	}
	return o, ctx.Err()
}

// ReadAt implements backend.Backend.
func (m *Memory) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	o, err := m.find(ctx, key)
	if err != nil {
		return err
	}
	if off < 0 || off+int64(len(p)) > int64(len(o.data)) {
		return &block.CorruptError{Source: "object " + key, Offset: off, Want: fmt.Sprintf("%d B", len(p)), Got: "its end"}
	}
	copy(p, o.data[off:])
	return nil
}

// Stat implements backend.Backend.
func (m *Memory) Stat(ctx context.Context, key string) (backend.Object, error) {
	o, err := m.find(ctx, key)
	return backend.Object{Key: key, SizeBytes: int64(len(o.data)), Created: o.created}, err
}

// List implements backend.Backend.
func (m *Memory) List(ctx context.Context, prefix string, visit func(backend.Object) error) error {
	m.mu.Lock()
	var all []backend.Object
	for key, o := range m.mu.objects {
		if strings.HasPrefix(key, prefix) {
			all = append(all, backend.Object{Key: key, SizeBytes: int64(len(o.data)), Created: o.created})
		}
	}
	m.mu.Unlock()
	for _, o := range all {
		runtime.Gosched()
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := visit(o); err != nil {
			return err
		}
	}
	return nil
}

// Delete implements backend.Backend.
func (m *Memory) Delete(ctx context.Context, key string) error {
	if _, err := m.find(ctx, key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.mu.objects, key)
	return nil
}

// Location implements backend.Backend.
func (m *Memory) Location() string { return "memory" }

// Close implements backend.Backend.
func (m *Memory) Close() error { return nil }
