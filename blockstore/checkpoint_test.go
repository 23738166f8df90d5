package blockstore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// left is what the death of the process leaves of the store in r, with its metadata or without.
func (r *race) left(lost bool) *vfs.MemFS {
	r.t.Helper()
	mem := r.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
	setUsage(mem)
	if lost {
		r.check(loseMeta(mem, "data/store"))
	}
	return mem
}

// syncFolders makes durable which files the folders in a folder hold.
func (r *race) syncFolders(in string) {
	r.t.Helper()
	names, err := r.mem.List(in)
	r.check(err)
	for _, name := range names {
		r.check(syncDir(r.mem, path.Join(in, name)))
	}
}

// judge opens what is left, compares volume "a" with want, settles, recounts, and compares again.
func (r *race) judge(mem *vfs.MemFS, want []byte) *Store {
	r.t.Helper()
	s := openTest(r.t, r.options(mem))
	expect(r.t, deviceTest(r.t, s, "a", ""), 0, want)
	r.check(crashSettle(s))
	(&model{t: r.t, s: s}).audit()
	expect(r.t, deviceTest(r.t, s, "a", ""), 0, want)
	return s
}

// eitherWay judges what is left with metadata and without.
func (r *race) eitherWay(want []byte) {
	r.t.Helper()
	for _, lost := range []bool{false, true} {
		r.judge(r.left(lost), want)
	}
}

// changed is a store whose volume "a" was destaged, changed and destaged again, and whose background work has ended, and what it holds.
func newChanged(t *testing.T, m moment) (*race, *Device, []byte) {
	r := newRace(t, m)
	d := createTest(t, r.s, "a", 40<<19)
	rng := rand.New(rand.NewPCG(3, 4))
	data := guestData(rng, 40<<19)
	writeTest(t, d, 0, data[:30<<19])
	clear(data[30<<19:])
	r.check(r.settle())
	copy(data[1<<19:], guestData(rng, 6<<19))
	writeTest(t, d, 1<<19, data[1<<19:7<<19])
	r.check(r.settle())
	r.quiet()
	r.s.ctx, r.s.cancel = context.WithCancel(context.Background()) // for the steps that a test does by itself
	return r, d, data
}

// down destages and reclaims all, step by step, without a delta.
func (r *race) down() {
	r.t.Helper()
	ctx := context.Background()
	r.s.destager.all.Add(1)
	defer r.s.destager.all.Add(-1)
	for {
		did, err := r.s.destager.once(ctx)
		r.check(err)
		more, err := r.s.worker.round(ctx)
		r.check(err)
		if !did && !more {
			return
		}
	}
}

// TestRebuild: what is destaged and what is in the log is there again, whether deltas came between or not.
func TestRebuild(t *testing.T) {
	r, d, data := newChanged(t, 0)
	r.eitherWay(data)
	copy(data, data[20<<19:30<<19]) // more than the spare files of the log hold
	for off := 0; off < 10<<19; off += 64 << 10 {
		writeTest(t, d, uint64(off), data[off:off+64<<10])
	}
	r.eitherWay(data) // in the log
	r.down()
	j, oldest := r.s.checkpoints.journaled.Load(), r.s.log.Usage().Oldest
	if oldest > j.Watermark || r.s.watermark().File() < j.Watermark.File()+10 {
		t.Fatalf("the log begins at %v, %v is journaled, the watermark is %v", oldest, j.Watermark, r.s.watermark())
	}
	r.eitherWay(data) // in maps, and not in a delta
	r.check(r.s.checkpoints.delta())
	if now := r.s.log.Usage().Oldest; now <= oldest {
		t.Fatalf("after a delta the log begins at %v still", now)
	}
	r.eitherWay(data)
	mem := r.left(true)
	var info RecoveryInfo
	opts := r.options(mem)
	opts.Events.Recovered = func(i RecoveryInfo) { info = i }
	s := openTest(t, opts)
	if b := info.Rebuilt; b == nil || !errors.Is(b.Reason, block.ErrCorrupt) || b.Chunks == 0 || b.Rows == 0 || b.Kept != "" {
		t.Fatalf("%+v", info.Rebuilt)
	}
	r.check(s.Close())
	openTest(t, opts)
	if info.Rebuilt != nil {
		t.Fatal("rebuilt once more")
	}
}

