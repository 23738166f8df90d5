package control

import (
	"errors"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// A client learns the size when it connects, so growing ends its connection, and shrinking under it needs a strong word.
func TestResizeEndsConnections(t *testing.T) {
	cfg := testConfig(t)
	c, _ := start(t, cfg, newFakeEngine())
	newVolume(t, c, "v")
	newVolume(t, c, "other")
	for _, name := range []string{"v", "other"} {
		if _, _, err := c.Attach(t.Context(), AttachSpec{Volume: name}); err != nil {
			t.Fatal(err)
		}
	}
	other := dialNBD(t, cfg.NBD.Socket, "other")
	resize := func(spec ResizeSpec) error {
		v, err := c.ResizeVolume(t.Context(), "v", spec)
		if err == nil && v.SizeBytes != spec.SizeBytes {
			t.Errorf("it has %d bytes, want %d", v.SizeBytes, spec.SizeBytes)
		}
		return err
	}
	for _, x := range []struct {
		what  string
		spec  ResizeSpec
		error error
		ends  bool
	}{
		{"grow", ResizeSpec{SizeBytes: 2 << 20}, nil, true},
		{"the same size", ResizeSpec{SizeBytes: 2 << 20}, nil, false},
		{"grow and keep", ResizeSpec{SizeBytes: 3 << 20, KeepConnections: true}, nil, false},
		{"shrink without force", ResizeSpec{SizeBytes: 1 << 20, Shrink: true}, ErrRefused, false},
		{"shrink without shrink", ResizeSpec{SizeBytes: 1 << 20, Force: true}, ErrRefused, false},
		{"shrink", ResizeSpec{SizeBytes: 1 << 20, Shrink: true, Force: true}, nil, true},
	} {
		client := dialNBD(t, cfg.NBD.Socket, "v")
		if client == nil {
			t.Fatalf("%s: nobody is let in", x.what)
		}
		if err := resize(x.spec); !errors.Is(err, x.error) {
			t.Errorf("%s: %v, want %v", x.what, err, x.error)
		}
		if x.ends {
			gone(t, client)
		} else if c.nbd.Connections("v") == 0 {
			t.Errorf("%s: the connection was ended", x.what)
		}
		client.Close()
		for c.nbd.Connections("v") > 0 {
			time.Sleep(time.Millisecond)
		}
	}
	if other == nil || c.nbd.Connections("other") != 1 {
		t.Error("a client of another volume was touched")
	}
}

// Faults come and go under a client that is connected.
func TestFaultsChangeUnderAClient(t *testing.T) {
	c, _ := start(t, testConfig(t), newFakeEngine())
	newVolume(t, c, "v")
	attach := func(faults string) error {
		_, _, err := c.Attach(t.Context(), AttachSpec{Volume: "v", Inject: faults})
		return err
	}
	if err := attach("error=1,on=write"); err != nil {
		t.Fatal(err)
	}
	e, release, err := (sharedExports{c}).Acquire("v")
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	write := func() error {
		return e.Device.Write(t.Context(), []nbd.Write{{Data: make([]byte, 512)}}, false)
	}
	if write() == nil {
		t.Error("no fault")
	}
	if faults := c.Status().Faults; len(faults) != 1 || faults[0] != "v: error=1,on=write" {
		t.Errorf("status tells of %q", faults)
	}
	if err := attach(""); err != nil || write() == nil {
		t.Errorf("attach again: %v, and the faults are gone", err)
	}
	if err := errors.Join(attach("none"), write()); err != nil {
		t.Errorf("no faults any more: %v", err)
	}
	if at := c.attachmentOf("v"); at.Inject != "" || len(c.Status().Faults) != 0 {
		t.Errorf("still told: %+v", at)
	}
	if err := attach("error=1"); err != nil || write() == nil {
		t.Errorf("faults again: %v", err)
	}
}
