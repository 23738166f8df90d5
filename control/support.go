package control

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
)

// Support writes a gzipped tar of what helps to understand a fault: versions, configuration, counters, volumes, attachments and the
// stacks of all goroutines. There is no guest data in it and no secret; the names of volumes, snapshots and tokens are.
func (c *Control) Support(w io.Writer) error {
	build, _ := debug.ReadBuildInfo()
	parts := []struct {
		name  string
		value any
	}{
		{"config.json", c.opts.Config.Values()},
		{"status.json", c.Status()},
		{"stats.json", c.Stats()},
		{"volumes.json", c.Volumes()},
		{"attachments.json", c.Attachments()},
		{"nbd.json", c.nbd.Stats()},
		{"tokens.json", c.tokens.List()},
		{"settle.json", c.Settling()},
		{"runtime.json", runtimeState()},
		{"build.json", build},
	}
	zip := gzip.NewWriter(w)
	bundle := tar.NewWriter(zip)
	for _, part := range parts {
		text, err := json.MarshalIndent(part.value, "", "  ")
		if err != nil {
			return fmt.Errorf("support bundle: %s: %w", part.name, err)
		}
		if err := c.addFile(bundle, part.name, text); err != nil {
			return fmt.Errorf("support bundle: %w", err)
		}
	}
	var stacks bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&stacks, 1); err != nil {
		return fmt.Errorf("support bundle: goroutines: %w", err)
	}
	if err := c.addFile(bundle, "goroutines.txt", stacks.Bytes()); err != nil {
		return fmt.Errorf("support bundle: %w", err)
	}
	if err := errors.Join(bundle.Close(), zip.Close()); err != nil {
		return fmt.Errorf("support bundle: %w", err)
	}
	return nil
}

func (c *Control) addFile(bundle *tar.Writer, name string, text []byte) error {
	header := &tar.Header{Name: "hvd-support/" + name, Mode: 0o600, Size: int64(len(text)), ModTime: c.opts.Now()}
	if err := bundle.WriteHeader(header); err != nil {
		return err
	}
	_, err := bundle.Write(text)
	return err
}

func runtimeState() map[string]any {
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	return map[string]any{
		"goVersion": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH, "cpus": runtime.NumCPU(),
		"goroutines": runtime.NumGoroutine(), "heapBytes": memory.HeapAlloc, "sysBytes": memory.Sys, "collections": memory.NumGC,
	}
}
