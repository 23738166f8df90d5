package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/backup/files"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/hypervisor/trial"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// restoreTest is the command test-restore.
type restoreTest struct {
	a       *app
	expect  string
	console string
	user    string
	accel   string
	uefi    bool
	timeout units.Span
	memory  units.Size
	scratch units.Size
	options trial.Options // what needs no translation

	busGiven bool
}

// tested is what came of a restore test, with -o json.
type tested struct {
	Backups  []string `json:"backups"`           // the first is booted
	Machine  string   `json:"machine,omitempty"` // the backup of the machine whose disks they are
	Passed   bool     `json:"passed"`
	Error    string   `json:"error,omitempty"`
	Console  string   `json:"console,omitempty"` // the line that was waited for
	Agent    string   `json:"agent,omitempty"`   // the version of the agent that answered
	Seconds  float64  `json:"seconds"`           // until the answer, or the end
	Accel    string   `json:"accelerator,omitempty"`
	Restarts int      `json:"restarts,omitempty"` // of the machine
	Tail     []string `json:"tail"`               // what the console said last
	Damage   []string `json:"damage,omitempty"`   // what could not be read of the backups
}

func newTestRestore(a *app) *cobra.Command {
	t := &restoreTest{a: a, timeout: units.Span(trial.DefaultTimeout / time.Second), memory: trial.DefaultMemory, scratch: trial.DefaultScratch}
	c := &cobra.Command{
		Use:   "test-restore BACKUP|VOLUME... [-- QEMU ARGUMENTS...]",
		Short: "Boot a backup in isolation and see whether the guest answers",
		Long: `Boot a backup in a machine of QEMU, straight from the repository, and wait until the guest answers: by a login prompt on its serial console, by a line there that matches --expect, or, with --agent, by its qemu-guest-agent; without either flag, prompt or agent
suffices. BACKUP is a name, as many letters of it as tell it from others, latest, latest:SOURCE, or a volume, which means its youngest backup. Several are the disks of one machine, the first is booted from.
The backup of a machine (run --domain; latest:domain:NAME) is booted from its disks, by UEFI and on the bus that its definition has; variables of its firmware, its TPM, drives and what else it has are not there, and its memory is --memory.

The backup is not changed and nothing is restored: what the guest writes goes into a scratch file without a name in $TMPDIR, else /var/tmp, which goes with QEMU. The machine has no network, QEMU's sandbox is on, and as root QEMU runs as the user nobody. KVM is used where that
user may and a trial shows that it works, else TCG, which is ten times slower and more. Arguments after -- go to QEMU, so they may also break the isolation; files that they name must be readable for that user. QEMU is ended in any case, also by an interrupt.

Exit code 0 means that the guest answered, 7 that it did not, 5 that it was given I/O errors because the backup is damaged.`,
		Example: `  hv-backup test-restore web1 --repo /mnt/backup/vms
  hv-backup test-restore latest:db1 latest:db1-data --agent --timeout 10m --memory 2GiB -o json --repo s3://bucket/vms
  hv-backup test-restore web1 --expect 'nginx.*started' --uefi
  hv-backup test-restore latest:domain:win1 --agent --memory 4GiB --timeout 15m
  hv-backup test-restore web1 -- -kernel vmlinuz -initrd initrd.img -append 'root=/dev/vda1 console=ttyS0'`,
		Args: func(c *cobra.Command, args []string) error {
			if n := c.ArgsLenAtDash(); n >= 0 {
				args = args[:n]
			}
			return console.Between(1, trial.MaxDisks, "BACKUP")(c, args)
		},
		ValidArgsFunction: func(c *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
			volumes, _ := a.completeVolumes(0, trial.MaxDisks)(c, args, text)
			backups, how := a.completeBackups(0, trial.MaxDisks)(c, args, text)
			return append(volumes, backups...), how
		},
		RunE: func(c *cobra.Command, args []string) error {
			if n := c.ArgsLenAtDash(); n >= 0 {
				args, t.options.Args = args[:n], args[n:]
			}
			t.busGiven = c.Flags().Changed("bus")
			return t.run(c.Context(), args)
		},
	}
	f := c.Flags()
	f.StringVar(&t.expect, "expect", "", "regular `EXPRESSION` that a line of the serial console has to match (default: a login prompt, or systemd's multi-user target)")
	f.BoolVar(&t.options.Agent, "agent", false, "the qemu-guest-agent has to answer; with --expect both are waited for")
	f.Var(&t.timeout, "timeout", "how long to wait for the answer")
	f.Var(&t.memory, "memory", "memory of the machine")
	f.IntVar(&t.options.CPUs, "cpus", 1, "processors of the machine")
	f.StringVar(&t.accel, "accel", "auto", "auto, kvm or tcg")
	f.StringVar(&t.options.Bus, "bus", "virtio", "how the machine has its disks: virtio, sata or scsi")
	f.BoolVar(&t.uefi, "uefi", false, "boot by UEFI, with the firmware that is installed here (OVMF)")
	f.StringVar(&t.options.Firmware, "firmware", "", "`FILE` with the machine's firmware, instead")
	f.Var(&t.scratch, "scratch", "what the guest may write to each disk, at most")
	f.StringVar(&t.console, "console", "", "`FILE` that gets what the serial console says, - for standard error")
	f.StringVar(&t.user, "run-as", "", "`USER` that QEMU runs as; for root only (default nobody)")
	for flag, values := range map[string][]string{"accel": {"auto", "kvm", "tcg"}, "bus": {"virtio", "sata", "scsi"}} {
		_ = c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	return c
}

// translate makes options of what the user said.
func (t *restoreTest) translate() (err error) {
	o := &t.options
	o.Timeout, o.MemoryBytes, o.ScratchBytes, o.User = time.Duration(t.timeout)*time.Second, uint64(t.memory), uint64(t.scratch), trial.Unprivileged()
	if t.expect != "" {
		if o.Expect, err = regexp.Compile(t.expect); err != nil {
			return console.Usagef("--expect: %v", err)
		}
	}
	switch {
	case t.uefi && o.Firmware != "":
		return console.Usagef("--uefi, or --firmware, not both")
	case t.uefi:
		if o.Firmware, err = trial.FindUEFI(); err != nil {
			return err
		}
	case o.Firmware != "":
		if _, err := os.Stat(o.Firmware); err != nil {
			return fmt.Errorf("--firmware: %w", err)
		}
	}
	if t.user != "" {
		if os.Geteuid() != 0 {
			return console.Usagef("--run-as: only root can be somebody else")
		}
		if o.User, err = trial.As(t.user); err != nil {
			return fmt.Errorf("--run-as: %w", err)
		}
	}
	if o.Program, err = trial.FindProgram(); err != nil {
		return err
	}
	if t.accel != "auto" {
		o.Accel = trial.Accel(t.accel)
	}
	return o.Check()
}

func (t *restoreTest) run(ctx context.Context, names []string) (err error) {
	if err := t.translate(); err != nil {
		return err
	}
	r, err := t.a.openIndexed(ctx)
	if err != nil {
		return err
	}
	all, err := r.Manifests(ctx, t.a.warn)
	if err != nil {
		return err
	}
	var chosen []*repository.Manifest
	out := &tested{Tail: []string{}}
	for _, name := range names {
		m, err := chooseOrLatest(all, name)
		if err != nil {
			return err
		}
		switch {
		case m.Source.Kind == files.Kind:
			return console.Usagef("%s is of files, which cannot be booted", m.Name)
		case !isMachine(m):
			chosen = append(chosen, m)
		case len(names) > 1:
			return console.Usagef("%s is of a machine, which is booted by itself", m.Name)
		default:
			out.Machine = m.Name
			if chosen, err = t.likeMachine(ctx, r, m, all); err != nil {
				return fmt.Errorf("boot %s: %w", m.Name, err)
			}
		}
	}
	for _, m := range chosen {
		out.Backups = append(out.Backups, m.Name)
	}
	if t.console != "" {
		to := t.a.err
		if t.console != "-" {
			f, err := os.OpenFile(t.console, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
			if err != nil {
				return fmt.Errorf("--console: %w", err)
			}
			defer f.Close()
			to = f
		}
		t.options.Console = &plainWriter{to: to}
	}
	if t.accel == "auto" {
		if t.options.Accel, err = trial.BestAccel(ctx, t.options.Program, t.options.User); err != nil {
			return err
		}
	}
	t.a.note("hv-backup: booting %s; nothing of it is changed", strings.Join(out.Backups, " and "))
	failed := t.boot(ctx, r, chosen, out)
	if ctx.Err() != nil || failed != nil && out.Error == "" {
		return failed
	}
	if t.a.output != "json" && out.Error != "" {
		for _, line := range out.Tail {
			t.a.note("console: %s", line)
		}
	}
	return errors.Join(t.a.show(out, func() { t.tell(out) }), failed)
}

// tell says what came of a test that passed.
func (t *restoreTest) tell(out *tested) {
	if !out.Passed {
		return
	}
	var how []string
	if out.Console != "" {
		how = append(how, fmt.Sprintf("its console says %q", out.Console))
	}
	if out.Agent != "" {
		how = append(how, "its guest agent (version "+out.Agent+") answers")
	}
	t.a.say("%s boots: after %.1f s %s (%s)", strings.Join(out.Backups, " and "), out.Seconds, strings.Join(how, " and "), out.Accel)
}

// boot serves the backups to a machine and waits for the guest. out.Error is set if there was a test and it failed.
func (t *restoreTest) boot(ctx context.Context, r *repository.Repository, chosen []*repository.Manifest, out *tested) (err error) {
	var disks []*disk
	defer func() {
		for _, d := range disks {
			err = errors.Join(err, d.close())
		}
	}()
	for _, m := range chosen {
		d, client, err := t.a.handOver(r, m, max(int(defaultCache)/len(chosen), int(minCache)))
		if err != nil {
			for _, f := range t.options.Disks {
				err = errors.Join(err, f.Close())
			}
			return fmt.Errorf("serve %s: %w", m.Name, err)
		}
		disks, t.options.Disks = append(disks, d), append(t.options.Disks, client)
	}
	result, err := trial.Run(ctx, t.options)
	out.Console, out.Agent, out.Seconds, out.Accel, out.Restarts = result.Console, result.Agent, result.Took.Seconds(), string(result.Accel), max(result.Boots-1, 0)
	out.Tail = append(out.Tail, result.Tail...)
	for _, d := range disks {
		out.Damage = append(out.Damage, d.damage()...)
	}
	var failure *trial.Failure
	switch {
	case len(out.Damage) > 0 && (err == nil || errors.As(err, &failure)):
		out.Error = fmt.Sprintf("test of %s: the guest met damage of the backup: %s", strings.Join(out.Backups, " and "), out.Damage[0])
		return &stepError{exitDamaged, out.Error}
	case errors.As(err, &failure):
		out.Error = fmt.Sprintf("%s does not come up: %s", strings.Join(out.Backups, " and "), failure)
		return &stepError{exitNoAnswer, out.Error}
	case err != nil:
		return fmt.Errorf("boot %s: %w", strings.Join(out.Backups, " and "), err)
	}
	out.Passed = true
	return nil
}

// chooseOrLatest is choose, and takes the name of a source, of a volume rather than of a machine, for its youngest backup.
func chooseOrLatest(all []*repository.Manifest, name string) (*repository.Manifest, error) {
	m, err := choose(all, name)
	if errors.Is(err, block.ErrNotFound) {
		for _, of := range []string{"latest:", "latest:domain:"} {
			if latest, none := choose(all, of+name); none == nil {
				return latest, nil
			}
		}
	}
	return m, err
}

// plainWriter writes what a guest says without what could steer a terminal, and not without end.
type plainWriter struct {
	to   io.Writer
	done int // bytes
}

const maxTold = 64 << 20 // bytes

// Write implements io.Writer, for whole lines.
func (w *plainWriter) Write(p []byte) (int, error) {
	if w.done += len(p); w.done > maxTold {
		return 0, io.ErrShortWrite
	}
	_, err := fmt.Fprintln(w.to, console.Plain(strings.TrimSuffix(string(p), "\n")))
	return len(p), err
}
