package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/backup/machine"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/hypervisor"
	"github.com/hyper-nixos/hyper-nixos/hypervisor/trial"
)

// likeMachine returns the backups of a machine's disks, the one first that it boots from, and makes the test's machine like it where the user has not said otherwise: with UEFI, and its disks where their drivers expect them.
func (t *restoreTest) likeMachine(ctx context.Context, r *repository.Repository, from *repository.Manifest, all []*repository.Manifest) ([]*repository.Manifest, error) {
	m, err := readMachine(ctx, r, from)
	if err != nil {
		return nil, err
	}
	d, err := hypervisor.Parse(m.XML)
	if err != nil {
		return nil, err
	}
	k := &machineRestore{a: t.a, m: m}
	if err := k.findBackups(from, all); err != nil {
		return nil, err
	}
	disks := bootOrder(d, k.parts)
	switch {
	case len(disks) == 0:
		return nil, fmt.Errorf("machine %s has no disk in its backup that it could boot from: %w", m.Name, block.ErrNotFound)
	case len(disks) > trial.MaxDisks:
		return nil, fmt.Errorf("machine %s has %d disks, and a test %d at most: name the backups of those to boot with: %w", m.Name, len(disks), trial.MaxDisks, block.ErrInvalid)
	}
	for _, left := range m.Left {
		if left.Device != "cdrom" && left.Device != "floppy" {
			t.a.note("hv-backup: %s %s (%s) was not in the backup, and is missing in the test", left.Device, left.Target, left.Source)
		}
	}
	if bus := trialBus(d, disks[0].Disk.Target); bus != "" && !t.busGiven {
		t.options.Bus = bus
	}
	if d.UEFI && t.options.Firmware == "" {
		if t.options.Firmware, err = trial.FindUEFI(); err != nil {
			return nil, err
		}
	}
	manifests := make([]*repository.Manifest, 0, len(disks))
	for _, disk := range disks {
		manifests = append(manifests, disk.from)
	}
	return manifests, nil
}

// bootOrder are the disks of a machine as it tries to boot from them: those that its definition numbers, then the others as they stand there. CD and floppy drives are none.
func bootOrder(d *hypervisor.Domain, parts []*restorePart) []*restorePart {
	disks := slices.DeleteFunc(slices.Clone(parts), func(p *restorePart) bool { return p.Disk.Device == "cdrom" || p.Disk.Device == "floppy" })
	place := func(p *restorePart) int {
		i := slices.IndexFunc(d.Disks, func(in hypervisor.Disk) bool { return in.Target == p.Disk.Target })
		switch {
		case i < 0: // was plugged in while it ran
			return 1<<20 + len(d.Disks)
		case d.Disks[i].Boot == 0:
			return 1<<20 + i
		}
		return int(d.Disks[i].Boot)
	}
	slices.SortStableFunc(disks, func(a, b *restorePart) int { return cmp.Compare(place(a), place(b)) })
	return disks
}

// trialBus is how the test's machine has a disk that the definition has on a bus; "": as it has any.
func trialBus(d *hypervisor.Domain, target string) string {
	for _, disk := range d.Disks {
		if disk.Target != target {
			continue
		}
		switch disk.Bus {
		case "virtio", "sata", "scsi":
			return disk.Bus
		case "ide": // the test's machine has none, and drivers for the one know the other
			return "sata"
		}
	}
	return ""
}

// isMachine reports whether a backup is of a machine.
func isMachine(m *repository.Manifest) bool { return m.Source.Kind == machine.Kind }
