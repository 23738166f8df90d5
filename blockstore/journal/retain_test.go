package journal

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// TestRetainFrom: an owner that replays from a position may have the files before it kept, until it lets them go; one of them that is damaged is no obstacle.
func TestRetainFrom(t *testing.T) {
	dir := t.TempDir()
	opts := testOptions(vfs.Default, dir, 1)
	l, _ := openAll(t, opts)
	rng := rand.New(rand.NewPCG(4, 4))
	var all []entry
	for l.Usage().Files < 8 {
		all = append(all, appendRandom(t, l, rng)...)
	}
	oldest, next := l.Usage().Oldest, l.NextPos()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	open := func(boot uint64, retain Pos) *Log {
		t.Helper()
		opts := testOptions(vfs.Default, dir, boot)
		opts.RetainFrom = retain
		n := 0
		l, err := Open(opts, makePos(next.File(), 0), func(*Replayed) error { n++; return nil })
		if err != nil {
			t.Fatal(err)
		}
		if n >= len(all) {
			t.Fatalf("replayed %d of %d", n, len(all))
		}
		return l
	}
	l = open(2, oldest)
	if got := l.Usage().Oldest; got.File() != oldest.File() {
		t.Fatalf("the log begins at %v, not at %v", got, oldest)
	}
	if err := readBack(l, &all[0]); err != nil {
		t.Fatal(err)
	}
	if err := l.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := l.ReleaseBefore(makePos(oldest.File()+3, 0)); err != nil {
		t.Fatal(err)
	}
	if got := l.Usage().Oldest; got.File() != oldest.File()+3 {
		t.Fatalf("after a release the log begins at %v", got)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, fileName(oldest.File()+4))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	clear(b[len(b)-pageSize:])
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	l = open(3, makePos(oldest.File()+3, 0))
	if got := l.Usage().Oldest; got.File() != oldest.File()+5 {
		t.Fatalf("with a damaged file before it the log begins at %v", got)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}
