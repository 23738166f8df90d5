package journal

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

var crashSeed = flag.Uint64("journal.seed", 0, "seed of the crash tests; 0 runs several")

// crashModel is what a test knows of a log while its power is cut again and again.
type crashModel struct {
	mem  *vfs.MemFS
	boot uint64

	mu     sync.Mutex
	rng    *rand.Rand
	all    []entry // appended, in order
	synced int     // of them, how many a Sync has covered that returned
	from   Pos     // durable replay position
	cuts   []cut
	ops    int
	tries  int // cuts per operation

	mirrors []string // further directories of the log, and
	failAt  int      // the operation from which on the first of them fails; 0 never
}

// cut is what a recovery after a power loss found. It is compared later, when the batch in flight has got its sequence numbers.
type cut struct {
	what   string
	synced int
	from   Pos
	got    []entry
	err    error
}

// before is called ahead of every operation of the log on its file system: it cuts the power there, in a clone.
func (m *crashModel) before(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() == errorfs.OpIsRead || op.Kind == errorfs.OpFileClose {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ops++
	for range m.tries {
		m.cut(op)
	}
	if m.failAt > 0 && m.ops >= m.failAt && strings.HasPrefix(op.Path, m.mirrors[0]) {
		return syscall.EIO
	}
	return nil
}

// cut cuts the power in a clone, recovers there, and keeps what was found for judge. mu is held.
func (m *crashModel) cut(op errorfs.Op) {
	percent := []int{0, 0, 10, 50, 90, 100}[m.rng.IntN(6)]
	clone := m.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: m.rng})
	c := cut{what: fmt.Sprintf("before operation %d (%v %s), %d%% unsynced kept", m.ops, op.Kind, op.Path, percent), synced: m.synced, from: m.from}
	if n := len(m.mirrors); n > 0 {
		// One directory is lost with the power. While one is failing already it is another one.
		lost := append([]string{"log"}, m.mirrors...)[m.rng.IntN(n+1)]
		if m.failAt > 0 && m.ops >= m.failAt && lost == m.mirrors[0] {
			lost = "log"
		}
		c.what += ", without " + lost
		if err := clone.RemoveAll(lost); err != nil {
			c.err = err
		}
	}
	if c.err == nil {
		c.got, c.err = recoverTwice(clone, m.boot+1, c.from, m.mirrors)
	}
	m.cuts = append(m.cuts, c)
}

// recoverTwice recovers a log, appends to it, loses power again, and recovers once more.
func recoverTwice(fsys *vfs.MemFS, boot uint64, from Pos, mirrors []string) ([]entry, error) {
	opts := testOptions(fsys, "log", boot)
	opts.FileSize, opts.Mirrors = MinFileSize, mirrors
	l, got, err := tryOpen(opts, from)
	if err != nil {
		return nil, err
	}
	for i := range got {
		// Bytes are compared by their sums here, and with the model's copy by ReadAt in other tests.
		if got[i].Kind == Write {
			pin := l.Pin()
			err := l.ReadAt(make([]byte, got[i].Len), got[i].Pos, got[i].Sums)
			pin.Release()
			if err != nil {
				return nil, err
			}
		}
	}
	rec := []Record{{Kind: Write, Len: sectorSize, Payload: [][]byte{fill(sectorSize, boot)}}, {Kind: Trim, Len: 1}}
	if err := l.Append(rec); err != nil {
		return nil, err
	}
	if err := l.Sync(context.Background()); err != nil {
		return nil, err
	}
	again := fsys.CrashClone(vfs.CrashCloneCfg{})
	if err := l.Close(); err != nil {
		return nil, err
	}
	opts.FS, opts.BootEpoch = again, boot+1
	l2, got2, err := tryOpen(opts, from)
	if err != nil {
		return nil, fmt.Errorf("second recovery: %w", err)
	}
	defer l2.Close()
	if len(got2) != len(got)+2 {
		return nil, fmt.Errorf("second recovery: %d records, want %d and 2 new ones", len(got2), len(got))
	}
	for i := range got {
		r := got2[i].Replayed
		r.Payload = got2[i].data
		if err := got[i].check(&r); err != nil {
			return nil, fmt.Errorf("second recovery: %w", err)
		}
	}
	return got, nil
}

