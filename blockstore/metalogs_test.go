package blockstore

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// storeOfManyLogs returns what a death leaves of a store whose metadata lies in several of Pebble's logs, since none of its tables could be written, and its data.
func storeOfManyLogs(t *testing.T) (*vfs.MemFS, Options, []byte) {
	t.Helper()
	mem := newCrashMem(t)
	var blocked atomic.Bool
	release := make(chan struct{})
	opts := testOptions(t, errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if blocked.Load() && op.Kind == errorfs.OpCreate && strings.HasSuffix(op.Path, ".sst") {
			<-release
		}
		return nil
	})), "data/store")
	opts.Events.Corruption, opts.Events.BackgroundError = nil, nil
	opts.MemoryBytes = 32 << 20
	s := openTest(t, opts)
	t.Cleanup(func() { blocked.Store(false); close(release) })
	d := createTest(t, s, "v", 256<<20)
	rng := rand.New(rand.NewPCG(8, 8))
	var data []byte
	blocked.Store(true)
	s.destager.all.Add(1)
	for began := time.Now(); len(metaLogNames(t, mem)) < 3; {
		part := guestData(rng, 4<<20)
		for {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			err := d.Write(ctx, []block.Write{{Off: uint64(len(data)), Data: part}}, false)
			cancel()
			if err == nil {
				break
			}
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			select { // one large batch may be all that Pebble takes before it has written a table: then it writes one
			case release <- struct{}{}:
			default:
			}
		}
		data = append(data, part...)
		if s.destager.kick(); time.Since(began) > 4*time.Minute || len(data) > 200<<20 {
			t.Fatalf("after %d MiB the metadata has logs %v", len(data)>>20, metaLogNames(t, mem))
		}
	}
	if err := d.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	left := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rng})
	setUsage(left)
	opts.FS = left
	return left, opts, data
}