// TestDeltaNotNoted: the process dies between the last part of a delta and its record. Both what the database says and what the segments say must lead to the same.
func TestDeltaNotNoted(t *testing.T) {
	r, d, data := newChanged(t, afterDelta)
	clear(data[2<<19 : 4<<19])
	writeTest(t, d, 2<<19, data[2<<19:4<<19])
	r.down()
	r.arm()
	delta := start(r.s.checkpoints.delta)
	r.wait()
	r.eitherWay(data)
	mem := r.left(false)
	r.release()
	r.finish(delta)
	// And once more: the next delta begins where the one that was not noted did, after rows that that one shows are gone.
	s := openTest(t, r.options(mem))
	d = deviceTest(t, s, "a", "")
	clear(data)
	writeTest(t, d, 0, data)
	r.check(s.Settle(context.Background(), nil))
	r.mem = mem
	r.eitherWay(data)
}

// TestFullThenDelete: a page that only a full checkpoint shows, and that goes before the next delta, came back.
func TestFullThenDelete(t *testing.T) {
	r, d, data := newChanged(t, 0)
	for i := range 3 {
		copy(data[i<<19:], data[20<<19:21<<19])
		writeTest(t, d, uint64(i)<<19, data[i<<19:(i+1)<<19])
		r.down()
		if i == 0 {
			r.check(r.s.checkpoints.full(context.Background()))
		}
	}
	r.check(r.s.checkpoints.delta())
	r.eitherWay(data)
}

// TestDeltasPassFull: a delta is written between the parts of a full checkpoint, and rows change meanwhile.
func TestDeltasPassFull(t *testing.T) {
	r, d, data := newChanged(t, 0)
	c := r.s.checkpoints
	r.s.opts.checkpointPartBytes = 1 << 10
	p := 0
	c.inFull = func() error {
		if p++; p > 3 {
			return nil
		}
		copy(data[p<<19:], data[(20+p)<<19:(21+p)<<19])
		writeTest(t, d, uint64(p)<<19, data[p<<19:(p+1)<<19])
		r.down()
		return c.delta()
	}
	was := c.journaled.Load()
	r.check(c.full(context.Background()))
	if j := c.journaled.Load(); p < 2 || j.Full == was.Full || j.Number <= j.Full.Seq {
		t.Fatalf("%d parts, %+v after %+v", p, j, was)
	}
	r.eitherWay(data)
	writeTest(t, d, 0, data[30<<19:31<<19])
	copy(data, data[30<<19:31<<19])
	r.down()
	r.check(c.delta())
	r.eitherWay(data)
}

// TestDeltasBeforeFirstPart: deltas fill segments after a full checkpoint took its number, and before it goes on. The metadata segments that are dropped when it is complete must
// not be theirs: the newest state builds upon them.
func TestDeltasBeforeFirstPart(t *testing.T) {
	r, d, data := newChanged(t, afterFullBegan)
	c := r.s.checkpoints
	r.s.opts.metadataSegmentBytes = 4 << 10
	r.arm()
	full := start(func() error { return c.full(context.Background()) })
	r.wait()
	began := c.out.id
	for p := 0; c.out.id < began+2; p++ {
		if p == 20 {
			t.Fatal("20 deltas do not fill two segments of 4 KiB")
		}
		copy(data[p<<19:], data[(20+p)<<19:(21+p)<<19])
		writeTest(t, d, uint64(p)<<19, data[p<<19:(p+1)<<19])
		r.down()
		r.check(c.delta())
	}
	r.release()
	r.finish(full)
	r.check(r.s.collector.prove(context.Background()))
	clear(data[:1<<19])
	writeTest(t, d, 0, data[:1<<19])
	r.down()
	r.check(c.delta()) // with which the files of dropped segments go
	if n := waiting(r.s); n != 0 {
		t.Fatalf("%d files still wait", n)
	}
	r.syncFolders("data/store/segments") // the removals outlast the process
	r.eitherWay(data)
}

// waiting is how many files of dropped segments there are still.
func waiting(s *Store) int {
	n, _ := s.checkpoints.files.waitingNow()
	return n
}

