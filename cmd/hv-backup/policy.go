package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/backup/policy"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/mutualtls"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// policies is the command policy.
type policies struct {
	a      *app
	folder string
}

func newPolicy(a *app) *cobra.Command {
	p := &policies{a: a}
	c := console.Group(&cobra.Command{
		Use:   "policy",
		Short: "Back up by itself: what, how often, and what to keep",
		Long: `Back up by itself. A policy says which volumes, or whole machines, to back up where, how often, and what to keep; a timer calls "hv-backup policy run --due" every few minutes, which does what is due (docs/hv-backup.md has
one for systemd). Policies are files in --policies, by default $HV_BACKUP_POLICIES, /var/lib/hv-backup/policies for root, ~/.local/state/hv-backup/policies for others.`,
	})
	c.PersistentFlags().StringVar(&p.folder, "policies", "", "folder with the policies (default $HV_BACKUP_POLICIES, else a place for root or for you)")
	c.AddCommand(newPolicySet(p), newPolicyList(p), newPolicyShow(p), newPolicyDelete(p), newPolicyRun(p))
	return c
}

// in is the folder.
func (p *policies) in() (policy.Folder, error) {
	dir := p.folder
	if dir == "" {
		dir = p.a.getenv("HV_BACKUP_POLICIES")
	}
	if dir == "" && os.Geteuid() == 0 {
		dir = "/var/lib/hv-backup/policies"
	}
	if dir == "" {
		state := p.a.getenv("XDG_STATE_HOME")
		if state == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return "", err
			}
			state = filepath.Join(home, ".local", "state")
		}
		dir = filepath.Join(state, "hv-backup", "policies")
	}
	dir, err := filepath.Abs(dir)
	return policy.Folder(dir), err
}