// metaLogNames lists Pebble's logs, oldest first.
func metaLogNames(t *testing.T, fs vfs.FS) (names []string) {
	t.Helper()
	all, err := fs.List("data/store/meta")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		if isMetaLog(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// metaFolder of the tests.
const metaTest = "data/store/" + metaDir + "/"

// TestLostLogsOfTheMetadata takes Pebble's logs away, empties, cuts and exchanges them, some beside the list of them. Pebble takes no notice of most of that. The store makes
// the metadata anew, and nothing is lost; or what is lost was nothing that the log of the store has not.
func TestLostLogsOfTheMetadata(t *testing.T) {
	left, opts, data := storeOfManyLogs(t)
	names := metaLogNames(t, left)
	first, middle, newest := metaTest+names[0], metaTest+names[1], metaTest+names[len(names)-1]
	list := "data/store/" + metaLogsFile
	keep := func(p string, part func(n int) int) func(fs *vfs.MemFS) error {
		return func(fs *vfs.MemFS) error {
			return rewriteFile(fs, p, func(b []byte) []byte { return b[:part(len(b))] })
		}
	}
	blank := func(p string, from, to int) func(fs *vfs.MemFS) error { // in eighths
		return func(fs *vfs.MemFS) error {
			return rewriteFile(fs, p, func(b []byte) []byte { clear(b[len(b)*from/8 : len(b)*to/8]); return b })
		}
	}
	both := func(a, b func(fs *vfs.MemFS) error) func(fs *vfs.MemFS) error {
		return func(fs *vfs.MemFS) error { return errors.Join(a(fs), b(fs)) }
	}
	gone := func(p string) func(fs *vfs.MemFS) error { return func(fs *vfs.MemFS) error { return fs.Remove(p) } }
	nothing := func(int) int { return 0 }
	const pebbleBlock = 32 << 10 // of a log: a record ends there, or goes on in the next
	for _, c := range []struct {
		what   string
		damage func(fs *vfs.MemFS) error
		want   string // what must come of it: "as it is", "anew", or "" for either
	}{
		{"nothing", func(*vfs.MemFS) error { return nil }, "as it is"},
		{"the first is gone", gone(first), "anew"},
		{"one in the middle is gone", gone(middle), "anew"},
		{"two are gone", both(gone(first), gone(middle)), "anew"},
		{"one in the middle is empty", keep(middle, nothing), "anew"},
		{"one in the middle is cut in half", keep(middle, func(n int) int { return n / 2 }), "anew"},
		{"one in the middle is cut at a block", keep(middle, func(n int) int { return n / 2 / pebbleBlock * pebbleBlock }), "anew"},
		{"one in the middle is what it was before its last record", keep(middle, func(n int) int { return n - 1 }), "anew"},
		{"one in the middle has zeroes in its middle", blank(middle, 3, 4), "anew"},
		{"one in the middle has zeroes at its end", blank(middle, 4, 8), "anew"},
		{"one in the middle is all zeroes", blank(middle, 0, 8), "anew"},
		{"the first in the place of the next", func(fs *vfs.MemFS) error {
			b, err := readSmallFile(fs, first, 64<<20)
			return errors.Join(err, putFile(fs, middle, b))
		}, "anew"},
		{"the newest is gone", gone(newest), ""},
		{"the newest is empty", keep(newest, nothing), ""},
		{"the newest is cut in half", keep(newest, func(n int) int { return n / 2 }), ""},
		{"the newest has zeroes in its middle", blank(newest, 2, 3), ""},
		{"the newest two are gone", both(gone(newest), gone(metaTest+names[len(names)-2])), "anew"},
		{"the list is gone", gone(list), "anew"},
		{"the list is empty", keep(list, nothing), ""},
		{"the list is cut", keep(list, func(n int) int { return n - 10 }), "anew"},
		{"the list has other bytes", func(fs *vfs.MemFS) error {
			return rewriteFile(fs, list, func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
		}, "anew"},
		{"the list and a log are gone", both(gone(list), gone(middle)), "anew"},
		{"the list and the first log are gone", both(gone(list), gone(first)), "anew"},
	} {
		t.Run(c.what, func(t *testing.T) {
			fs := left.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
			setUsage(fs)
			if err := c.damage(fs); err != nil {
				t.Fatal(err)
			}
			opts := opts
			opts.FS = fs
			var info RecoveryInfo
			opts.Events.Recovered = func(i RecoveryInfo) { info = i }
			s := openTest(t, opts)
			expect(t, deviceTest(t, s, "v", ""), 0, data)
			settleSoon(t, s)
			expect(t, deviceTest(t, s, "v", ""), 0, data)
			(&model{t: t, s: s}).audit()
			switch rebuilt := info.Rebuilt != nil; {
			case c.want == "as it is" && rebuilt:
				t.Errorf("whole metadata was made anew: %v", info.Rebuilt.Reason)
			case c.want == "anew" && !rebuilt:
				t.Error("nobody noticed")
			case rebuilt:
				t.Log(info.Rebuilt.Reason)
			}
		})
	}
}

// TestMetadataOfAnotherTime exchanges the files of the metadata for those of an earlier time, or of another way that the store went from there on: each start ends with the
// right data, or is refused with the name of a file and changes nothing.
func TestMetadataOfAnotherTime(t *testing.T) {
	r, d, data := newChanged(t, 0)
	earlier := r.left(false)
	other := r.fork(earlier) // goes another way from here
	for i := range 3 {
		copy(data[i<<19:], data[(20+i)<<19:(22+i)<<19])
		writeTest(t, d, uint64(i)<<19, data[i<<19:(i+2)<<19])
		r.down()
		r.check(r.s.db.Flush())
		r.check(r.s.checkpoints.delta())
	}
	r.check(r.s.db.Compact(context.Background(), []byte{0}, []byte{0xff}, false))
	now := r.left(false)
	files := func(fs *vfs.MemFS, prefix, suffix string) (names []string) {
		all, err := fs.List("data/store/meta")
		r.check(err)
		for _, name := range all {
			if strings.HasPrefix(name, prefix) && strings.HasSuffix(name, suffix) {
				names = append(names, name)
			}
		}
		return names
	}
	put := func(from *vfs.MemFS, names []string) func(fs *vfs.MemFS) error {
		return func(fs *vfs.MemFS) (err error) {
			for _, name := range names {
				b, e := readSmallFile(from, metaTest+name, 64<<20)
				err = errors.Join(err, e, putFile(fs, metaTest+name, b))
			}
			return err
		}
	}
	drop := func(prefix, suffix string) func(fs *vfs.MemFS) error {
		return func(fs *vfs.MemFS) (err error) {
			for _, name := range files(fs, prefix, suffix) {
				err = errors.Join(err, fs.Remove(metaTest+name))
			}
			return err
		}
	}
	all := func(steps ...func(fs *vfs.MemFS) error) func(fs *vfs.MemFS) error {
		return func(fs *vfs.MemFS) (err error) {
			for _, step := range steps {
				err = errors.Join(err, step(fs))
			}
			return err
		}
	}
	for what, damage := range map[string]func(fs *vfs.MemFS) error{
		"the manifest is gone":                all(drop("MANIFEST-", "")),
		"the manifest is of before":           put(earlier, files(earlier, "MANIFEST-", "")),
		"the manifest is of another way":      put(other, files(other, "MANIFEST-", "")),
		"the marker is gone":                  drop("marker.manifest", ""),
		"all markers are gone":                drop("marker.", ""),
		"marker and manifest are of before":   all(drop("marker.manifest", ""), drop("MANIFEST-", ""), put(earlier, files(earlier, "MANIFEST-", "")), put(earlier, files(earlier, "marker.manifest", ""))),
		"the tables are gone":                 drop("", ".sst"),
		"a table is gone":                     func(fs *vfs.MemFS) error { return fs.Remove(metaTest + files(fs, "", ".sst")[0]) },
		"the tables are of another way":       put(other, files(other, "", ".sst")),
		"the logs are of another way":         put(other, files(other, "", ".log")),
		"all of it is of before":              all(drop("", ""), put(earlier, files(earlier, "", ""))),
		"all of it is of another way":         all(drop("", ""), put(other, files(other, "", ""))),
		"tables, logs and manifest of before": all(put(earlier, files(earlier, "", ".sst")), put(earlier, files(earlier, "", ".log")), put(earlier, files(earlier, "MANIFEST-", ""))),
		"all of it is of before, with its list": all(drop("", ""), put(earlier, files(earlier, "", "")), func(fs *vfs.MemFS) error {
			b, err := readSmallFile(earlier, "data/store/"+metaLogsFile, metaLogsMost)
			return errors.Join(err, putFile(fs, "data/store/"+metaLogsFile, b))
		}),
	} {
		t.Run(what, func(t *testing.T) {
			fs := now.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
			setUsage(fs)
			if err := damage(fs); err != nil {
				t.Fatal(err)
			}
			opts := r.options(fs)
			var info RecoveryInfo
			opts.Events = Events{Recovered: func(i RecoveryInfo) { info = i }}
			s, err := Open(context.Background(), opts)
			if err != nil {
				if !strings.Contains(err.Error(), "data/store/") {
					t.Errorf("refused without the name of a file: %v", err)
				}
				t.Logf("refused: %v", err)
				return
			}
			t.Cleanup(func() { _ = s.Close() })
			if info.Rebuilt != nil {
				t.Logf("anew: %v", info.Rebuilt.Reason)
			}
			expect(t, deviceTest(t, s, "a", ""), 0, data)
			settleSoon(t, s)
			(&model{t: t, s: s}).audit()
			expect(t, deviceTest(t, s, "a", ""), 0, data)
		})
	}
}

// fork opens a copy of a store, writes other data to it than the original will get, and returns what its death leaves.
func (r *race) fork(from *vfs.MemFS) *vfs.MemFS {
	r.t.Helper()
	mem := from.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(2, 2))})
	setUsage(mem)
	s := openTest(r.t, r.options(mem))
	rng := rand.New(rand.NewPCG(5, 5))
	d := deviceTest(r.t, s, "a", "")
	for i := range 4 {
		writeTest(r.t, d, uint64(i)<<19, guestData(rng, 2<<19))
		settleSoon(r.t, s)
		r.check(s.db.Flush())
	}
	return mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(3, 3))})
}
