package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
)

// kernelNBD is the kernel's own NBD client, which turns exports into block devices /dev/nbdN. The program nbd-client negotiates for it.
type kernelNBD struct {
	dev, sys string // /dev and /sys/block
}

func newVolumeMap(a *app) *cobra.Command {
	var device string
	c := &cobra.Command{
		Use:   "map NAME",
		Short: "Make an attached volume a block device of this machine",
		Long: `Make an attached volume a block device of this machine, through the kernel's NBD client, and print the device. This needs root, the kernel
module nbd and the program nbd-client. Without the module, nbdfuse (libnbd) shows the volume as a file, which a loop device can be made of.

The device does not outlive its connection: once hvd was restarted, or the volume resized, it gives I/O errors until it is unmapped and mapped again, since nbd-client
(3.24 is what was tested) does not come back by itself on present kernels. For what must go on, such as a guest's disk, use QEMU with reconnect-delay.`,
		Example: `  hv-storage-fabric volume map web1
  hv-storage-fabric volume map web1 --device /dev/nbd3`,
		Args:              exactly("NAME"),
		ValidArgsFunction: a.completeVolumes,
		RunE: func(c *cobra.Command, args []string) error {
			return a.mapVolume(c.Context(), kernelNBD{"/dev", "/sys/block"}, args[0], device)
		},
	}
	c.Flags().StringVar(&device, "device", "", "which device to use (default: the first free one)")
	return c
}

func newVolumeUnmap(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "unmap DEVICE",
		Short:   "End a block device that map made",
		Long:    "End a block device that map made. Unmount what is mounted from it before.",
		Example: "  hv-storage-fabric volume unmap /dev/nbd0",
		Args:    exactly("DEVICE"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.unmap(c.Context(), kernelNBD{"/dev", "/sys/block"}, args[0])
		},
	}
}

func (a *app) mapVolume(ctx context.Context, kernel kernelNBD, name, device string) error {
	api, err := a.connect()
	if err != nil {
		return err
	}
	reply, err := client.GetVolume(ctx, api, name)
	if err != nil {
		return err
	}
	at := reply.Volume.Attachment
	if at == nil {
		return fmt.Errorf("volume %s is not attached; `hv-storage-fabric volume attach %s` does that: %w", name, name, errRefused)
	}
	if err := kernel.check(at.Uri); err != nil {
		return fmt.Errorf("map volume %s: %w", name, err)
	}
	if device, err = kernel.choose(device); err != nil {
		return fmt.Errorf("map volume %s: %w", name, err)
	}
	// A device of 1 KiB blocks, the default, would lack an odd last sector. -persist is to have it outlive a restart of hvd, which nbd-client 3.24 does not bring about.
	connect := []string{"-unix", at.Socket, device, "-name", name, "-block-size", "512", "-persist"}
	if at.ReadOnly {
		connect = append(connect, "-readonly")
	}
	if err := nbdClient(ctx, connect...); err != nil {
		return fmt.Errorf("map volume %s to %s: %w", name, device, err)
	}
	return a.show(map[string]any{"name": name, "device": device}, func() { a.say("%s", device) })
}

func (a *app) unmap(ctx context.Context, kernel kernelNBD, device string) error {
	if err := kernel.check("URI"); err != nil {
		return fmt.Errorf("unmap %s: %w", device, err)
	}
	used, err := kernel.used(device)
	if err != nil {
		return fmt.Errorf("unmap %s: %w", device, err)
	}
	if !used {
		return fmt.Errorf("unmap %s: nothing is mapped to it: %w", device, fs.ErrNotExist)
	}
	if err := nbdClient(ctx, "-disconnect", device); err != nil {
		return fmt.Errorf("unmap %s: %w", device, err)
	}
	return a.show(map[string]any{"device": device, "unmapped": true}, func() { a.say("unmapped %s", device) })
}

// check says what is missing to map an export, and what to use instead.
func (k kernelNBD) check(uri string) error {
	if len(k.devices()) == 0 {
		return fmt.Errorf("this kernel has no %s/nbd*: load its module with `modprobe nbd`, if it has one; without it, "+
			"`nbdfuse FILE '%s'` (Debian: libnbd-bin) shows the volume as a file; `qemu-nbd -c` needs the same module: %w", k.dev, uri, errRefused)
	}
	if _, err := exec.LookPath("nbd-client"); err != nil {
		return fmt.Errorf("the program nbd-client is not installed (Debian: apt install nbd-client): %w", errRefused)
	}
	return nil
}

// devices are the kernel's NBD devices, in the order of their names.
func (k kernelNBD) devices() []string {
	found, _ := filepath.Glob(filepath.Join(k.sys, "nbd*")) // the pattern is good
	for i, path := range found {
		found[i] = filepath.Join(k.dev, filepath.Base(path))
	}
	return found
}

// deviceName is a whole device, no partition.
var deviceName = regexp.MustCompile(`^nbd[0-9]+$`)

// used reports whether something is mapped to a device.
func (k kernelNBD) used(device string) (bool, error) {
	name := filepath.Base(device)
	if filepath.Dir(device) != k.dev || !deviceName.MatchString(name) {
		return false, usagef("%s is no NBD device; they are called %s", device, filepath.Join(k.dev, "nbd0"))
	}
	if _, err := os.Stat(filepath.Join(k.sys, name)); err != nil {
		return false, err
	}
	_, err := os.Stat(filepath.Join(k.sys, name, "pid")) // is there while a client is
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// choose returns the device, or a free one when none is named.
func (k kernelNBD) choose(device string) (string, error) {
	candidates := k.devices()
	if device != "" {
		candidates = []string{device}
	}
	for _, d := range candidates {
		used, err := k.used(d)
		if err != nil {
			return "", err
		}
		if !used {
			return d, nil
		}
	}
	return "", fmt.Errorf("all of %s are in use: %w", strings.Join(candidates, ", "), errRefused)
}

// nbdClient runs nbd-client; what it says is part of the error.
func nbdClient(ctx context.Context, args ...string) error {
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, "nbd-client", args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("nbd-client %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return nil
}
