package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
)

// batch is how many entries of a folder are brought into order at once, so that memory does not grow with what is in it.
const batch = 2048

// List implements backend.Backend. Objects come in the order of the parts of their keys.
func (d *Dir) List(ctx context.Context, prefix string, visit func(backend.Object) error) error {
	return d.ListAfter(ctx, prefix, "", visit)
}

// ListAfter is List from the first object on that comes after a key, which need not be there. An empty one is before all.
func (d *Dir) ListAfter(ctx context.Context, prefix, after string, visit func(backend.Object) error) error {
	folder := strings.TrimSuffix(prefix[:strings.LastIndex(prefix, "/")+1], "/")
	passed := parts(after)
	for _, part := range parts(folder) {
		if len(passed) == 0 {
			break
		}
		switch order := strings.Compare(part, passed[0]); {
		case order < 0:
			return nil // all that is in it comes before
		case order > 0:
			passed = nil
		default:
			passed = passed[1:]
		}
	}
	if err := (&listing{ctx: ctx, d: d, prefix: prefix, visit: visit}).folder(folder, passed); err != nil {
		return fmt.Errorf("list %s: %w", d.root, err)
	}
	return nil
}

// parts takes a key apart.
func parts(key string) []string {
	if key == "" {
		return nil
	}
	return strings.Split(key, "/")
}

// listing is a list that is being made.
type listing struct {
	ctx    context.Context
	d      *Dir
	prefix string
	visit  func(backend.Object) error
}

// folder lists what is in a folder, "" being the root, and comes after passed, a key as seen from it.
func (l *listing) folder(at string, passed []string) error {
	last, done := "", false
	if len(passed) > 0 {
		last = passed[0]
	}
	for {
		entries, more, err := l.d.entries(at, last, done)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return nil // gone meanwhile, or never there
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := l.ctx.Err(); err != nil {
				return err
			}
			onTheWay := len(passed) > 0 && e.Name() == passed[0] // to what was passed: a file is that, or comes before
			switch {
			case e.IsDir() && onTheWay:
				err = l.enter(path.Join(at, e.Name()), passed[1:])
			case e.IsDir():
				err = l.enter(path.Join(at, e.Name()), nil)
			case !onTheWay:
				err = l.file(path.Join(at, e.Name()), e)
			}
			if err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
		last, done = entries[len(entries)-1].Name(), true
	}
}

// enter lists a folder, if there can be something in it.
func (l *listing) enter(key string, passed []string) error {
	if key == temporary || !strings.HasPrefix(key, l.prefix) {
		return nil
	}
	return l.folder(key, passed)
}

func (l *listing) file(key string, e fs.DirEntry) error {
	if !e.Type().IsRegular() || !strings.HasPrefix(key, l.prefix) || backend.CheckKey(key) != nil {
		return nil
	}
	info, err := e.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return l.visit(backend.Object{Key: key, SizeBytes: info.Size(), Created: info.ModTime()})
}

// entries returns those of a folder that come after a name, or with done unset from it on, in order: the first of them, and whether there are more.
func (d *Dir) entries(at, name string, done bool) (first []fs.DirEntry, more bool, err error) {
	f, err := os.Open(filepath.Join(d.root, filepath.FromSlash(at)))
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	order := func() {
		slices.SortFunc(first, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
		if len(first) > batch {
			clear(first[batch:])
			first, more = first[:batch], true
		}
	}
	for {
		some, err := f.ReadDir(batch)
		for _, e := range some {
			if e.Name() > name || e.Name() == name && !done {
				first = append(first, e)
			}
		}
		if len(first) >= 4*batch {
			order()
		}
		if errors.Is(err, io.EOF) {
			order()
			return first, more, nil
		}
		if err != nil {
			return nil, false, err
		}
	}
}
