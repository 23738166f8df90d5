package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/backup/machine"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/hypervisor"
	"github.com/hyper-nixos/hyper-nixos/hypervisor/libvirt"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// machineRestore brings back a machine: its volumes, what lies beside them, and its definition.
type machineRestore struct {
	a        *app
	name     string            // that it shall have; "": the one it had
	renamed  map[string]string // volumes that shall be called otherwise
	owner    string            // of sockets; "": as they were
	connect  string
	chunking string
	live     bool
	adopt    bool // volumes and files that are there are used as they are
	start    bool
	dryRun   bool
	brought  map[string]bool // volumes that this run has restored by themselves

	r     *repository.Repository
	api   *client.Client
	conn  *libvirt.Conn
	place libvirt.Place

	m       *machine.Machine
	parts   []*restorePart
	plan    plannedMachine
	change  hypervisor.Change
	resumed bool // the same command was interrupted: what it has brought is used
	defined bool // by that
	files   []plannedFile
	undo    []func(context.Context) error // what takes back what was made, in this order
}

// restorePart is a volume of the machine.
type restorePart struct {
	Disk   machine.Disk         `json:"-"`
	from   *repository.Manifest // the backup of the volume
	exists bool                 // it, or a part of it, was brought before
	whole  bool                 // all of it
	Volume string               `json:"volume"`
	Was    string               `json:"was"`
	Backup string               `json:"backup"`
	Size   uint64               `json:"sizeBytes"`
	Socket string               `json:"socket,omitempty"`
}

// plannedMachine is what is restored, with -o json.
type plannedMachine struct {
	Backup      string          `json:"backup"`
	Domain      string          `json:"domain"`
	UUID        string          `json:"uuid"`
	MACs        []string        `json:"macs,omitempty"`
	Consistency string          `json:"consistency"`
	Volumes     []*restorePart  `json:"volumes"`
	NVRAM       string          `json:"nvram,omitempty"` // path
	TPM         string          `json:"tpm,omitempty"`   // folder
	Media       []string        `json:"media,omitempty"` // paths
	Left        []machine.Other `json:"left,omitempty"`
	Live        bool            `json:"live,omitempty"`
	Started     bool            `json:"started,omitempty"`
	DryRun      bool            `json:"dryRun,omitempty"`
	Seconds     float64         `json:"seconds,omitempty"`
}

// restoreMachine restores from a backup of kind machine. Volumes are taken from all, the backups that there are.
func (k *machineRestore) restoreMachine(ctx context.Context, from *repository.Manifest, all []*repository.Manifest) (err error) {
	if k.m, err = readMachine(ctx, k.r, from); err != nil {
		return err
	}
	if k.api, err = k.a.hvd(); err != nil {
		return err
	}
	if k.conn, k.place, err = k.a.libvirt(ctx, k.connect); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.conn.Close()) }()
	k.plan = plannedMachine{Backup: from.Name, Consistency: from.Consistency, Left: k.m.Left, Live: k.live, DryRun: k.dryRun}
	for _, step := range []func() error{
		func() error { return k.findBackups(from, all) },
		k.checkStart,
		func() error { return k.lookAtVolumes(ctx) },
		func() error { return k.lookAtDomains(ctx) },
		k.planFiles,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	if k.dryRun {
		return nil
	}
	for _, left := range k.m.Left {
		k.a.note("hv-backup: %s %s (%s) was not in the backup, and is in the definition as it was: %s", left.Device, left.Target, left.Source, left.Why)
	}
	if err = k.bring(ctx); err != nil && !k.live {
		err = errors.Join(err, k.takeBack(context.WithoutCancel(ctx)))
	}
	return err
}

