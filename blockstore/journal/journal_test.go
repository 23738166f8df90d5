package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

var testStore = block.UUID{1, 2, 3, 4, 5, 6, 7, 8}

// testOptions returns options for a small log that syncs only when it is told to.
func testOptions(fsys vfs.FS, dir string, boot uint64) Options {
	return Options{
		FS: fsys, Dir: dir, StoreID: testStore, BootEpoch: boot, OwnerEpoch: 1,
		FileSize: 64 << 10, CapBytes: 16 << 20, SyncEvery: -1, SyncBytes: -1, Keys: testKeys(),
	}
}

// plainOptions is testOptions for a log that is never encrypted.
func plainOptions(fsys vfs.FS, dir string, boot uint64) Options {
	opts := testOptions(fsys, dir, boot)
	opts.Keys = nil
	return opts
}

// encrypted runs the tests with an encrypted log: HV_TEST_ENCRYPTED=1 go test ./blockstore/journal.
var encrypted = os.Getenv("HV_TEST_ENCRYPTED") != ""

var testRing = sync.OnceValue(func() *keyring.Ring {
	ring, err := keyring.New(testStore)
	if err != nil {
		panic(err)
	}
	return ring
})

// testKeys are the keys of the tests' logs; nil unless they are encrypted.
func testKeys() *keyring.Ring {
	if !encrypted {
		return nil
	}
	return testRing()
}

// entry is a record as a test remembers it, with its bytes.
type entry struct {
	Replayed
	data []byte
}

// fill makes reproducible payload.
func fill(n int, seed uint64) []byte {
	p := make([]byte, (n+7)&^7)
	rng := rand.New(rand.NewPCG(seed, 77))
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], rng.Uint64())
	}
	return p[:n]
}

// randomRecord makes a record of any kind that fits a small file.
func randomRecord(rng *rand.Rand) Record {
	r := Record{Flags: uint16(rng.Uint32()), Volume: block.VolumeID(rng.IntN(5) + 1), MapEpoch: rng.Uint32N(3)}
	switch k := rng.IntN(10); {
	case k < 6:
		n := (rng.IntN(3) + 1) * sectorSize
		r.Kind, r.Off, r.Len = Write, uint64(rng.IntN(1<<20))*sectorSize, uint64(n)
		p := fill(n, rng.Uint64())
		cut := rng.IntN(n + 1)
		r.Payload = [][]byte{p[:cut], p[cut:]}
	case k < 8:
		r.Kind, r.Off, r.Len = Trim+Kind(rng.IntN(2)), rng.Uint64(), rng.Uint64()
	default:
		r.Kind, r.Off, r.Len = FirstControl+Kind(rng.IntN(200)), rng.Uint64(), rng.Uint64()
		r.Payload = [][]byte{fill(rng.IntN(300), rng.Uint64())}
	}
	return r
}

// remember copies an appended record.
func remember(r *Record) entry {
	e := entry{Replayed: Replayed{
		Kind: r.Kind, Flags: r.Flags, Volume: r.Volume, MapEpoch: r.MapEpoch, Off: r.Off, Len: r.Len,
		Seq: r.Seq, Time: r.Time, Pos: r.Pos, Sums: append([]uint32(nil), r.Sums...),
	}, data: bytes.Join(r.Payload, nil)}
	return e
}

// check compares a replayed record with the one that was appended.
func (e *entry) check(r *Replayed) error {
	want := fmt.Sprint(e.Kind, e.Flags, e.Volume, e.MapEpoch, e.Off, e.Len, e.Seq, e.Time, e.Pos, e.Sums)
	got := fmt.Sprint(r.Kind, r.Flags, r.Volume, r.MapEpoch, r.Off, r.Len, r.Seq, r.Time, r.Pos, r.Sums)
	if len(e.Sums) == 0 && len(r.Sums) == 0 {
		e.Sums, r.Sums = nil, nil
	}
	if want != got {
		return fmt.Errorf("replayed %s, want %s", got, want)
	}
	if e.Kind >= FirstControl && !bytes.Equal(r.Payload, e.data) {
		return fmt.Errorf("record %d: other control payload", e.Seq)
	}
	return nil
}

// openAll opens a log from its beginning and returns what it replayed.
func openAll(t testing.TB, opts Options) (*Log, []entry) {
	t.Helper()
	l, got, err := tryOpen(opts, 0)
	if err != nil {
		t.Fatal(err)
	}
	return l, got
}

