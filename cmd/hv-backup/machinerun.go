package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/backup/machine"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/hypervisor"
	"github.com/hyper-nixos/hyper-nixos/hypervisor/libvirt"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
)

const connectHelp = "libvirt's `URI`: qemu:///system or qemu:///session, with ?socket=PATH where it is elsewhere (default $LIBVIRT_DEFAULT_URI, else root's is the system's)"

// libvirtTime is how long a question to libvirt may take that nobody's guest waits for.
const libvirtTime = 60 * time.Second

// machineRun backs up whole machines.
type machineRun struct {
	a       *app
	names   []string
	connect string

	conn     *libvirt.Conn
	place    libvirt.Place
	machines []*machineAt
}

// machineAt is a machine that is being backed up.
type machineAt struct {
	*machine.Machine
	domain  libvirt.Domain
	nvram   hypervisor.NVRAM
	hasTPM  bool
	media   []hypervisor.Disk
	agent   hypervisor.Agent
	volumes []string
	rest    string        // how its content came to rest
	held    time.Duration // that its guest was frozen
	used    bool          // somebody was connected to one of its volumes
}

// planDomains reads the arguments of a run of machines.
func (a *app) planDomains(args, domains []string, connect string, file, full bool, agents []string) (*runWork, error) {
	switch {
	case len(args) > 0 || file:
		return nil, console.Usagef("--domain finds the volumes of machines by itself: no other arguments, --file or --files")
	case len(agents) > 0:
		return nil, console.Usagef("--guest-agent is for guests without libvirt, which keeps the agents of its domains to itself, and is asked by --domain")
	}
	for _, name := range domains {
		if name == "" {
			return nil, console.Usagef("--domain: an empty name")
		}
	}
	domains = slices.Clone(domains)
	slices.Sort(domains)
	return &runWork{a: a, full: full, agents: map[string]string{}, machines: &machineRun{a: a, names: slices.Compact(domains), connect: connect}}, nil
}

// libvirt connects.
func (a *app) libvirt(ctx context.Context, uri string) (*libvirt.Conn, libvirt.Place, error) {
	place, err := libvirt.Find(uri, a.getenv)
	if err != nil {
		return nil, place, err
	}
	conn, err := libvirt.Open(ctx, place)
	return conn, place, err
}

// completeDomains offers libvirt's domains.
func (a *app) completeDomains(c *cobra.Command, _ []string, _ string) (names []cobra.Completion, _ cobra.ShellCompDirective) {
	uri, _ := c.Flags().GetString("connect")
	ctx, cancel := context.WithTimeout(c.Context(), 2*time.Second)
	defer cancel()
	conn, _, err := a.libvirt(ctx, uri)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer conn.Close()
	all, _ := conn.Domains(ctx)
	for _, d := range all {
		names = append(names, d.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// all makes the backups: of volumes, then of the machines all of whose volumes have one.
func (k *machineRun) all(ctx context.Context, w *runWork) (err error) {
	api, err := k.a.hvd()
	if err != nil {
		return err
	}
	if k.conn, k.place, err = k.a.libvirt(ctx, k.connect); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.conn.Close()) }()
	if err := k.look(ctx, api); err != nil {
		return err
	}
	frozen, at, failed := k.freeze(ctx, api, w.r)
	if len(frozen) == 0 {
		return failed
	}
	for _, m := range k.machines {
		k.collect(ctx, m)
	}
	list, backedUp := []*doneRun{}, make(map[string]bool)
	add := func(done *doneRun, err error) {
		if failed = errors.Join(failed, err); err == nil {
			list = append(list, done)
		}
	}
	for _, v := range frozen {
		done, err := w.one(ctx, v.snapshot.Volume, at, func(m *repository.Manifest) error { return v.backUp(ctx, m, w.full) })
		backedUp[v.snapshot.Volume] = err == nil
		add(done, err)
	}
	for _, m := range k.machines {
		if i := slices.IndexFunc(m.volumes, func(v string) bool { return !backedUp[v] }); i >= 0 {
			failed = errors.Join(failed, fmt.Errorf("back up domain %s: its volume %s has no backup, so the machine gets none", m.Name, m.volumes[i]))
			continue
		}
		done, err := w.one(ctx, "domain "+m.Name, at, func(to *repository.Manifest) error { return w.storeMachine(ctx, to, m) })
		if err == nil && m.rest == "frozen" {
			if done.FrozenSeconds = m.held.Seconds(); k.a.output != "json" {
				k.a.say("the guest of domain %s was frozen for %v", m.Name, m.held.Round(time.Millisecond))
			}
		}
		add(done, err)
	}
	return errors.Join(k.a.show(list, func() {}), failed)
}

// look finds the domains and their volumes.
func (k *machineRun) look(ctx context.Context, api *client.Client) error {
	exports, err := lookAtExports(ctx, api)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, libvirtTime)
	defer cancel()
	for _, name := range k.names {
		m, err := k.describe(ctx, name, exports)
		if err != nil {
			return err
		}
		for _, left := range m.Left {
			k.a.note("hv-backup: domain %s: %s %s (%s) is not in the backup: %s", name, left.Device, left.Target, left.Source, left.Why)
		}
		if len(m.volumes) == 0 {
			return fmt.Errorf("domain %q has no disk that is an export of this hvd; `hv-storage-fabric volume list` shows what is attached: %w", name, block.ErrNotFound)
		}
		k.machines = append(k.machines, m)
	}
	return nil
}