// TestFilesWaitForDelta: the file of a segment whose row is gone is needed by what is journaled, also after a restart, and it goes only when an audit has proved that nothing else needs it either.
func TestFilesWaitForDelta(t *testing.T) {
	r, _, data := newChanged(t, 0)
	r.check(r.s.Close())
	r.open() // which seals the segments
	r.quiet()
	d := deviceTest(t, r.s, "a", "")
	copy(data, data[10<<19:40<<19])
	writeTest(t, d, 0, data)
	r.s.thorough.Add(1)
	r.s.dueFirst.segment.Store(math.MaxUint64)
	r.down()
	if waiting(r.s) == 0 {
		t.Fatal("nothing was dropped")
	}
	r.eitherWay(data)
	mem := r.left(false)
	s := openTest(t, r.options(mem))
	s.cancel() // else its own goroutines may drop another segment at any moment
	s.running.Wait()
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if waiting(s) == 0 {
		t.Fatal("the files of dropped segments do not wait after a restart")
	}
	r.check(s.checkpoints.delta())
	if waiting(s) == 0 {
		t.Fatal("files went without an audit")
	}
	r.check(s.collector.prove(context.Background()))
	r.check(s.checkpoints.delta())
	if n := waiting(s); n != 0 {
		t.Fatalf("%d files still wait after an audit and a delta", n)
	}
	r.check(s.Close())
	r.mem = mem
	r.eitherWay(data)
}

// TestRebuildCutShort cuts the power before every operation of a start that makes metadata anew.
func TestRebuildCutShort(t *testing.T) {
	r, d, data := newChanged(t, 0)
	copy(data, data[10<<19:11<<19])
	writeTest(t, d, 0, data[:1<<19])
	r.down()
	mem := r.left(true)
	rng := rand.New(rand.NewPCG(9, 9))
	var mu sync.Mutex
	var clones []*vfs.MemFS
	ops := 0
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && op.Kind != errorfs.OpFileClose {
			if ops++; ops%4 == 0 {
				clones = append(clones, mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 50, 100}[len(clones)%3], RNG: rng}))
			}
		}
		return nil
	}))
	s := openTest(t, r.options2(fs))
	r.check(s.Close())
	for i, clone := range clones {
		setUsage(clone)
		s, err := Open(context.Background(), r.options(clone))
		if err != nil {
			t.Fatalf("cut %d of %d: %v", i, len(clones), err)
		}
		expect(t, deviceTest(t, s, "a", ""), 0, data)
		if i%8 == 0 {
			r.check(crashSettle(s))
			(&model{t: t, s: s}).audit()
		}
		r.check(s.Close())
	}
	t.Logf("%d cuts", len(clones))
}

// options2 is options for any file system.
func (r *race) options2(fs vfs.FS) Options {
	opts := r.options(r.mem)
	opts.FS = fs
	return opts
}

// TestDamagedMetadata flips a byte, cuts or removes each file of the database: what is refused at the start is made anew, and no start gives wrong data.
func TestDamagedMetadata(t *testing.T) {
	r, _, data := newChanged(t, 0)
	r.check(r.s.Close())
	names, err := r.mem.List("data/store/meta")
	r.check(err)
	rebuilt := map[string]int{}
	for _, name := range names {
		for what, damage := range map[string]func(fs *vfs.MemFS, p string) error{"flip": flipMiddle, "cut": cutHalf, "remove": func(fs *vfs.MemFS, p string) error { return fs.Remove(p) }} {
			mem := r.left(false)
			if err := damage(mem, path.Join("data/store/meta", name)); err != nil {
				t.Fatal(name, what, err)
			}
			var info RecoveryInfo
			opts := r.options(mem)
			opts.Events = Events{Recovered: func(i RecoveryInfo) { info = i }}
			s, err := Open(context.Background(), opts)
			if err != nil {
				t.Errorf("%s, %s: %v", name, what, err)
				continue
			}
			if info.Rebuilt != nil {
				rebuilt[what]++
				if _, err := mem.Stat(path.Join("data/store", info.Rebuilt.Kept)); err != nil || !strings.HasPrefix(info.Rebuilt.Kept, metaDamaged) {
					t.Errorf("%s, %s: damaged metadata is kept as %q: %v", name, what, info.Rebuilt.Kept, err)
				}
				expect(t, deviceTest(t, s, "a", ""), 0, data)
			}
			_ = s.Close()
		}
	}
	t.Logf("%d files, rebuilt %v", len(names), rebuilt)
	for _, what := range []string{"cut", "remove"} { // a flip may hit what nothing needs
		if rebuilt[what] == 0 {
			t.Errorf("%s never led to a rebuild", what)
		}
	}
}

