package control

import (
	"context"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/control/config"
)

// testConfig is a configuration in a directory whose name is short enough for sockets.
func testConfig(t *testing.T) *config.Loaded {
	t.Helper()
	dir, err := os.MkdirTemp("", "hv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cfg := config.Default()
	cfg.DataDir = dir
	cfg.Listen = "127.0.0.1:0"
	cfg.ControlSocket = filepath.Join(dir, "hvd.sock")
	cfg.NBD.Socket = filepath.Join(dir, "nbd.sock")
	cfg.NBD.VolumeSocketDir = filepath.Join(dir, "nbd")
	cfg.NBD.DrainTimeout = 5 * time.Second
	return &config.Loaded{Config: cfg}
}

// start opens a Control over an engine that exists. stop closes it, and does nothing the second time.
func start(t *testing.T, cfg *config.Loaded, engine *fakeEngine) (c *Control, stop func()) {
	t.Helper()
	c, err := Open(t.Context(), Options{
		Config: cfg, Version: "test",
		OpenEngine: func(context.Context, config.Config, *slog.Logger) (Engine, error) { return engine, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		if err := c.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return c, stop
}

// newVolume makes a volume of 1 MiB.
func newVolume(t *testing.T, c *Control, name string) {
	t.Helper()
	if _, err := c.CreateVolume(t.Context(), VolumeSpec{Name: name, SizeBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
}

// socketOf takes the socket's path out of an NBD URI.
func socketOf(t *testing.T, uri string) string {
	t.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	return u.Query().Get("socket")
}