// describe asks libvirt for a domain.
func (k *machineRun) describe(ctx context.Context, name string, exports *exports) (*machineAt, error) {
	d, err := k.conn.Find(ctx, name)
	if err != nil {
		return nil, err
	}
	state, err := k.conn.State(ctx, d)
	if err != nil {
		return nil, err
	}
	text, err := k.conn.StoredXML(ctx, d)
	if err != nil {
		return nil, err
	}
	stored, err := hypervisor.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("domain %q: %w", name, err)
	}
	now := stored
	if state == libvirt.Running {
		running, err := k.conn.RunningXML(ctx, d)
		if err == nil {
			now, err = hypervisor.Parse(running)
		}
		if err != nil {
			return nil, fmt.Errorf("domain %q: %w", name, err)
		}
	}
	m := &machineAt{
		Machine: &machine.Machine{Name: stored.Name, UUID: d.UUID, Type: stored.Type, State: string(state), MACs: stored.MACs, XML: text},
		domain:  d, nvram: now.NVRAM, hasTPM: now.TPM != "", agent: now.Agent,
	}
	disks := slices.Clone(now.Disks)
	for _, disk := range stored.Disks { // what is there after the next start
		if !slices.ContainsFunc(disks, func(other hypervisor.Disk) bool { return other.Target == disk.Target }) {
			disks = append(disks, disk)
		}
	}
	for _, disk := range disks {
		k.addDisk(m, disk, exports)
	}
	slices.Sort(m.volumes)
	m.volumes = slices.Compact(m.volumes)
	return m, nil
}

// addDisk says what becomes of a disk.
func (k *machineRun) addDisk(m *machineAt, disk hypervisor.Disk, exports *exports) {
	v := exports.find(&disk)
	if v == nil {
		switch removable := disk.Device == "cdrom" || disk.Device == "floppy"; {
		case removable && disk.Kind == "file" && disk.Path == "": // an empty drive
		case removable && disk.Kind == "file":
			m.media = append(m.media, disk)
		default:
			m.Left = append(m.Left, machine.Other{Target: disk.Target, Device: disk.Device, Source: disk.Where(), Why: "no export of this hvd that is attached now"})
		}
		return
	}
	one := machine.Disk{Target: disk.Target, Device: disk.Device, Volume: v.Name, VolumeUUID: v.Uuid, SizeBytes: v.SizeBytes, OwnSocket: v.Attachment.OwnSocket, ReadOnly: v.Attachment.ReadOnly}
	if one.OwnSocket {
		if info, err := os.Stat(v.Attachment.Socket); err == nil {
			one.Owner, one.Mode = ownerOf(info), fmt.Sprintf("%04o", info.Mode().Perm())
		}
	}
	m.Disks, m.volumes = append(m.Disks, one), append(m.volumes, v.Name)
	m.used = m.used || v.Attachment.Connections > 0
}

