package check

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// TestChangesNothing compares all bytes and times of a store before and after a check, also of one that was not closed.
func TestChangesNothing(t *testing.T) {
	l := newLab(t, 5)
	l.create("a", 64<<20)
	l.write("a", 0, l.pool[0])
	l.settle()
	l.write("a", 1<<20, l.pool[1])
	l.flush("a")
	crashed := steadyCopy(t, l.dir)
	l.close()
	for _, dir := range []string{crashed, l.dir} {
		before, times := treeSum(t, dir), mtimes(t, dir)
		if rep := checkAnyway(t, dir); rep.Errors > 0 {
			t.Error(rep.Findings[0].String())
		}
		if treeSum(t, dir) != before || mtimes(t, dir) != times {
			t.Errorf("the check changed something in %s", dir)
		}
	}
}

func mtimes(t *testing.T, dir string) (all string) {
	t.Helper()
	for _, path := range files(t, dir, "") {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		all += path + st.ModTime().String()
	}
	return all
}

// TestInUse checks a store that another process has open.
func TestInUse(t *testing.T) {
	if dir := os.Getenv("HV_CHECK_HOLD"); dir != "" {
		l := &lab{t: t, dir: dir}
		l.open()
		os.Stdout.WriteString("open\n")
		_, _ = os.Stdin.Read(make([]byte, 1)) // until the parent closes it
		l.close()
		return
	}
	l := newLab(t, 6)
	l.close()
	holder := exec.Command(os.Args[0], "-test.run=^TestInUse$")
	holder.Env = append(os.Environ(), "HV_CHECK_HOLD="+l.dir)
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), l.dir, Options{}); !errors.Is(err, block.ErrLocked) || !strings.Contains(err.Error(), "stop hvd") {
		t.Errorf("check of a store in use: %v", err)
	}
	if _, err := DumpVolumes(l.dir, ""); !errors.Is(err, block.ErrLocked) {
		t.Errorf("dump of a store in use: %v", err)
	}
	if _, err := DumpSuper(l.dir); err != nil {
		t.Errorf("superblocks of a store in use: %v", err)
	}
	if err := errors.Join(in.Close(), holder.Wait()); err != nil {
		t.Fatal(err)
	}
	mustBeClean(t, l.dir, "when the other process is gone")
}

func TestNoStore(t *testing.T) {
	if _, err := Run(t.Context(), t.TempDir(), Options{}); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("an empty directory: %v", err)
	}
	if _, err := Run(t.Context(), "/no/such/directory", Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	l := newLab(t, 7)
	l.close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, l.dir, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := os.RemoveAll(filepath.Join(l.dir, "meta")); err != nil {
		t.Fatal(err)
	}
	mustFind(t, checkAnyway(t, l.dir), "meta")
}

// TestTornTail damages the log of a store that was not closed: a record that a later one calls durable is lost, the very last one may be missing.
func TestTornTail(t *testing.T) {
	l := newLab(t, 8)
	l.create("a", 64<<20)
	l.flush("a")
	for i := range uint64(3) {
		l.write("a", i<<20, l.pool[i][:8192])
		l.flush("a")
	}
	dir := steadyCopy(t, l.dir)
	l.close()
	all, err := DumpLog(dir, 1, nil)
	if err != nil || len(all) != 1 || len(all[0].Records) != 4 || all[0].State != "open" {
		t.Fatalf("%+v, %v", all, err)
	}
	path := filepath.Join(dir, all[0].File)
	for i, rec := range all[0].Records {
		rep := mutate(t, dir, path, func(b []byte) []byte { b[rec.At+recordHeader+3] ^= 1; return b })
		if last := i == len(all[0].Records)-1; last == (rep.Errors > 0) {
			t.Errorf("record %d of 4: %d errors", i+1, rep.Errors)
		}
	}
}

// TestPlaces names the volume, the snapshot and the range that a damaged chunk is in.
func TestPlaces(t *testing.T) {
	l := newLab(t, 9)
	l.create("web1", 64<<20)
	l.write("web1", 20<<20, l.pool[2][:8192])
	l.settle()
	l.close()
	seg := segmentFiles(t, l.dir, 2)[0]
	rep := mutate(t, l.dir, seg, func(b []byte) []byte { b[segHeaderSize+200] ^= 1; return b })
	found := false
	for _, f := range rep.Findings {
		for _, p := range f.Places {
			found = found || p.Name == "web1" && p.Offset == 20<<20 && p.Length > 0
		}
	}
	if !found {
		t.Errorf("no finding names web1 at 20 MiB: %+v", rep.Findings)
	}
	var text strings.Builder
	if err := rep.WriteText(&text); err != nil || !strings.Contains(text.String(), "web1 at 20971520+") {
		t.Errorf("%q, %v", text.String(), err)
	}
	if _, err := json.Marshal(rep); err != nil {
		t.Error(err)
	}
}
