package check

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/history"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// thinnedHours makes the history of a volume of some hours, thinned, and a day of it joined, with a sidecar beside each file. beforeRemove is called when the files that were joined are still there.
func thinnedHours(t *testing.T, dir string, hours int, beforeRemove func()) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	s, bad, err := history.Open(history.Options{FS: vfs.Default, Dir: filepath.Join(dir, historyName), StoreID: block.UUID{1}})
	if err != nil || len(bad) > 0 {
		t.Fatal(err, bad)
	}
	st, err := s.Create(7)
	must(err)
	rng := rand.New(rand.NewPCG(31, 32))
	th := history.Thinning{Level: func(int64) history.Level { return history.Hours }, Pace: func(int) error { return nil }}
	th.Step = func(s history.ThinStep) {
		if s == history.BeforeRemove {
			beforeRemove()
		}
	}
	seq := uint64(0)
	for hour := range int64(hours) {
		now := (1000 + hour) * int64(time.Hour)
		seq++
		th.Roots = append(th.Roots, history.Root{Seq: seq, Time: now})
		for range 5 {
			page := make([]byte, 4096)
			for i := range page {
				page[i] = byte(rng.Uint32())
			}
			seq++
			must(st.Append(&history.Record{Kind: history.Write, Seq: seq, Time: now + int64(time.Minute), Off: rng.Uint64N(20) * 4096, Len: 4096, Payload: page}))
		}
		must(st.Append(&history.Record{Kind: history.Barrier, Seq: seq, Time: now + int64(2*time.Minute)}))
		must(st.Roll())
	}
	th.Roots = append(th.Roots, history.Root{Seq: seq + 1, Time: (1000 + int64(hours)) * int64(time.Hour)})
	for more := true; more; {
		_, more, err = st.Thin(&th)
		must(err)
		for of, found := s.Lacks(erasure.Default); found; of, found = s.Lacks(erasure.Default) {
			_, err := s.Guard(context.Background(), of.FileKey, erasure.Default, &history.Work{Coder: erasure.NewCoder})
			must(err)
		}
	}
	must(s.Close())
}

// Thinned and joined files with sidecars are in order; what a death left of a join, sidecars included, is told of as that; damage of a file, or of a sidecar, is found.
func TestThinnedHistoryParity(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, historyName, "0000000000000007", name) }
	left := map[string][]byte{}
	thinnedHours(t, dir, 30, func() {
		for _, name := range []string{"00000002.hist", "00000002.par"} {
			if b, err := os.ReadFile(path(name)); err == nil {
				left[name] = b
			}
		}
	})
	check := func() *Report {
		t.Helper()
		r := &run{ctx: context.Background(), dir: dir, opts: Options{MaxFindings: 100}, rep: &Report{}, super: &super{StoreID: block.UUID{1}, ROCompat: superHistory | superHistoryParity}}
		if err := r.checkHistoryOf(historyVolume{id: 7}); err != nil {
			t.Fatal(err)
		}
		return r.rep
	}
	rep := check()
	if rep.Errors+rep.Warnings > 0 || rep.Totals.HistoryFiles == 0 || rep.Totals.HistoryFiles >= 30 || rep.Totals.HistoryParity == 0 {
		t.Fatalf("%+v", rep)
	}
	d, err := DumpHistory(path("00000001.hist"), "", nil)
	if err != nil || d.Error != "" || !d.Placed || d.Through < 20 {
		t.Fatalf("%+v, %v", d, err)
	}
	for _, name := range []string{"00000001.hist", "00000001.par"} {
		whole := read(t, path(name))
		bad := bytes.Clone(whole)
		bad[len(bad)/2] ^= 1
		write := func(b []byte) {
			t.Helper()
			if err := os.WriteFile(path(name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write(bad)
		if rep := check(); rep.Errors == 0 {
			t.Errorf("damage of %s is not found", name)
		}
		write(whole)
	}
	// As if the others had not been removed.
	if len(left) != 2 {
		t.Fatalf("%d files were joined", len(left))
	}
	for name, b := range left {
		if err := os.WriteFile(path(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if rep = check(); rep.Warnings != 1 || rep.Errors > 0 || !strings.Contains(rep.Findings[0].Got, "the next start removes") || filepath.Base(rep.Findings[0].Unit) != "00000002.hist" {
		t.Errorf("%+v", rep)
	}
}