// readMachine reads what a backup of a machine has.
func readMachine(ctx context.Context, r *repository.Repository, m *repository.Manifest) (_ *machine.Machine, err error) {
	device, err := backup.NewDevice(r, m, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	return machine.Read(bufio.NewReaderSize(io.NewSectionReader(deviceReader{ctx, device}, 0, int64(m.SizeBytes)), 1<<20))
}

// findBackups finds the backups of the machine's volumes that are of its moment.
func (k *machineRestore) findBackups(from *repository.Manifest, all []*repository.Manifest) error {
	k.plan.Domain = cmp.Or(k.name, k.m.Name)
	known := make(map[string]bool)
	for _, d := range k.m.Disks {
		if known[d.Volume] {
			continue
		}
		known[d.Volume] = true
		p := &restorePart{Disk: d, Was: d.Volume, Volume: cmp.Or(k.renamed[d.Volume], volumeFor(k.plan.Domain, k.m.Name, d.Volume))}
		for _, m := range all {
			if m.Source.Kind == "volume" && m.Source.Name == d.Volume && m.Source.Host == from.Source.Host && m.Time.Equal(from.Time) && (p.from == nil || m.Frozen != nil && m.Frozen.Volume == d.VolumeUUID) {
				p.from = m
			}
		}
		if p.from == nil {
			return fmt.Errorf("the backup of volume %s that belongs to %s is gone; what is left of the machine comes back with --to-volume and --to-dir: %w", d.Volume, from.Name, block.ErrNotFound)
		}
		p.Backup, p.Size = p.from.Name, p.from.SizeBytes
		k.parts = append(k.parts, p)
	}
	for volume := range k.renamed {
		if !known[volume] {
			return console.Usagef("--volume %s=…: the machine has no such volume", volume)
		}
	}
	names := make(map[string]string)
	for _, p := range k.parts {
		if other := names[p.Volume]; other != "" {
			return console.Usagef("volumes %s and %s would both be called %s: give --volume %s=OTHER", other, p.Was, p.Volume, p.Was)
		}
		names[p.Volume] = p.Was
	}
	k.plan.Volumes = k.parts
	return nil
}

// volumeFor is what a volume is called in a machine with another name.
func volumeFor(name, was, volume string) string {
	if name == was {
		return volume
	}
	if rest, ok := strings.CutPrefix(volume, was); ok && (rest == "" || strings.ContainsAny(rest[:1], "-_.")) {
		return name + rest
	}
	return name + "-" + volume
}

// lookAtVolumes refuses to write over what there is, but for what the same command has begun.
func (k *machineRestore) lookAtVolumes(ctx context.Context) error {
	var taken error
	for _, p := range k.parts {
		reply, err := client.GetVolume(ctx, k.api, p.Volume)
		if said := (*client.Error)(nil); errors.As(err, &said) && said.Code == client.CodeNotFound {
			continue
		}
		if err != nil {
			return err
		}
		restoring := reply.Volume.Restoring
		p.exists, p.whole = true, restoring == nil
		if k.adopt && p.whole {
			if err := k.adoptable(p, &reply.Volume); err != nil {
				return err
			}
			continue
		}
		if k.live && restoring != nil && restoring.Backup == p.from.Name && restoring.Repository == k.r.ID() {
			k.resumed = true
		} else {
			taken = fmt.Errorf("volume %q: delete it, use it as it is with --existing, give --volume %s=OTHER, or another name for the domain: %w", p.Volume, p.Was, block.ErrExists)
			if restoring != nil {
				return taken
			}
		}
	}
	if k.resumed {
		return nil
	}
	return taken
}

// adoptable refuses a volume that is there, and cannot be the machine's: it may be another one's of that name.
func (k *machineRestore) adoptable(p *restorePart, v *client.Volume) error {
	if v.SizeBytes != p.Size {
		return fmt.Errorf("volume %q has %d B and the machine's had %d B, so it is another one: give --volume %s=OTHER, or delete it: %w", p.Volume, v.SizeBytes, p.Size, p.Was, block.ErrInvalid)
	}
	if v.Attachment != nil && v.Attachment.Connections > 0 {
		return fmt.Errorf("volume %q is in use by somebody who is connected to it: end that first, or give --volume %s=OTHER: %w", p.Volume, p.Was, block.ErrExists)
	}
	return nil
}

// checkStart refuses to start a machine beside the one it was while both write the same disks: those that were in no backup are in the definition as they were.
func (k *machineRestore) checkStart() error {
	if !k.start || k.plan.Domain == k.m.Name {
		return nil
	}
	d, err := hypervisor.Parse(k.m.XML)
	if err != nil {
		return err
	}
	for _, disk := range d.Disks {
		ours := slices.ContainsFunc(k.m.Disks, func(in machine.Disk) bool { return in.Target == disk.Target })
		if !ours && disk.Device != "cdrom" && (disk.Path != "" || disk.Kind != "file") && !slices.ContainsFunc(k.m.Media, func(in machine.Medium) bool { return in.Target == disk.Target }) {
			return fmt.Errorf("disk %s (%s) was not in the backup, so %s would write to that of %s: restore without --start, and give it another disk or none before you start it: %w", disk.Target, disk.Where(), k.plan.Domain, k.m.Name, block.ErrInvalid)
		}
	}
	return nil
}

// lookAtDomains decides under which name and UUID the machine comes back.
func (k *machineRestore) lookAtDomains(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, libvirtTime)
	defer cancel()
	k.plan.UUID, k.plan.MACs = k.m.UUID, k.m.MACs
	k.change = hypervisor.Change{GenID: uuid.NewString(), Disks: make(map[string]hypervisor.Source)}
	if k.plan.Domain != k.m.Name {
		k.change.Name = k.plan.Domain
	}
	there, err := k.conn.Find(ctx, k.plan.Domain)
	switch {
	case err == nil && k.resumed:
		k.defined, k.plan.UUID = true, there.UUID
		return nil
	case err == nil:
		return fmt.Errorf("domain %q; restore it beside that one with --to-domain NAME, or undefine that one first (`virsh undefine %s --keep-nvram --keep-tpm` keeps the rest of it): %w", k.plan.Domain, k.plan.Domain, block.ErrExists)
	case !errors.Is(err, block.ErrNotFound):
		return err
	}
	there, err = k.conn.FindUUID(ctx, k.m.UUID)
	switch {
	case errors.Is(err, block.ErrNotFound):
		return nil
	case err != nil:
		return err
	case k.change.Name == "":
		return fmt.Errorf("domain %s, called %q; restore a new one beside it with --to-domain NAME, or undefine it first: %w", k.m.UUID, there.Name, block.ErrExists)
	}
	k.change.UUID, k.change.MACs = uuid.NewString(), make(map[string]string)
	k.plan.UUID, k.plan.MACs = k.change.UUID, nil
	for _, mac := range k.m.MACs {
		if k.change.MACs[mac] == "" {
			var b [3]byte
			_, _ = rand.Read(b[:]) // documented never to fail
			k.change.MACs[mac] = fmt.Sprintf("52:54:00:%02x:%02x:%02x", b[0], b[1], b[2])
		}
		k.plan.MACs = append(k.plan.MACs, k.change.MACs[mac])
	}
	return nil
}