func newPolicySet(p *policies) *cobra.Command {
	var want policy.Policy
	var every, prune, verify, testTimeout, lock, copyLock units.Span
	var test oftenFlag
	var testMemory units.Size
	var withFiles []string
	c := &cobra.Command{
		Use:   "set NAME VOLUME...|@GROUP --every TIME | set NAME --domain DOMAIN[,DOMAIN...] --every TIME",
		Short: "Make a policy, or replace it",
		Long: `Make a policy, or replace it; what came of it until now stays known. Volumes, or a group, are backed up together every so often, at --at if it is whole days, to --repo with the keys of --password-file or
--identity: files, as nobody is there to ask. After a backup those of the policy that no --keep flag keeps are forgotten; without one all stay. --prune-every and --verify-every look after the repository, --copy-to copies the
policy's backups into another one. --test-restore boots the backups just made, each volume by itself or the disks of a --test-guest together, as "test-restore" does, and wants an answer.

With --domain it is whole machines of libvirt, as "run --domain" backs them up, together and at the same moment: their volumes, whichever these are by then, and the rest of them. A restore test boots each machine, with its firmware, or only those of --test-guest.
With --lock nobody can delete the backups for so long, not with all keys of the object storage: see run. What is locked is forgotten by the first run after its lock has ended.

When a backup fails it is tried again after 5 minutes, 10, and so on, at least every hour. --webhook-file and --mail-to tell of the first failure, of a backup that is missing (half a period late), of damage, and when all is well again.`,
		Example: `  hv-backup policy set nightly web1 db1 --every 1d --at 02:00 --keep-daily 7 --keep-weekly 5 --keep-monthly 12 --prune-every 1d --verify-every 1w --verify-data 5 --repo /mnt/backup/vms --password-file /etc/hv-backup/password
  hv-backup policy set web web1 web1-data --every 1d --test-restore weekly --test-guest web1,web1-data --test-expect 'nginx.*started' --repo /mnt/backup/vms --password-file /etc/hv-backup/password
  hv-backup policy set machines --domain web1,db1 --every 1d --at 03:00 --keep-daily 14 --test-restore weekly --repo /mnt/backup/vms --password-file /etc/hv-backup/password
  hv-backup policy set vault db1 --every 1d --lock 30d --keep-daily 30 --prune-every 1d --repo s3://backups/vault --password-file /etc/hv-backup/password
  hv-backup policy set shop @shop --every 1h --keep-hourly 24 --keep-daily 14 --repo s3://backups/shop --identity /etc/hv-backup/key --mail-to ops@example.org`,
		Args:              console.Between(2, 1000, "NAME and VOLUME or @GROUP"),
		ValidArgsFunction: p.a.completeVolumes(1, 1000),
		RunE: func(c *cobra.Command, args []string) error {
			want.Name, want.Every, want.PruneEvery, want.VerifyEvery = args[0], policy.Seconds(every), policy.Seconds(prune), policy.Seconds(verify)
			want.TestEvery, want.TestTimeout, want.TestMemory = policy.Seconds(test.Span), policy.Seconds(testTimeout), uint64(testMemory)
			want.Lock, want.CopyLock = policy.Seconds(lock), policy.Seconds(copyLock)
			for _, target := range args[1:] {
				if group, ok := strings.CutPrefix(target, "@"); ok {
					if len(args) > 2 {
						return console.Usagef("one group, or volumes, not both")
					}
					want.Group = group
				} else {
					want.Volumes = append(want.Volumes, target)
				}
			}
			for _, one := range withFiles {
				name, path, ok := strings.Cut(one, "=")
				path, err := filepath.Abs(path)
				if !ok || err != nil {
					return console.Usagef("--files %q: want NAME=PATH", one)
				}
				if want.Files == nil {
					want.Files = make(map[string][]string)
				}
				want.Files[name] = append(want.Files[name], path)
			}
			return p.set(c.Context(), &want)
		},
	}
	f := c.Flags()
	f.Var(&every, "every", "how often to back up, such as 1h, 1d or 1w")
	f.StringVar(&want.At, "at", "", "at which time of day, as in `02:00`")
	f.IntVar(&want.Keep.Last, "keep-last", 0, "keep the youngest `N`")
	for name, to := range map[string]*int{"hourly": &want.Keep.Hourly, "daily": &want.Keep.Daily, "weekly": &want.Keep.Weekly, "monthly": &want.Keep.Monthly, "yearly": &want.Keep.Yearly} {
		f.IntVar(to, "keep-"+name, 0, "keep the youngest of each of `N` "+map[string]string{"hourly": "hours", "daily": "days", "weekly": "weeks", "monthly": "months", "yearly": "years"}[name])
	}
	f.StringArrayVar(&want.GuestAgents, "guest-agent", nil, "`VOLUME=SOCKET` of the guest's agent, as for run; may be repeated")
	f.StringArrayVar(&withFiles, "files", nil, "besides, files or a folder: `NAME=PATH`, as in host1.conf=/etc/hyper-nixos; may be repeated, also with one name")
	f.Var(&lock, "lock", "how long nobody can delete the backups, such as 30d, as for run (default not locked)")
	f.Var(&prune, "prune-every", "how often to prune the repository")
	f.Var(&verify, "verify-every", "how often to verify the repository")
	f.IntVar(&want.VerifyPercent, "verify-data", 0, "how many `PERCENT` of the packs to read when it is verified")
	f.Var(&test, "test-restore", "how often to boot the backups and see whether the guests answer: weekly, daily, monthly, or a time")
	f.StringArrayVar(&want.TestGuests, "test-guest", nil, "`VOLUME,VOLUME` that are the disks of one guest, the first is booted from, or one of --domain; may be repeated (default each volume, or machine, by itself)")
	f.StringVar(&want.TestExpect, "test-expect", "", "regular `EXPRESSION` that a line of the guest's serial console has to match, as for test-restore")
	f.BoolVar(&want.TestAgent, "test-agent", false, "the guest's qemu-guest-agent has to answer")
	f.Var(&testTimeout, "test-timeout", "how long to wait for the answer (default 5m)")
	f.Var(&testMemory, "test-memory", "memory of the guest (default 512MiB)")
	f.BoolVar(&want.TestUEFI, "test-uefi", false, "boot by UEFI")
	f.StringArrayVar(&want.TestQEMU, "test-qemu", nil, "further `ARGUMENT` for QEMU; may be repeated")
	f.StringVar(&want.CopyTo, "copy-to", "", "another repository that gets copies")
	f.StringVar(&want.CopyPasswordFile, "copy-password-file", "", "file with the passphrase of --copy-to in its first line (default --password-file)")
	f.Var(&copyLock, "copy-lock", "as --lock, for the copies in --copy-to")
	f.StringVar(&want.WebhookFile, "webhook-file", "", "file with a URL in its first line, to which failures are told")
	f.StringVar(&want.MailTo, "mail-to", "", "address to which sendmail sends failures")
	_ = c.MarkFlagRequired("every")
	p.domainFlags(c, &want)
	return c
}

