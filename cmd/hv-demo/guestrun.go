package main

import (
	"context"
	"fmt"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/guest"
)

// boot starts the guest, which lives as long as demo, and waits until its own program runs.
func (d *demo) boot(demo, limited context.Context) (string, error) {
	machine, err := guest.Boot(demo, guest.BootOptions{
		Image: d.first, NBDURI: d.uri, Accel: d.accel, Task: guest.TaskFsyncWriter, Count: files, ReconnectDelay: time.Minute,
	})
	if err != nil {
		return "", err
	}
	d.machine = machine
	if _, err := machine.WaitMarker(limited, "GUEST-READY"); err != nil {
		return "", err
	}
	return fmt.Sprintf("its ext4 root is the volume (qemu is process %d)", machine.PID()), nil
}

func (d *demo) write(ctx context.Context) (string, error) {
	if err := d.waitSynced(ctx, killAt); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d of %d", d.machine.Synced(), files), nil
}

// kill takes the daemon away while the guest writes.
func (d *demo) kill(context.Context) (string, error) {
	pid := d.daemon.pid()
	d.killed = time.Now()
	if err := d.daemon.kill(); err != nil {
		return "", err
	}
	d.memory = max(d.memory, d.daemon.mostMemory())
	return fmt.Sprintf("process %d, after file %d", pid, d.machine.Synced()), nil
}

func (d *demo) restart(ctx context.Context) (string, error) {
	if _, err := d.start(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("process %d, ready %.2f s after the kill", d.daemon.pid(), time.Since(d.killed).Seconds()), nil
}

// goOn waits for a file that the guest cannot have finished without the new daemon: two more than it had reported.
func (d *demo) goOn(ctx context.Context) (string, error) {
	if err := d.waitSynced(ctx, d.machine.Synced()+2); err != nil {
		return "", err
	}
	return fmt.Sprintf("file %d was fsynced %.2f s after the kill", d.machine.Synced(), time.Since(d.killed).Seconds()), nil
}

// finish waits until the guest has read all its files back and powered itself off, and wants not one error from it.
func (d *demo) finish(ctx context.Context) (string, error) {
	for _, marker := range []string{fmt.Sprintf("GUEST-VERIFIED %d", files), "GUEST-DONE"} {
		if _, err := d.machine.WaitMarker(ctx, marker); err != nil {
			return "", err
		}
	}
	if err := d.machine.Wait(); err != nil {
		return "", err
	}
	if complaints := d.machine.Errors(); len(complaints) > 0 {
		return "", fmt.Errorf("the guest met errors: %q", complaints)
	}
	if synced := d.machine.Synced(); synced != files {
		return "", fmt.Errorf("the guest reported %d files, want %d", synced, files)
	}
	return fmt.Sprintf("%d files fsynced and read back, 0 errors, powered off", files), nil
}

func (d *demo) waitSynced(ctx context.Context, n int) error {
	_, err := d.machine.WaitMarker(ctx, fmt.Sprintf("SYNCED %d", n))
	return err
}
