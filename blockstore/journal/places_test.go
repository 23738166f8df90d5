package journal

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// mirrored returns options of a log in three directories.
func mirrored(fsys vfs.FS, boot uint64) Options {
	opts := testOptions(fsys, "log", boot)
	opts.Mirrors = []string{"m1", "m2"}
	return opts
}

// awaitPlaces waits until the directories are in the given states.
func awaitPlaces(t *testing.T, l *Log, want ...string) {
	t.Helper()
	var got []string
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); {
		got = got[:0]
		for _, p := range l.Places() {
			got = append(got, p.State)
		}
		if strings.Join(got, ",") == strings.Join(want, ",") {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("directories are %q, want %q: %v", got, want, l.Places())
}

// putSome appends and syncs n records and returns them.
func putSome(t *testing.T, l *Log, seed uint64, n int) (all []entry) {
	t.Helper()
	for i := range n {
		recs := oneWrite(seed + uint64(i))
		if err := l.Append(recs); err != nil {
			t.Fatal(err)
		}
		all = append(all, remember(&recs[0]))
	}
	if err := l.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	return all
}

// reopen opens the log as the next run does and compares what it replays.
func reopen(t *testing.T, opts Options, want []entry) *Log {
	t.Helper()
	l, got, err := tryOpen(opts, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if len(got) != len(want) {
		t.Fatalf("replayed %d records, want %d", len(got), len(want))
	}
	comparePrefix(t, got, want)
	for i := range want {
		if err := readBack(l, &want[i]); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// TestEachDirectoryAloneHasTheLog opens a log from each of its directories alone.
func TestEachDirectoryAloneHasTheLog(t *testing.T) {
	mem := vfs.NewCrashableMem()
	l, _ := openAll(t, mirrored(mem, 1))
	awaitPlaces(t, l, "in sync", "in sync", "in sync")
	all := putSome(t, l, 1, 60)
	abandon(t, l)
	for _, only := range []string{"log", "m1", "m2"} {
		clone := mem.CrashClone(vfs.CrashCloneCfg{})
		for _, dir := range []string{"log", "m1", "m2"} {
			if dir != only {
				if err := clone.RemoveAll(dir); err != nil {
					t.Fatal(err)
				}
			}
		}
		l := reopen(t, mirrored(clone, 2), all)
		if l.Missed() != 2 {
			t.Fatalf("%d directories are missed", l.Missed())
		}
		for _, p := range l.Places() {
			if want := map[bool]string{true: "in sync", false: "vacant"}[p.Dir == only]; p.State != want {
				t.Fatalf("%s is %s, want %s", p.Dir, p.State, want)
			}
		}
	}
}

// TestStaleDirectoryIsToldAndFilled takes a directory away, goes on without it, and brings it back as it was: it is not read, and is made good.
func TestStaleDirectoryIsToldAndFilled(t *testing.T) {
	mem := vfs.NewCrashableMem()
	l, _ := openAll(t, mirrored(mem, 1))
	all := putSome(t, l, 1, 30)
	abandon(t, l)
	was := mem.CrashClone(vfs.CrashCloneCfg{})
	for _, dir := range []string{"m1"} {
		if err := mem.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	l = reopen(t, mirrored(mem, 2), all)
	awaitPlaces(t, l, "in sync", "vacant", "in sync")
	all = append(all, putSome(t, l, 100, 40)...)
	abandon(t, l)
	if err := mem.MkdirAll("m1", 0o700); err != nil {
		t.Fatal(err)
	}
	copyDir(t, was, mem, "m1")
	// Alone beside another one it does not pass for up to date, though its own label says so.
	clone := mem.CrashClone(vfs.CrashCloneCfg{})
	if err := clone.RemoveAll("log"); err != nil {
		t.Fatal(err)
	}
	reopen(t, mirrored(clone, 3), all)

	l = reopen(t, mirrored(mem, 3), all)
	awaitPlaces(t, l, "in sync", "in sync", "in sync")
	all = append(all, putSome(t, l, 200, 10)...)
	abandon(t, l)
	for _, dir := range []string{"log", "m2"} {
		if err := mem.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	reopen(t, mirrored(mem, 4), all)
}

// copyDir copies the files of a directory from one file system to another.
func copyDir(t *testing.T, from, to vfs.FS, dir string) {
	t.Helper()
	names, err := from.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		path := from.PathJoin(dir, name)
		src, err := from.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		st, err := src.Stat()
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, st.Size())
		if err := vfs.ReadFull(src, b, 0); err != nil && len(b) > 0 {
			t.Fatal(err)
		}
		dst, err := vfs.Create(to, path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := dst.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(dst.Sync(), dst.Close(), src.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if err := vfs.SyncDir(to, dir); err != nil {
		t.Fatal(err)
	}
}

// TestFailingDirectoryDropsOut lets each operation of one directory fail from some moment on: nobody who appends sees it, and what was acknowledged is in the others.
func TestFailingDirectoryDropsOut(t *testing.T) {
	for _, bad := range []string{"log", "m1"} {
		for _, kind := range []errorfs.OpKind{errorfs.OpFileWriteAt, errorfs.OpFileSyncData, errorfs.OpCreate, errorfs.OpFilePreallocate} {
			t.Run(fmt.Sprint(bad, kind), func(t *testing.T) { dropsOut(t, bad, kind) })
		}
	}
}

func dropsOut(t *testing.T, bad string, kind errorfs.OpKind) {
	mem := vfs.NewCrashableMem()
	var failing atomic.Bool
	fsys := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if failing.Load() && op.Kind == kind && strings.HasPrefix(op.Path, bad) {
			return syscall.EIO
		}
		return nil
	}))
	opts := mirrored(fsys, 1)
	var events atomic.Int32
	opts.Events.Place = func(PlaceInfo) { events.Add(1) }
	l, _ := openAll(t, opts)
	all := putSome(t, l, 1, 20)
	failing.Store(true)
	all = append(all, putSome(t, l, 100, 60)...) // several files
	want := map[string][]string{"log": {"failed", "in sync", "in sync"}, "m1": {"in sync", "failed", "in sync"}}[bad]
	awaitPlaces(t, l, want...)
	if events.Load() != 1 {
		t.Fatalf("%d events", events.Load())
	}
	for i := range all {
		if err := readBack(l, &all[i]); err != nil {
			t.Fatal(err)
		}
	}
	failing.Store(false)
	// It has come back: in place, as it was. Somebody says so.
	if err := l.Replace(bad, bad); err != nil {
		t.Fatal(err)
	}
	awaitPlaces(t, l, "in sync", "in sync", "in sync")
	all = append(all, putSome(t, l, 300, 20)...)
	abandon(t, l)
	only := mem.CrashClone(vfs.CrashCloneCfg{})
	for _, dir := range []string{"log", "m1", "m2"} {
		if dir != bad {
			if err := only.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
	}
	reopen(t, mirrored(only, 2), all)
}

// TestLastDirectoryFails lets all directories fail: then the log has failed, as one in a single directory.
func TestLastDirectoryFails(t *testing.T) {
	var failing atomic.Bool
	fsys := errorfs.Wrap(vfs.NewCrashableMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if failing.Load() && op.Kind == errorfs.OpFileWriteAt {
			return syscall.EIO
		}
		return nil
	}))
	l, _ := openAll(t, mirrored(fsys, 1))
	all := putSome(t, l, 1, 5)
	failing.Store(true)
	if err := l.Append(oneWrite(9)); !errors.Is(err, ErrFailed) {
		t.Fatal(err)
	}
	if err := readBack(l, &all[0]); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
}

// TestReplaceByAnother takes another directory in the place of one that is in sync; the old one stays until the new one is.
func TestReplaceByAnother(t *testing.T) {
	mem := vfs.NewCrashableMem()
	l, _ := openAll(t, mirrored(mem, 1))
	all := putSome(t, l, 1, 50)
	if err := l.Replace("m1", "new"); err != nil {
		t.Fatal(err)
	}
	awaitPlaces(t, l, "in sync", "in sync", "in sync")
	if p := l.Places()[2]; p.Dir != "new" {
		t.Fatalf("the third directory is %s", p.Dir)
	}
	if err := l.Replace("m1", "other"); !errors.Is(err, block.ErrNotFound) {
		t.Fatal(err)
	}
	all = append(all, putSome(t, l, 100, 50)...)
	abandon(t, l)
	for _, dir := range []string{"log", "m2"} {
		if err := mem.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	opts := mirrored(mem, 2)
	opts.Mirrors = []string{"new", "m1"}
	l = reopen(t, opts, all)
	awaitPlaces(t, l, "vacant", "in sync", "in sync") // m1 is stale, and filled again
}

// TestDamagedSectorIsReadFromAnother damages sectors in one directory: reads give the right bytes, and write them back.
func TestDamagedSectorIsReadFromAnother(t *testing.T) {
	mem := vfs.NewCrashableMem()
	opts := mirrored(mem, 1)
	mended := 0
	opts.Events.Mended = func(dir string, err error) {
		if dir != "log" || !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("mended in %s: %v", dir, err)
		}
		mended++
	}
	l, _ := openAll(t, opts)
	defer l.Close()
	all := putSome(t, l, 1, 12)
	for i := range all {
		f, err := vfs.OpenUpdate(mem, "log/"+fileName(all[i].Pos.File()))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("damage"), all[i].Pos.Offset()+77); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if err := l.TryReadAt(make([]byte, all[i].Len), all[i].Pos, all[i].Sums); err != block.ErrWouldBlock {
			t.Fatalf("read without waiting: %v", err)
		}
		for range 2 {
			if err := readBack(l, &all[i]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if mended != len(all) {
		t.Fatalf("mended %d of %d", mended, len(all))
	}
}

// TestRecoveryTakesTheBestOfEachFile damages one file in one directory and the next one in another: recovery has all records, and mends both.
func TestRecoveryTakesTheBestOfEachFile(t *testing.T) {
	mem := vfs.NewCrashableMem()
	l, _ := openAll(t, mirrored(mem, 1))
	all := putSome(t, l, 1, 60)
	abandon(t, l)
	ids := map[uint32]bool{}
	for i := range all {
		ids[all[i].Pos.File()] = true
	}
	if len(ids) < 3 {
		t.Fatalf("only %d files", len(ids))
	}
	n := 0
	for id := range ids {
		dir := []string{"log", "m1", "m2"}[n%3]
		n++
		f, err := vfs.OpenUpdate(mem, dir+"/"+fileName(id))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(make([]byte, 64<<10), 0); err != nil { // the whole file is zeroes
			t.Fatal(err)
		}
		f.Close()
	}
	l = reopen(t, mirrored(mem, 2), all)
	abandon(t, l)
	for _, dir := range []string{"log", "m1"} {
		if err := mem.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	reopen(t, mirrored(mem, 3), all)
}

// TestForeignDirectoryIsRefused names the directory of another store.
func TestForeignDirectoryIsRefused(t *testing.T) {
	mem := vfs.NewCrashableMem()
	opts := mirrored(mem, 1)
	opts.StoreID = block.UUID{9}
	l, _ := openAll(t, opts)
	abandon(t, l)
	opts = mirrored(mem, 2)
	opts.Dir = "other"
	if _, _, err := tryOpen(opts, 0); !errors.Is(err, block.ErrInvalid) || !strings.Contains(err.Error(), "belongs to store") {
		t.Fatal(err)
	}
}