// set adds what the shared flags say, made independent of where this command runs.
func (p *policies) set(ctx context.Context, want *policy.Policy) (err error) {
	a := p.a
	if want.Repository, err = a.location(); err != nil {
		return err
	}
	want.PasswordFile, want.Identities, want.Endpoint = a.passwordFile, a.identities, a.endpoint
	if want.PasswordFile == "" {
		want.PasswordFile = a.getenv("HV_BACKUP_PASSWORD_FILE")
	}
	if want.PasswordFile == "" && len(want.Identities) == 0 {
		return console.Usagef("nobody is there to ask for a passphrase: give --password-file or --identity")
	}
	if a.tls != (mutualtls.Files{}) {
		return console.Usagef("a policy keeps no files of TLS: set HV_BACKUP_TLS_CERT, HV_BACKUP_TLS_KEY and HV_BACKUP_TLS_CA, and HV_TO_TLS_… for --copy-to, where `hv-backup policy run` runs")
	}
	type given struct {
		flag string
		file *string
	}
	all := []given{{"--password-file", &want.PasswordFile}, {"--copy-password-file", &want.CopyPasswordFile}, {"--webhook-file", &want.WebhookFile}}
	for i := range want.Identities {
		all = append(all, given{"--identity", &want.Identities[i]})
	}
	for _, place := range []given{{"--repo", &want.Repository}, {"--copy-to", &want.CopyTo}} {
		if !strings.Contains(*place.file, "://") {
			all = append(all, place)
		}
	}
	for _, one := range all {
		if *one.file == "" {
			continue
		}
		if *one.file, err = filepath.Abs(*one.file); err == nil {
			_, err = os.Stat(*one.file)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", one.flag, err)
		}
	}
	if err := p.settleDomains(want); err != nil {
		return err
	}
	folder, err := p.in()
	if err != nil {
		return err
	}
	_, state, err := folder.Load(want.Name)
	isNew := errors.Is(err, block.ErrNotFound)
	if errors.Is(err, block.ErrInvalid) { // the name
		return err
	}
	if err != nil && !isNew {
		return policyError(fmt.Errorf("what there is of policy %s cannot be read; `hv-backup policy delete %s` removes it: %w", want.Name, want.Name, err))
	}
	if err := folder.Save(want); err != nil {
		return err
	}
	if isNew {
		state.Created = time.Now().UTC()
		if err := folder.SaveState(want.Name, state); err != nil {
			return err
		}
	}
	if there := a.volumesOf(ctx); len(there) > 0 {
		for _, volume := range want.Volumes {
			if !slices.Contains(there, volume) {
				a.note("hv-backup: hvd has no volume %s at present; until it has, the policy's backups fail", volume)
			}
		}
	}
	return a.show(p.view(want, state), func() {
		a.say("policy %s backs up %s to %s every %v and keeps %v; next %s", want.Name, targets(want), want.Repository, units.Span(want.Every), want.Keep, want.Next(state, time.Local).Local().Format(time.DateTime))
	})
}