// judge compares the cuts so far with what was appended.
func (m *crashModel) judge(t *testing.T) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.cuts {
		if c.err != nil {
			t.Fatalf("%s: %v", c.what, c.err)
		}
		first := 0
		for first < len(m.all) && m.all[first].Pos < c.from {
			first++
		}
		if len(c.got) < c.synced-first {
			t.Fatalf("%s: replayed %d records, %d were synced", c.what, len(c.got), c.synced-first)
		}
		comparePrefix(t, c.got, m.all[first:])
	}
	m.cuts = m.cuts[:0]
}

// TestPowerLossAtEveryOperation cuts the power before every operation on the file system, with any part of what was not synced lost, and
// checks that recovery finds a prefix of what was appended that holds everything synced.
func TestPowerLossAtEveryOperation(t *testing.T) {
	seeds := []uint64{1, 2, 3}
	if raceEnabled {
		seeds = seeds[:1] // the detector makes each ten times as long
	}
	if *crashSeed != 0 {
		seeds = []uint64{*crashSeed}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			defer func() {
				if t.Failed() {
					t.Logf("repeat with: go test ./blockstore/journal -run PowerLoss -journal.seed=%d", seed)
				}
			}()
			powerLoss(t, seed)
		})
	}
}

// TestPowerLossWithALostDirectory does the same to a log in three directories, one of which is lost with each loss of power; in some runs one has failed before. What was synced is there as long as one directory
// is.
func TestPowerLossWithALostDirectory(t *testing.T) {
	for seed, failAt := range []int{0, 60, 150} {
		t.Run(fmt.Sprintf("failing from %d", failAt), func(t *testing.T) {
			m := &crashModel{mem: vfs.NewCrashableMem(), boot: 1, tries: 1, rng: rand.New(rand.NewPCG(uint64(seed), 5)), mirrors: []string{"m1", "m2"}, failAt: failAt}
			m.run(t, uint64(seed))
		})
	}
}

func powerLoss(t *testing.T, seed uint64) {
	m := &crashModel{mem: vfs.NewCrashableMem(), boot: 1, tries: 1, rng: rand.New(rand.NewPCG(seed, 3))}
	m.run(t, seed)
}

func (m *crashModel) run(t *testing.T, seed uint64) {
	opts := testOptions(errorfs.Wrap(m.mem, errorfs.InjectorFunc(m.before)), "log", m.boot)
	opts.FileSize, opts.Mirrors = MinFileSize, m.mirrors
	if err := m.mem.MkdirAll("log", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := vfs.SyncDir(m.mem, "/"); err != nil {
		t.Fatal(err)
	}
	l, _ := openAll(t, opts)
	rng := rand.New(rand.NewPCG(seed, 4))
	for range 40 {
		batch := appendRandom(t, l, rng)
		m.mu.Lock()
		m.all = append(m.all, batch...)
		n := len(m.all)
		m.mu.Unlock()
		if rng.IntN(3) == 0 {
			if err := l.Sync(context.Background()); err != nil {
				t.Fatal(err)
			}
			m.mu.Lock()
			m.synced = n
			m.mu.Unlock()
		}
		if rng.IntN(8) == 0 {
			m.release(t, l, rng)
		}
		m.judge(t)
	}
	abandon(t, l)
	m.judge(t)
	m.recover(t, opts)
	if m.ops < 100 {
		t.Fatalf("only %d operations", m.ops)
	}
}

// recover opens the log again after the death of its process, which has left unsynced bytes in the page cache. The power is cut during
// recovery too; once Open has returned, what it has replayed must be durable.
func (m *crashModel) recover(t *testing.T, opts Options) {
	m.mu.Lock()
	m.boot++
	m.tries = 6 // few operations, and each matters
	opts.BootEpoch = m.boot
	from := m.from
	m.mu.Unlock()
	l, got, err := tryOpen(opts, from)
	if err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	skipped := 0
	for m.all[skipped].Pos < from {
		skipped++
	}
	if len(got) != len(m.all)-skipped {
		t.Fatalf("replayed %d of %d records after the death of the process", len(got), len(m.all)-skipped)
	}
	m.synced = len(m.all)
	m.mu.Unlock()
	m.judge(t)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	m.judge(t)
}

// release moves the replay position forward to a synced record, as an owner does once it has made that position durable.
func (m *crashModel) release(t *testing.T, l *Log, rng *rand.Rand) {
	m.mu.Lock()
	if m.synced > 0 {
		m.from = max(m.from, m.all[m.synced-1-rng.IntN(min(m.synced, 10))].Pos)
	}
	from := m.from
	m.mu.Unlock()
	if err := l.ReleaseBefore(from); err != nil {
		t.Fatal(err)
	}
}