// TestDamagedTable flips a byte in a table of the database. The start does not see it; the read that does leads the next start to make the metadata anew.
func TestDamagedTable(t *testing.T) {
	r, _, data := newChanged(t, 0)
	r.check(r.s.Close())
	names, err := r.mem.List("data/store/meta")
	r.check(err)
	healed := 0
	for i := range 4 * len(names) {
		name := names[i/4]
		if path.Ext(name) != ".sst" {
			continue
		}
		mem := r.left(false)
		r.check(rewriteFile(mem, path.Join("data/store/meta", name), func(b []byte) []byte { b[(2*(i%4)+1)*len(b)/8] ^= 1; return b }))
		opts := r.options(mem)
		var info RecoveryInfo
		opts.Events = Events{Recovered: func(i RecoveryInfo) { info = i }}
		s, err := Open(context.Background(), opts)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if info.Rebuilt != nil { // the start needed the block
			r.check(s.Close())
			continue
		}
		for _, table := range []byte("CDGHJMNPRSV") {
			err = errors.Join(err, s.scanRows(table, func(_, _ []byte) error { return nil }))
		}
		r.check(s.Close())
		if err == nil {
			continue // nothing needed the block
		}
		s = openTest(t, opts)
		if info.Rebuilt == nil {
			t.Fatalf("%s: a read failed with %v, and the next start did nothing", name, err)
		}
		healed++
		r.check(s.Close())
		r.judge(mem, data)
		if _, err := mem.Stat("data/store/" + metaSuspect); err == nil {
			t.Fatal("the suspicion outlives the new metadata")
		}
	}
	if healed == 0 {
		t.Fatalf("no flip in the tables of %v was met by a read", names)
	}
}

func flipMiddle(fs *vfs.MemFS, p string) error {
	return rewriteFile(fs, p, func(b []byte) []byte {
		if len(b) > 0 {
			b[len(b)/2] ^= 1
		}
		return b
	})
}

func cutHalf(fs *vfs.MemFS, p string) error {
	return rewriteFile(fs, p, func(b []byte) []byte { return b[:len(b)/2] })
}

func rewriteFile(fs *vfs.MemFS, p string, change func(b []byte) []byte) error {
	b, err := readSmallFile(fs, p, 64<<20)
	if err != nil {
		return err
	}
	f, err := fs.Create(p, pebblevfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(change(b))
	return errors.Join(err, f.Sync(), f.Close())
}

// TestNoRebuildWithoutCheckpoints: what cannot be made anew is refused with a reason, and nothing is changed by that.
func TestNoRebuildWithoutCheckpoints(t *testing.T) {
	r, _, data := newChanged(t, 0)
	for _, class := range []string{"metadata", "warm"} {
		mem := r.left(true)
		for _, row := range r.s.segments.all() {
			if row.Class.String() == class {
				name := row.Placement[0].Key
				r.check(mem.Rename(path.Join("data/store/segments", name[14:16], name), path.Join("data", name)))
			}
		}
		before := list(t, mem, "data/store")
		_, err := Open(context.Background(), r.options(mem))
		if !errors.Is(err, block.ErrCorrupt) {
			t.Fatalf("without its %s segments: %v", class, err)
		}
		t.Log(err)
		if after := list(t, mem, "data/store"); after != before {
			t.Fatalf("a refused start left\n%s\nof\n%s", after, before)
		}
		for _, row := range r.s.segments.all() {
			if row.Class.String() == class {
				name := row.Placement[0].Key
				r.check(mem.Rename(path.Join("data", name), path.Join("data/store/segments", name[14:16], name)))
			}
		}
		r.judge(mem, data)
	}
}

// list names the files below a directory.
func list(t *testing.T, fs vfs.FS, dir string) string {
	t.Helper()
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	all := ""
	for _, name := range names {
		p := path.Join(dir, name)
		if st, err := fs.Stat(p); err == nil && st.IsDir() {
			all += list(t, fs, p)
		} else {
			all += fmt.Sprintln(p)
		}
	}
	return all
}

// TestLostCheckpointIsMadeAnew: a store whose segments of checkpoints are gone, and whose metadata is whole, writes a full one.
func TestLostCheckpointIsMadeAnew(t *testing.T) {
	r, _, data := newChanged(t, 0)
	mem := r.left(false)
	for _, row := range r.s.segments.all() {
		if isMetadata(&row) {
			name := row.Placement[0].Key
			r.check(mem.Remove(path.Join("data/store/segments", name[14:16], name)))
		}
	}
	opts := r.options(mem)
	complaints := 0
	opts.Events = Events{Corruption: func(error) { complaints++ }}
	s := openTest(t, opts)
	was := s.checkpoints.journaled.Load().Full.Seq
	for range 100 {
		if s.checkpoints.journaled.Load().Full.Seq != was {
			break
		}
		sleep(context.Background(), 10e6)
	}
	r.check(s.Close())
	if complaints == 0 {
		t.Error("nothing was said")
	}
	r.mem = mem
	r.eitherWay(data)
}