// freeze takes the snapshots of all volumes of all machines at one moment, with the guests at rest that can be. An error with snapshots is about a guest that may still be frozen.
func (k *machineRun) freeze(ctx context.Context, api *client.Client, r *repository.Repository) (all []*frozenVolume, at time.Time, err error) {
	var volumes []string
	var domains []libvirt.Domain
	var asked []*machineAt
	for _, m := range k.machines {
		volumes = append(volumes, m.volumes...)
		switch {
		case m.State != string(libvirt.Running):
		case m.agent == hypervisor.AgentNone:
			m.Reason = "its definition has no channel for qemu-guest-agent"
		case m.agent == hypervisor.AgentDisconnected:
			m.Reason = "its guest does not run qemu-guest-agent"
		default:
			domains, asked = append(domains, m.domain), append(asked, m)
		}
	}
	slices.Sort(volumes)
	volumes = slices.Compact(volumes)
	took := func(ctx context.Context) (err error) {
		all, at, err = k.a.freezeNow(ctx, api, r, volumes, "")
		return err
	}
	if len(domains) == 0 {
		err = took(ctx)
	} else {
		var rests []libvirt.Rest
		if rests, err = k.atRest(ctx, domains, took); rests == nil {
			return nil, at, err
		}
		late := err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded)
		for i, rest := range rests {
			if asked[i].rest = "frozen"; rest.Frozen == 0 || late {
				asked[i].rest = "crash"
			}
			asked[i].held = rest.For
			if rest.Err != nil {
				asked[i].Reason = strings.ReplaceAll(rest.Err.Error(), "\n", "; ")
			}
			if late {
				asked[i].Reason = "hvd took no snapshot as long as its guest was frozen"
			}
			if errors.Is(rest.Err, libvirt.ErrFrozen) {
				defer func() { err = errors.Join(err, rest.Err) }()
			}
		}
		if late {
			err = took(ctx)
		}
	}
	if err != nil {
		return nil, at, err
	}
	k.judge(ctx, all)
	return all, at, nil
}

// atRest takes the snapshots while guests are frozen. No kill of this process leaves them so.
func (k *machineRun) atRest(ctx context.Context, domains []libvirt.Domain, took func(context.Context) error) ([]libvirt.Rest, error) {
	guard, err := k.a.guardGuests(k.connect, domains)
	if err != nil {
		return nil, err
	}
	rests, err := k.conn.AtRest(ctx, domains, took)
	end := guard.end
	if slices.ContainsFunc(rests, func(r libvirt.Rest) bool { return errors.Is(r.Err, libvirt.ErrFrozen) }) {
		end = guard.leave // it tries on
	}
	if err := end(); err != nil {
		k.a.note("hv-backup: the guard of frozen guests: %v", err) // they go on all the same
	}
	return rests, err
}

// judge says how the content of volumes came to rest.
func (k *machineRun) judge(ctx context.Context, all []*frozenVolume) {
	ctx, cancel := context.WithTimeout(ctx, libvirtTime)
	defer cancel()
	for _, m := range k.machines {
		if m.rest == "" {
			m.rest = "crash"
			state, err := k.conn.State(ctx, m.domain)
			if m.State == string(libvirt.ShutOff) && !m.used && err == nil && state == libvirt.ShutOff {
				m.rest = "offline"
			}
			if errors.Is(err, block.ErrNotFound) {
				k.a.note("hv-backup: domain %s was undefined meanwhile; its backup has the definition that it had", m.Name)
			}
		}
		if m.rest == "crash" && m.Reason != "" {
			k.a.note("hv-backup: domain %s is backed up as after a power loss: %s", m.Name, m.Reason)
		}
	}
	for _, v := range all {
		for _, m := range k.machines {
			if !slices.Contains(m.volumes, v.snapshot.Volume) {
				continue
			}
			if v.rest == "" || v.rest == m.rest {
				v.rest = m.rest
			} else {
				v.rest = "crash" // of several machines
			}
		}
	}
}

// storeMachine backs up what a machine is beside its volumes.
func (w *runWork) storeMachine(ctx context.Context, to *repository.Manifest, m *machineAt) (err error) {
	to.Source.Kind, to.Source.Name, to.Consistency = machine.Kind, m.Name, m.rest
	f, err := os.CreateTemp("", "hv-backup-machine-") // for this user alone
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	if err := m.Write(f); err != nil {
		return err
	}
	src, err := backup.OpenFile(f.Name())
	if err != nil {
		return err
	}
	return errors.Join(backup.Run(ctx, w.r, src, to, func(backup.Progress) {}), src.Close())
}