// policyView is a policy with -o json.
type policyView struct {
	*policy.Policy
	State   policy.State `json:"state"`
	Next    time.Time    `json:"next"`
	Missing bool         `json:"missing"` // the last backup is half a period older than it should be

	Unreadable string `json:"unreadable,omitempty"` // why, of a policy of which nothing but the name is known
}

// trouble is what is wrong with a policy; "" if nothing is.
func (v *policyView) trouble() string {
	switch {
	case v.State.Error != "":
		return v.State.Error
	case v.State.Damage != "":
		return v.State.Damage
	case v.Missing:
		return "missing: does a timer call `hv-backup policy run --due`?"
	}
	return ""
}

// policyError is an error about the files of policies: damage of these is none of a repository, whose verification would be of no help.
func policyError(err error) error {
	if errors.Is(err, block.ErrCorrupt) {
		return &stepError{exitDamaged, err.Error()}
	}
	return err
}

func (p *policies) view(is *policy.Policy, s policy.State) policyView {
	return policyView{Policy: is, State: s, Next: is.Next(s, time.Local), Missing: is.Missing(s, time.Now())}
}

func newPolicyList(p *policies) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List policies and what came of them",
		Example: "  hv-backup policy list\n  hv-backup policy list -o json | jq -r '.[] | select(.missing) | .name'",
		Long:    "List policies and what came of them. Exit code 5 means that a backup failed, is missing, did not come up in a restore test, or that damage was found.",
		Args:    console.Exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			folder, err := p.in()
			if err != nil {
				return err
			}
			names, err := folder.Names()
			if err != nil {
				return err
			}
			views, rows, bad := []policyView{}, [][]string{}, 0
			for _, name := range names {
				is, s, err := folder.Load(name)
				if err != nil {
					bad++
					views = append(views, policyView{Policy: &policy.Policy{Name: name}, Unreadable: err.Error()})
					rows = append(rows, []string{name, "", "", "", "", "", "", err.Error()})
					continue
				}
				v := p.view(is, s)
				views = append(views, v)
				last := "never"
				if !s.LastDone.IsZero() {
					last = s.LastDone.Local().Format(time.DateTime)
				}
				trouble := v.trouble()
				if trouble != "" {
					bad++
				}
				rows = append(rows, []string{name, targets(is), units.Span(is.Every).String(), keeps(is), last, v.Next.Local().Format(time.DateTime), lastTest(is, s), trouble})
			}
			err = p.a.show(views, func() {
				console.Table(p.a.out, p.a.getenv, []string{"POLICY", "TARGETS", "EVERY", "KEEP", "LAST", "NEXT", "RESTORE TEST", "TROUBLE"}, rows, "KEEP", "RESTORE TEST", "LAST")
			})
			if err == nil && bad > 0 {
				err = &stepError{exitDamaged, fmt.Sprintf("policies in trouble: %d of %d", bad, len(names))}
			}
			return err
		},
	}
}

// keeps is what a policy keeps, and how long it locks.
func keeps(is *policy.Policy) string {
	keep := is.Keep.String()
	if is.Lock > 0 {
		keep = strings.TrimPrefix(keep+", locked "+units.Span(is.Lock).String(), ", ")
	}
	return keep
}

func newPolicyDelete(p *policies) *cobra.Command {
	return &cobra.Command{
		Use:               "delete NAME",
		Short:             "Delete a policy; its backups stay",
		Example:           "  hv-backup policy delete nightly",
		Args:              console.Exactly("NAME"),
		ValidArgsFunction: p.completeOne,
		RunE: func(c *cobra.Command, args []string) error {
			folder, err := p.in()
			if err != nil {
				return err
			}
			if err := folder.Delete(args[0]); err != nil {
				return err
			}
			return p.a.show(map[string]any{"policy": args[0], "deleted": true}, func() { p.a.say("deleted policy %s; its backups stay", args[0]) })
		},
	}
}
