package control

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

func TestVolumesAndSnapshots(t *testing.T) {
	c, _ := start(t, testConfig(t), newFakeEngine())
	ctx := t.Context()
	v, err := c.CreateVolume(ctx, VolumeSpec{Name: "v", SizeBytes: 1 << 20, Chunking: "fixed:64KiB", Mode: "durable"})
	if err != nil || v.Chunking != "fixed:64KiB" || v.Mode != "durable" || v.Attachment != nil {
		t.Fatalf("create: %+v, %v", v, err)
	}
	if _, err := c.ResizeVolume(ctx, "v", ResizeSpec{SizeBytes: 512}); !errors.Is(err, ErrRefused) {
		t.Errorf("shrink without the word: %v", err)
	}
	if v, err = c.ResizeVolume(ctx, "v", ResizeSpec{SizeBytes: 2 << 20}); err != nil || v.SizeBytes != 2<<20 {
		t.Errorf("grow: %+v, %v", v, err)
	}
	if _, err := c.CreateSnapshot(ctx, "v", "s"); err != nil {
		t.Fatal(err)
	}
	clone, err := c.CloneVolume(ctx, "v", "s", "c")
	if err != nil || clone.OriginVolume != "v" || clone.OriginSnapshot != "s" {
		t.Errorf("clone: %+v, %v", clone, err)
	}
	if err := c.Rollback(ctx, "v", "s"); err != nil {
		t.Error(err)
	}
	if _, err := c.RenameVolume(ctx, "v", "c"); !errors.Is(err, block.ErrExists) {
		t.Errorf("rename onto another: %v", err)
	}
	if s, err := c.RenameSnapshot(ctx, "v", "s", "s2"); err != nil || s.Name != "s2" || s.Volume != "v" {
		t.Errorf("rename of a snapshot: %+v, %v", s, err)
	}
	if _, err := c.RenameSnapshot(ctx, "v", "s2", ".export-x"); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("rename to a hidden name: %v", err)
	}
	if s, err := c.ProtectSnapshot(ctx, "v", "s2", true); err != nil || !s.Protected {
		t.Errorf("protect: %+v, %v", s, err)
	}
	if err := c.DeleteSnapshot(ctx, "v", "s2"); !errors.Is(err, block.ErrProtected) {
		t.Errorf("delete of a protected snapshot: %v", err)
	}
	if s, err := c.ProtectSnapshot(ctx, "v", "s2", false); err != nil || s.Protected {
		t.Errorf("unprotect: %+v, %v", s, err)
	}
	if err := c.DeleteSnapshot(ctx, "v", "nope"); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("delete of no snapshot: %v", err)
	}
	for _, name := range []string{"a@b", "../x", ".import-x"} {
		if _, err := c.Volume(name); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
		if err := c.DeleteVolume(ctx, name); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("delete %q: %v", name, err)
		}
	}
}

func TestSettleRunsOnce(t *testing.T) {
	c, stop := start(t, testConfig(t), newFakeEngine())
	if s, err := c.StartSettle(false); err != nil || !s.Running {
		t.Fatalf("start: %+v, %v", s, err)
	}
	stop() // waits for it
	if s := c.Settling(); s.Running || !s.Done || s.Error != "" {
		t.Errorf("after: %+v", s)
	}
	if _, err := c.StartSettle(false); !errors.Is(err, block.ErrClosed) {
		t.Errorf("start after close: %v", err)
	}
}

// Who asks while a settle runs may have written since that began: another one follows for all of them.
func TestSettleFollowsOneThatRuns(t *testing.T) {
	engine := newFakeEngine()
	begun, end := make(chan struct{}), make(chan error)
	engine.settling = func() error { begun <- struct{}{}; return <-end }
	c, _ := start(t, testConfig(t), engine)
	runs := func() (got []uint64) {
		for range 2 {
			s, err := c.StartSettle(false)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, s.Run)
		}
		return got
	}
	if got := runs(); got[0] != 1 || got[1] != 2 {
		t.Errorf("two asked, runs are %d", got)
	}
	<-begun
	if got := runs(); got[0] != 2 || got[1] != 2 {
		t.Errorf("two more asked, runs are %d", got)
	}
	end <- errors.New("no luck")
	<-begun
	if s := c.Settling(); !s.Running || s.Run != 2 || s.Ended != 1 || s.Done || s.Error != "no luck" {
		t.Errorf("the second runs: %+v", s)
	}
	end <- nil
	for c.Settling().Running {
		runtime.Gosched()
	}
	if s := c.Settling(); s.Run != 2 || s.Ended != 2 || !s.Done || s.Error != "" {
		t.Errorf("after: %+v", s)
	}
}

// A cold settle that is asked for while another one runs follows it, and what follows that is warm again.
func TestColdSettleFollowsOneThatRuns(t *testing.T) {
	engine := newFakeEngine()
	begun, end := make(chan struct{}), make(chan error)
	engine.settling = func() error { begun <- struct{}{}; return <-end }
	c, _ := start(t, testConfig(t), engine)
	ask := func(cold bool) {
		t.Helper()
		if _, err := c.StartSettle(cold); err != nil {
			t.Fatal(err)
		}
	}
	colder := func(want int) {
		t.Helper()
		engine.mu.Lock()
		defer engine.mu.Unlock()
		if engine.colder != want {
			t.Errorf("%d cold settles, want %d", engine.colder, want)
		}
	}
	ask(false)
	<-begun
	colder(0)
	ask(true)
	ask(false)
	end <- nil
	<-begun
	colder(1)
	ask(false)
	end <- nil
	<-begun
	colder(1)
	end <- nil
}

func TestSupportHasNoSecret(t *testing.T) {
	c, _ := start(t, testConfig(t), newFakeEngine())
	newVolume(t, c, "v")
	_, secret, err := c.Tokens().Create("ci", ScopeRead, 0)
	if err != nil {
		t.Fatal(err)
	}
	var bundle bytes.Buffer
	if err := c.Support(&bundle); err != nil {
		t.Fatal(err)
	}
	zip, err := gzip.NewReader(&bundle)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(zip); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimPrefix(header.Name, "hvd-support/")] = string(text)
		if strings.Contains(string(text), secret) || strings.Contains(strings.ToLower(string(text)), "sha256\"") {
			t.Errorf("%s holds a secret", header.Name)
		}
	}
	for _, name := range []string{"config.json", "stats.json", "attachments.json", "goroutines.txt", "build.json"} {
		if files[name] == "" {
			t.Errorf("%s is missing", name)
		}
	}
}

func TestReservationsWaitForShortAndRefuseLong(t *testing.T) {
	var r reservations
	short, err := r.hold(t.Context(), "resize", "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error)
	go func() {
		release, err := r.hold(context.Background(), "delete", "b", "c")
		if err == nil {
			release()
		}
		got <- err
	}()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.hold(ctx, "x", "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("while it is held: %v", err)
	}
	short()
	if err := <-got; err != nil {
		t.Errorf("after it was let go: %v", err)
	}
	long, err := r.holdLong(t.Context(), "import", "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.hold(t.Context(), "delete", "a"); !errors.Is(err, block.ErrInUse) || !strings.Contains(err.Error(), "import") {
		t.Errorf("against a long one: %v", err)
	}
	long()
}
