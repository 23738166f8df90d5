package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"slices"
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

// TestControlRecordIsReadFromAnother damages the payload of a control record in a sealed file of one directory, of a log that is encrypted and of one that is not: recovery has it from another, and fails only when none has it.
func TestControlRecordIsReadFromAnother(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		mem := vfs.NewCrashableMem()
		options := func(boot uint64) Options {
			opts := mirrored(mem, boot)
			if sealed {
				opts.Keys = testRing()
			}
			return opts
		}
		l, _ := openAll(t, options(1))
		awaitPlaces(t, l, "in sync", "in sync", "in sync")
		recs := []Record{marked(1, Write, "some data"), marked(2, FirstControl, "what a volume became")}
		if err := l.Append(recs); err != nil {
			t.Fatal(err)
		}
		at := recs[1].Pos
		if err := errors.Join(l.Sync(t.Context()), l.Close()); err != nil { // which seals the file
			t.Fatal(err)
		}
		var want []byte
		for boot, dir := range []string{"", "log", "m1", "m2"} {
			if dir != "" {
				overwrite(t, mem, dir+"/"+fileName(at.File()), []byte("damage"), at.Offset()+9)
			}
			l, got, err := tryOpen(options(uint64(boot+2)), 0)
			if dir == "m2" {
				if !errors.Is(err, block.ErrCorrupt) {
					t.Errorf("sealed %v, damaged everywhere: %v", sealed, err)
				}
				break
			}
			if err != nil {
				t.Fatalf("sealed %v, damaged up to %q: %v", sealed, dir, err)
			}
			if len(got) != 2 || dir != "" && string(got[1].data) != string(want) {
				t.Errorf("sealed %v, damaged up to %q: %d records", sealed, dir, len(got))
			}
			want = got[1].data
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// sameSum returns n bytes, not all zero, that may be added (xor) to any n bytes without a change of their CRC32C: of 40 unit vectors at least 8 depend on others.
func sameSum(t *testing.T, n int) []byte {
	t.Helper()
	zero := crc32.Checksum(make([]byte, n), castagnoli)
	basis, masks := map[int]uint32{}, map[int]uint64{}
	for bit := range 40 {
		unit := make([]byte, n)
		unit[bit/8] = 1 << (bit % 8)
		sum, mask := crc32.Checksum(unit, castagnoli)^zero, uint64(1)<<bit
		for sum != 0 {
			top := bits.Len32(sum)
			if basis[top] == 0 {
				basis[top], masks[top] = sum, mask
				break
			}
			sum, mask = sum^basis[top], mask^masks[top]
		}
		if sum == 0 {
			d := make([]byte, n)
			for i := range 5 {
				d[i] = byte(mask >> (8 * i))
			}
			return d
		}
	}
	t.Fatal("no vector depends on others")
	return nil
}

// TestForgedSectorIsReadFromAnother changes a sector of an encrypted log in one directory so that its checksum still fits: reads give what was written, from another directory, and mend it; changed in all, it is an error.
func TestForgedSectorIsReadFromAnother(t *testing.T) {
	for name, read := range map[string]func(l *Log, p []byte, r *Record) error{
		"alone":  func(l *Log, p []byte, r *Record) error { return l.ReadAt(p, r.Pos, r.Sums) },
		"mapped": func(l *Log, p []byte, r *Record) error { return l.ReadMapped(p, r.Pos, r.Sums) },
		"scattered": func(l *Log, p []byte, r *Record) error {
			return l.ReadScattered([]Piece{{P: p, Pos: r.Pos, Sums: r.Sums}})
		},
	} {
		mem := vfs.NewCrashableMem()
		opts := mirrored(mem, 1)
		opts.Keys = testRing()
		l, _ := openAll(t, opts)
		awaitPlaces(t, l, "in sync", "in sync", "in sync")
		recs := []Record{marked(1, Write, "what was written")}
		want := slices.Clone(recs[0].Payload[0])
		if err := errors.Join(l.Append(recs), l.Sync(t.Context())); err != nil {
			t.Fatal(err)
		}
		r := &recs[0]
		delta := sameSum(t, sectorSize)
		forgeIn := func(dir string) {
			file := dir + "/" + fileName(r.Pos.File())
			sector := bytesOf(t, mem, file)[r.Pos.Offset():][:sectorSize]
			for i := range sector {
				sector[i] ^= delta[i]
			}
			overwrite(t, mem, file, sector, r.Pos.Offset())
		}
		forgeIn("log")
		pin := l.Pin()
		p := make([]byte, sectorSize)
		if err := l.TryReadAt(p, r.Pos, r.Sums); err != block.ErrWouldBlock {
			t.Errorf("%s: without waiting: %v", name, err)
		}
		for range 2 {
			if err := read(l, p, r); err != nil || !bytes.Equal(p, want) {
				t.Errorf("%s: %v, as it was written: %v", name, err, bytes.Equal(p, want))
			}
		}
		if l.Mended() != 1 {
			t.Errorf("%s: mended %d times", name, l.Mended())
		}
		for _, dir := range []string{"log", "m1", "m2"} {
			forgeIn(dir)
		}
		if err := read(l, p, r); !errors.Is(err, errForged) {
			t.Errorf("%s: forged everywhere: %v", name, err)
		}
		pin.Release()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
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
