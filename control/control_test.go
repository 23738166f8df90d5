package control

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
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
	if _, err := c.ResizeVolume(ctx, "v", 512, false); !errors.Is(err, ErrRefused) {
		t.Errorf("shrink without the word: %v", err)
	}
	if v, err = c.ResizeVolume(ctx, "v", 2<<20, false); err != nil || v.SizeBytes != 2<<20 {
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
	if s, err := c.StartSettle(); err != nil || !s.Running {
		t.Fatalf("start: %+v, %v", s, err)
	}
	stop() // waits for it
	if s := c.Settling(); s.Running || !s.Done || s.Error != "" {
		t.Errorf("after: %+v", s)
	}
	if _, err := c.StartSettle(); !errors.Is(err, block.ErrClosed) {
		t.Errorf("start after close: %v", err)
	}
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
