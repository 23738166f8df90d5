package blockstore

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// metaBytes is how long the logs that the metadata have are together, and the tables that they need. Pebble removes others when it likes.
func metaBytes(t *testing.T, s *Store) (logs int64, tables uint64) {
	t.Helper()
	names, err := s.fs.List("data/store/" + metaDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		info, err := s.fs.Stat(metaTest + name)
		switch {
		case !isMetaLog(name), vfs.IsNotExist(err):
		case err != nil:
			t.Fatal(err)
		default:
			logs += info.Size()
		}
	}
	levels, err := s.db.SSTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, level := range levels {
		for i := range level {
			tables += level[i].Size
		}
	}
	return logs, tables
}

// TestCompactMeta packs the metadata: logs that Pebble keeps for reuse take nothing then, and tables take less, also those that nothing lies above.
func TestCompactMeta(t *testing.T) {
	mem := newCrashMem(t)
	opts := testOptions(t, mem, "data/store")
	s := openTest(t, opts)
	d := createTest(t, s, "v", 256<<20)
	rng := rand.New(rand.NewPCG(8, 8))
	var data []byte
	for range 6 {
		part := guestData(rng, 4<<20)
		writeTest(t, d, uint64(len(data)), part)
		data = append(data, part...)
		settleTest(t, s)
		if err := s.db.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.db.Compact(context.Background(), []byte{0}, []byte{0xff}, false); err != nil {
		t.Fatal(err)
	}
	logs, tables := metaBytes(t, s)
	if err := s.compactMeta(context.Background()); err != nil {
		t.Fatal(err)
	}
	logsNow, tablesNow := metaBytes(t, s)
	t.Logf("logs %d -> %d B, tables %d -> %d B", logs, logsNow, tables, tablesNow)
	if logsNow > logs/4 {
		t.Errorf("%d B of logs are left of %d", logsNow, logs)
	}
	if tablesNow > tables*9/10 {
		t.Errorf("tables take %d B, %d before", tablesNow, tables)
	}
	fs := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 0, RNG: rng})
	setUsage(fs)
	opts.FS = fs
	expect(t, deviceTest(t, openTest(t, opts), "v", ""), 0, data)
}

// TestCompactMetaBesideWork packs the metadata again and again while Pebble begins logs, lets them go and takes old ones for new ones, and cuts the power at the end.
func TestCompactMetaBesideWork(t *testing.T) {
	mem := newCrashMem(t)
	opts := testOptions(t, mem, "data/store")
	s := openTest(t, opts)
	d := createTest(t, s, "v", 256<<20)
	rng := rand.New(rand.NewPCG(9, 9))
	done := make(chan error, 1)
	end := make(chan struct{})
	go func() {
		for {
			select {
			case <-end:
				done <- nil
				return
			default:
			}
			if err := s.compactMeta(context.Background()); err != nil {
				done <- err
				return
			}
		}
	}()
	data := make([]byte, 64<<20)
	for range 40 {
		at := uint64(rng.IntN(60)) << 20
		part := guestData(rng, 1<<20)
		writeTest(t, d, at, part)
		copy(data[at:], part)
		settleTest(t, s)
		if err := s.db.Flush(); err != nil { // a new log
			t.Fatal(err)
		}
	}
	if err := d.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	fs := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 30, RNG: rng})
	close(end)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	setUsage(fs)
	opts.FS = fs
	var rebuilt error
	opts.Events.Recovered = func(i RecoveryInfo) {
		if i.Rebuilt != nil {
			rebuilt = i.Rebuilt.Reason
		}
	}
	again := openTest(t, opts)
	expect(t, deviceTest(t, again, "v", ""), 0, data)
	if rebuilt != nil {
		t.Errorf("whole metadata were made anew: %v", rebuilt)
	}
	(&model{t: t, s: again}).audit()
}