// finish attaches the volumes, writes the files and defines the domain.
func (k *machineRestore) finish(ctx context.Context) error {
	for _, p := range k.parts {
		if err := k.attach(ctx, p); err != nil {
			return err
		}
	}
	if k.defined {
		return nil
	}
	if err := k.writeFiles(); err != nil {
		return err
	}
	d, err := hypervisor.Parse(k.m.XML)
	if err != nil {
		return err
	}
	for _, disk := range k.m.Disks {
		i := slices.IndexFunc(k.parts, func(p *restorePart) bool { return p.Was == disk.Volume })
		k.change.Disks[disk.Target] = hypervisor.Source{Export: k.parts[i].Volume, Socket: k.parts[i].Socket}
		if !slices.ContainsFunc(d.Disks, func(in hypervisor.Disk) bool { return in.Target == disk.Target }) {
			k.a.note("hv-backup: disk %s was plugged in while the machine ran, and is not in its definition; its volume is %s", disk.Target, k.parts[i].Volume)
		}
	}
	text, err := k.change.Apply(k.m.XML)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, libvirtTime)
	defer cancel()
	if err := k.stillFree(ctx, text); err != nil {
		return err
	}
	domain, err := k.conn.Define(ctx, text)
	if err != nil {
		return err
	}
	k.undo = nil // from here on it is a machine
	if k.start {
		if err := k.conn.Start(ctx, domain); err != nil {
			return fmt.Errorf("the machine is restored and defined: %w", err)
		}
		k.plan.Started = true
	}
	return nil
}

