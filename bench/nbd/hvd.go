package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// daemon is hvd on a store. It may be started again on the same store with other settings.
type daemon struct {
	b    *bench
	dir  string // of the store
	args []string
	proc *process
	api  *client.Client
}

func (b *bench) newDaemon(name string) *daemon {
	return &daemon{b: b, dir: filepath.Join(b.dir, name)}
}

// start runs hvd with the given settings beside those of all runs. If it runs with just these, it stays.
func (d *daemon) start(ctx context.Context, settings ...string) error {
	args := []string{filepath.Join(d.b.o.bin, "hvd"), "--data-dir", d.dir, "--listen", "off"}
	args = append(append(args, settings...), d.b.o.hvdArgs...)
	if d.proc != nil && slices.Equal(args, d.args) {
		return nil
	}
	if err := d.stop(); err != nil {
		return err
	}
	var err error
	if d.proc, err = startProcess("hvd", filepath.Join(d.b.dir, "hvd.log"), args); err != nil {
		return err
	}
	d.args = args
	socket := filepath.Join(d.dir, "hvd.sock")
	if err := d.proc.listening(ctx, socket); err != nil {
		return err
	}
	if d.api, err = client.New("unix:"+socket, ""); err != nil {
		return err
	}
	_, err = client.GetStatus(ctx, d.api)
	return err
}

// stop ends hvd if it runs.
func (d *daemon) stop() error {
	if d.proc == nil {
		return nil
	}
	if d.api != nil {
		d.api.Close()
	}
	err := d.proc.stop()
	d.proc, d.args, d.api = nil, nil, nil
	return err
}

// remove ends hvd and takes its store away.
func (d *daemon) remove() error { return errors.Join(d.stop(), os.RemoveAll(d.dir)) }

func (d *daemon) uri(volume string) string {
	return fmt.Sprintf("nbd+unix:///%s?socket=%s", volume, filepath.Join(d.dir, "nbd.sock"))
}

// volume makes a volume and attaches it.
func (d *daemon) volume(ctx context.Context, name string, size units.Size) error {
	input := client.CreateVolumeInput{Name: name, SizeBytes: uint64(size), Chunking: "cdc", Mode: client.WriteModeWriteback}
	if _, err := client.CreateVolume(ctx, d.api, input); err != nil {
		return err
	}
	return d.attach(ctx, name)
}

func (d *daemon) attach(ctx context.Context, name string) error {
	_, err := client.AttachVolume(ctx, d.api, client.AttachVolumeInput{Name: name})
	return err
}

func (d *daemon) stats(ctx context.Context) (client.Stats, error) {
	reply, err := client.GetStats(ctx, d.api)
	if err != nil {
		return client.Stats{}, err
	}
	return reply.Stats, nil
}

// settle brings all data down and waits for it.
func (d *daemon) settle(ctx context.Context) error {
	begun, err := client.StartSettle(ctx, d.api, false)
	if err != nil {
		return err
	}
	for {
		reply, err := client.GetSettling(ctx, d.api)
		if err != nil {
			return err
		}
		if s := reply.Settling; s.Ended >= begun.Settle.Run {
			if !s.Done {
				return fmt.Errorf("settle: %s", s.Error)
			}
			return nil
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// frameBudget is how many bytes of decoded frames hvd keeps.
func frameBudget(s client.Stats) uint64 {
	for _, part := range s.Memory {
		if part.Name == "frames" {
			return part.BudgetBytes
		}
	}
	return 0
}

// frameCounts are the look-ups of decoded frames so far.
func frameCounts(s client.Stats) (hits, misses uint64) {
	for _, c := range s.Caches {
		if c.Name == "frames" {
			return c.Hits, c.Misses
		}
	}
	return 0, 0
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
