package control

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/control/transfer"
)

// bringer is who has a backup.
type bringer struct {
	t     *testing.T
	begun chan RestoreBegun
	wants chan block.Range
	out   *io.PipeWriter
	ended chan error
}

// bring begins, or goes on with, a restore.
func bring(t *testing.T, c *Control, spec RestoreSpec) *bringer {
	t.Helper()
	body, out := io.Pipe()
	b := &bringer{t: t, begun: make(chan RestoreBegun, 1), wants: make(chan block.Range, 100), out: out, ended: make(chan error, 1)}
	go func() {
		b.ended <- c.RestoreLive(context.Background(), spec, RestoreConn{
			Body: body, Begin: func(r RestoreBegun) error { b.begun <- r; return nil },
			Want: func(r block.Range) error { b.wants <- r; return nil }, Cut: func() { _ = body.CloseWithError(errors.New("cut")) },
		})
		_ = body.Close()
	}()
	return b
}

// writer is for a restore that has begun.
func (b *bringer) writer(spec RestoreSpec) (*transfer.LiveWriter, RestoreBegun) {
	b.t.Helper()
	var begun RestoreBegun
	select {
	case begun = <-b.begun:
	case err := <-b.ended:
		b.t.Fatal(err)
	}
	w, err := transfer.NewLiveWriter(b.out, spec.ContentBytes)
	if err != nil {
		b.t.Fatal(err)
	}
	return w, begun
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// A restore outlives those who bring it and the daemon, is refused to others, keeps off what needs the whole volume, and leaves an ordinary one.
func TestRestoreLive(t *testing.T) {
	cfg, engine := testConfig(t), newFakeEngine()
	c, stop := start(t, cfg, engine)
	spec := RestoreSpec{Name: "v", ContentBytes: 1<<20 + 100, Backup: "b1", Repository: "r1"}
	b := bring(t, c, spec)
	w, begun := b.writer(spec)
	if begun.Resumed || begun.Volume.SizeBytes != 1<<20+512 {
		t.Errorf("it begins with %+v", begun)
	}
	if _, _, err := c.Attach(t.Context(), AttachSpec{Volume: "v"}); err != nil {
		t.Fatal(err)
	}
	must(t, w.Data(0, bytes.Repeat([]byte{5}, 8192)), w.Reached(8192))
	view, release, err := sharedExports{c}.Acquire("v")
	must(t, err)
	p := make([]byte, 4096)
	done := make(chan error, 1)
	go func() {
		_, err := view.Device.ReadAt(t.Context(), p, 512<<10, nil)
		done <- err
	}()
	if r := <-b.wants; r.Off != 512<<10 {
		t.Errorf("%+v is wanted", r)
	}
	must(t, w.Data(512<<10, bytes.Repeat([]byte{6}, 256<<10)))
	if err := <-done; err != nil || p[0] != 6 {
		t.Errorf("a read that waited: %v, %d", err, p[0])
	}
	must(t, view.Device.Trim(t.Context(), block.Range{Off: 520 << 10, Len: 4096}, false))
	release()
	ctx := t.Context()
	refused := map[string]error{}
	_, refused["snapshot"] = c.CreateSnapshot(ctx, "v", "s")
	_, refused["snapshots"] = c.CreateSnapshots(ctx, []blockstore.StateName{{Volume: "v", Snapshot: "s"}})
	_, refused["clone"] = c.CloneVolume(ctx, "v", "", "w")
	_, refused["resize"] = c.ResizeVolume(ctx, "v", ResizeSpec{SizeBytes: 4 << 20})
	_, refused["history"] = c.SetHistory(ctx, "v", blockstore.HistoryPolicy{Window: time.Hour})
	_, refused["rename"] = c.RenameVolume(ctx, "v", "w")
	refused["export"] = c.Export(ctx, "v", "", nil, io.Discard)
	refused["delete"] = c.DeleteVolume(ctx, "v")
	refused["another one who brings it"] = c.RestoreLive(ctx, spec, RestoreConn{})
	for what, err := range refused {
		if !errors.Is(err, block.ErrInUse) {
			t.Errorf("%s of a volume that is being restored: %v", what, err)
		}
	}
	must(t, b.out.Close())
	if err := <-b.ended; !errors.Is(err, transfer.ErrCut) {
		t.Errorf("without an end it ends with %v", err)
	}
	if got := c.Status().Problems; len(got) != 1 || !strings.Contains(got[0], "hv-backup restore b1 --to-volume v --live") {
		t.Errorf("the status is %q", got)
	}
	stop()

	c, stop = start(t, cfg, engine)
	other := spec
	other.Backup = "b2"
	if err := c.RestoreLive(ctx, other, RestoreConn{}); !errors.Is(err, ErrRefused) {
		t.Errorf("another backup: %v", err)
	}
	b = bring(t, c, spec)
	w, begun = b.writer(spec)
	if !begun.Resumed {
		t.Errorf("it goes on with %+v", begun)
	}
	must(t, w.Data(512<<10, bytes.Repeat([]byte{6}, 512<<10)), w.Data(1<<20, bytes.Repeat([]byte{7}, 100)), w.Reached(spec.ContentBytes))
	must(t, <-b.ended)
	if v, err := c.Volume("v"); err != nil || v.Restoring != nil || len(engine.Volumes()) != 1 {
		t.Errorf("in the end it is %+v, %v, beside %v", v, err, engine.Volumes())
	}
	view, release, err = sharedExports{c}.Acquire("v")
	must(t, err)
	all := make([]byte, 1<<20+512)
	_, err = view.Device.ReadAt(ctx, all, 0, nil)
	must(t, err)
	if all[0] != 5 || all[8192] != 0 || all[520<<10] != 0 || all[530<<10] != 6 || all[1<<20+99] != 7 || all[1<<20+100] != 0 {
		t.Error("it has other bytes")
	}
	release()
	if _, err := c.CreateSnapshot(ctx, "v", "s"); err != nil {
		t.Error(err)
	}
	if err := c.RestoreLive(ctx, spec, RestoreConn{}); !errors.Is(err, block.ErrExists) {
		t.Errorf("over a volume that is there: %v", err)
	}
	stop()
}

// To delete the volume ends its restore.
func TestRestoreGivenUp(t *testing.T) {
	cfg, engine := testConfig(t), newFakeEngine()
	c, stop := start(t, cfg, engine)
	spec := RestoreSpec{Name: "v", ContentBytes: 1 << 20, Backup: "b1", Repository: "r1"}
	b := bring(t, c, spec)
	b.writer(spec)
	must(t, c.DeleteVolume(t.Context(), "v"))
	if err := <-b.ended; err == nil {
		t.Error("the restore of a volume that was deleted ends well")
	}
	if left := engine.Volumes(); len(left) != 0 {
		t.Errorf("%v are left", left)
	}
	b = bring(t, c, spec)
	b.writer(spec)
	stop() // with it under way
	if err := <-b.ended; err == nil {
		t.Error("it ends well with the daemon")
	}
	must(t, engine.DeleteVolume(t.Context(), "v")) // as a start finds it that deleted the volume and no more
	start(t, cfg, engine)
	if left := engine.Volumes(); len(left) != 0 {
		t.Errorf("%v are left after a start", left)
	}
}

// What cannot be a restore is refused before anything is made.
func TestRestoreRefuses(t *testing.T) {
	engine := newFakeEngine()
	c, _ := start(t, testConfig(t), engine)
	for name, spec := range map[string]RestoreSpec{
		"no name":       {ContentBytes: 512, Backup: "b", Repository: "r"},
		"a hidden name": {Name: ".v", ContentBytes: 512, Backup: "b", Repository: "r"},
		"no size":       {Name: "v", Backup: "b", Repository: "r"},
		"too large":     {Name: "v", ContentBytes: 1 << 63, Backup: "b", Repository: "r"},
		"no backup":     {Name: "v", ContentBytes: 512, Repository: "r"},
		"chunking":      {Name: "v", ContentBytes: 512, Backup: "b", Repository: "r", Chunking: "fixed:1"},
	} {
		if err := c.RestoreLive(t.Context(), spec, RestoreConn{}); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if left := engine.Volumes(); len(left) != 0 {
		t.Errorf("%v were made", left)
	}
}

// What an older program wrote stays readable, and is written the same.
func TestGoldenRestores(t *testing.T) {
	file := restoresFile{}
	if err := readState("testdata/restores-1.json", restoresHeader, &file); err != nil || len(file.Restores) != 1 || file.Restores[0].ReachedBytes != 32<<20 {
		t.Fatalf("%+v, %v", file, err)
	}
	path := filepath.Join(t.TempDir(), "restores.json")
	must(t, writeState(path, file))
	want, _ := os.ReadFile("testdata/restores-1.json")
	if got, err := os.ReadFile(path); err != nil || string(got) != string(want) {
		t.Errorf("%v: %s", err, got)
	}
}