// stillFree refuses a definition that would replace a domain: libvirt gives one that has its name and UUID another definition.
func (k *machineRestore) stillFree(ctx context.Context, text string) error {
	d, err := hypervisor.Parse(text)
	if err != nil {
		return err
	}
	if d.Name != k.plan.Domain || !strings.EqualFold(d.UUID, k.plan.UUID) {
		return fmt.Errorf("the changed definition is not of domain %q with UUID %s: %w", k.plan.Domain, k.plan.UUID, block.ErrCorrupt)
	}
	for _, look := range []func() (libvirt.Domain, error){
		func() (libvirt.Domain, error) { return k.conn.Find(ctx, d.Name) },
		func() (libvirt.Domain, error) { return k.conn.FindUUID(ctx, d.UUID) },
	} {
		if there, err := look(); err == nil {
			return fmt.Errorf("domain %q (%s) was defined meanwhile; restore beside it with --to-domain NAME, or undefine it first: %w", there.Name, there.UUID, block.ErrExists)
		} else if !errors.Is(err, block.ErrNotFound) {
			return err
		}
	}
	return nil
}

// attach exports a volume as it was exported.
func (k *machineRestore) attach(ctx context.Context, p *restorePart) error {
	reply, err := client.GetVolume(ctx, k.api, p.Volume)
	if err != nil {
		return err
	}
	adopted := k.adopt && p.exists && p.whole
	if adopted {
		if err := k.adoptable(p, &reply.Volume); err != nil {
			return err
		}
	}
	if at := reply.Volume.Attachment; at != nil {
		p.Socket = at.Socket
		return nil
	}
	input := client.AttachVolumeInput{Name: p.Volume, SocketPerVolume: p.Disk.OwnSocket, ReadOnly: p.Disk.ReadOnly}
	owner, mode := p.Disk.Owner, p.Disk.Mode
	if adopted && !k.brought[p.Volume] { // whom the backup gives what it did not bring is not up to it
		owner, mode = "", ""
	}
	if p.Disk.OwnSocket || k.owner != "" {
		input.SocketPerVolume, input.Owner, input.Mode = true, cmp.Or(k.owner, owner), mode
	}
	attached, err := client.AttachVolume(ctx, k.api, input)
	if err != nil {
		return fmt.Errorf("attach volume %s (--socket-owner USER:GROUP says whose its socket shall be): %w", p.Volume, err)
	}
	p.Socket = attached.AttachVolume.Attachment.Socket
	return nil
}

// takeBack removes what a restore has made that failed. Nobody has used it.
func (k *machineRestore) takeBack(ctx context.Context) (err error) {
	for _, undo := range slices.Backward(k.undo) {
		err = errors.Join(err, undo(ctx))
	}
	return err
}

// show says what was, or would be, restored.
func (k *machineRestore) show() {
	p := &k.plan
	rows := [][2]string{{"backup", p.Backup}, {"domain", p.Domain}, {"uuid", p.UUID}, {"addresses", strings.Join(p.MACs, ", ")}, {"consistency", p.Consistency}}
	for _, v := range p.Volumes {
		rows = append(rows, [2]string{"volume", fmt.Sprintf("%s (%s) from %s", v.Volume, units.Size(v.Size).Human(), v.Backup)})
	}
	for _, part := range [][2]string{{"firmware", p.NVRAM}, {"tpm", p.TPM}, {"media", strings.Join(p.Media, ", ")}} {
		if part[1] != "" {
			rows = append(rows, part)
		}
	}
	for _, left := range p.Left {
		rows = append(rows, [2]string{"left out", fmt.Sprintf("%s %s (%s)", left.Device, left.Target, left.Source)})
	}
	console.Pairs(k.a.out, rows)
}

// checkDomainName refuses what could be no name of a file either.
func checkDomainName(name string) error {
	if len(name) > 200 || strings.ContainsAny(name, "/\x00\n") || !filepath.IsLocal(name) {
		return console.Usagef("%.40q cannot be the name of a domain: at most 200 bytes, without slashes", name)
	}
	return nil
}