func tryOpen(opts Options, from Pos) (*Log, []entry, error) {
	var got []entry
	l, err := Open(opts, from, func(r *Replayed) error {
		e := entry{Replayed: *r, data: append([]byte(nil), r.Payload...)}
		e.Sums = append([]uint32(nil), r.Sums...)
		e.Payload = nil
		got = append(got, e)
		return nil
	})
	return l, got, err
}

// readBack reads the payload of a write and compares it.
func readBack(l *Log, e *entry) error {
	if e.Kind != Write {
		return nil
	}
	pin := l.Pin()
	defer pin.Release()
	p := make([]byte, e.Len)
	if err := l.ReadAt(p, e.Pos, e.Sums); err != nil {
		return err
	}
	if !bytes.Equal(p, e.data) {
		return fmt.Errorf("record %d reads back other bytes", e.Seq)
	}
	return nil
}

// appendRandom appends a random batch and returns what it held.
func appendRandom(t testing.TB, l *Log, rng *rand.Rand) (out []entry) {
	t.Helper()
	recs := make([]Record, rng.IntN(6)+1)
	for i := range recs {
		recs[i] = randomRecord(rng)
	}
	if err := l.Append(recs); err != nil {
		t.Fatal(err)
	}
	for i := range recs {
		out = append(out, remember(&recs[i]))
	}
	return out
}

func comparePrefix(t testing.TB, got, want []entry) {
	t.Helper()
	if len(got) > len(want) {
		t.Fatalf("replayed %d records, appended %d", len(got), len(want))
	}
	for i := range got {
		r := got[i].Replayed
		r.Payload = got[i].data
		if err := want[i].check(&r); err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	for _, clean := range []bool{true, false} {
		t.Run(fmt.Sprintf("clean=%v", clean), func(t *testing.T) {
			dir := t.TempDir()
			rng := rand.New(rand.NewPCG(1, 2))
			var all []entry
			for boot := uint64(1); boot <= 4; boot++ {
				l, got := openAll(t, testOptions(vfs.Default, dir, boot))
				if len(got) != len(all) {
					t.Fatalf("boot %d: replayed %d of %d", boot, len(got), len(all))
				}
				comparePrefix(t, got, all)
				for i := range all {
					if err := readBack(l, &all[i]); err != nil {
						t.Fatal(err)
					}
				}
				for range 60 {
					all = append(all, appendRandom(t, l, rng)...)
				}
				for i := range all {
					if err := readBack(l, &all[i]); err != nil {
						t.Fatal(err)
					}
				}
				checkOrder(t, all)
				if err := l.Sync(context.Background()); err != nil {
					t.Fatal(err)
				}
				if seq, _ := l.Durable(); seq != uint64(len(all)) {
					t.Fatalf("durable %d of %d", seq, len(all))
				}
				if clean {
					if err := l.Close(); err != nil {
						t.Fatal(err)
					}
				} else {
					abandon(t, l)
				}
			}
		})
	}
}

// abandon ends the goroutines of a log as the death of the process would, without the work that Close does.
func abandon(t testing.TB, l *Log) {
	t.Helper()
	l.opts.Events = Events{}
	l.fail(fmt.Errorf("abandoned"))
	_ = l.Close()
}

func checkOrder(t testing.TB, all []entry) {
	t.Helper()
	for i := 1; i < len(all); i++ {
		if all[i].Seq != all[i-1].Seq+1 || all[i].Time <= all[i-1].Time || all[i].Pos <= all[i-1].Pos {
			t.Fatalf("order: %d at %v %d after %d at %v %d", all[i].Seq, all[i].Pos, all[i].Time, all[i-1].Seq, all[i-1].Pos, all[i-1].Time)
		}
	}
}

// waitSealed waits until every full file is sealed.
func waitSealed(l *Log) {
	l.st.Lock()
	defer l.st.Unlock()
	for len(l.st.full) > 0 && l.failed() == nil {
		l.st.wake.Wait()
	}
}

// waitPrepared waits until a file is ready for the next roll, or could not be prepared.
func waitPrepared(l *Log) {
	l.st.Lock()
	defer l.st.Unlock()
	for l.st.next == nil && l.st.prepErr == nil && l.failed() == nil {
		l.st.wake.Wait()
	}
}
