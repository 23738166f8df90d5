package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/backup/policy"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/retention"
)

func newPolicyRun(p *policies) *cobra.Command {
	var due bool
	c := &cobra.Command{
		Use:   "run NAME... | run --due",
		Short: "Do what policies say: those named, or those that are due",
		Long: `Do what policies say: those named, or with --due all that are due, one after the other. One that runs already is left out. The exit code is that of the first that failed; the others run all the same.
Let a timer call it with --due every few minutes.`,
		Example: `  hv-backup policy run nightly
  hv-backup policy run --due`,
		Args:              console.Between(0, 1000, "NAME"),
		ValidArgsFunction: p.complete,
		RunE: func(c *cobra.Command, args []string) error {
			if due == (len(args) > 0) {
				return console.Usagef("run which? give names, or --due")
			}
			return p.run(c.Context(), args)
		},
	}
	c.Flags().BoolVar(&due, "due", false, "all that are due")
	return c
}

// ranPolicy is a policy that ran, with -o json.
type ranPolicy struct {
	Policy string       `json:"policy"`
	State  policy.State `json:"state"`
}

// stepError is a failure that is said in full and has an exit code already, such as that of a step of a policy.
type stepError struct {
	code int
	text string
}

func (e *stepError) Error() string { return e.text }

func (p *policies) run(ctx context.Context, named []string) error {
	folder, err := p.in()
	if err != nil {
		return err
	}
	names := named
	if len(named) == 0 {
		if names, err = folder.Names(); err != nil {
			return err
		}
	}
	var failed error
	all := []ranPolicy{}
	for _, name := range names {
		s, ran, err := p.runOne(ctx, folder, name, len(named) > 0)
		if errors.Is(err, block.ErrInUse) && len(named) == 0 {
			continue
		}
		if err != nil {
			if !errors.Is(err, block.ErrNotFound) && !errors.Is(err, block.ErrInUse) { // those name it
				err = fmt.Errorf("policy %s: %w", name, err)
			}
			if failed == nil {
				failed = err
			} else {
				p.a.note("hv-backup: %v", err)
			}
		}
		if ran {
			all = append(all, ranPolicy{name, s})
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(p.a.show(all, func() {}), failed)
}

// runOne runs a policy that was named, or is due.
func (p *policies) runOne(ctx context.Context, folder policy.Folder, name string, anyway bool) (s policy.State, ran bool, err error) {
	if _, _, err := folder.Load(name); err != nil {
		return s, false, policyError(err)
	}
	unlock, err := folder.Lock(name)
	if err != nil {
		return s, false, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	is, s, err := folder.Load(name) // as whoever ran it before has left it
	if err != nil {
		return s, false, err
	}
	n := &notices{a: p.a, policy: is}
	if ran = anyway || is.Due(s, time.Now(), time.Local); ran {
		s.LastStart = time.Now().UTC()
		if err := folder.SaveState(name, s); err != nil {
			return s, false, err
		}
		err = p.do(ctx, is, &s, n)
	}
	if s.ToldMissed.IsZero() && is.Missing(s, time.Now()) && ctx.Err() == nil {
		s.ToldMissed = time.Now().UTC()
		n.tell(ctx, eventMissing, "the last backup is half a period older than it should be; "+s.Error)
		ran = true
	}
	if ran {
		err = errors.Join(err, folder.SaveState(name, s))
	}
	return s, ran, err
}

// do backs up, and then looks after the repository.
func (p *policies) do(ctx context.Context, is *policy.Policy, s *policy.State, n *notices) error {
	disks, err := p.backUp(ctx, is, s)
	if ctx.Err() != nil {
		s.Error = "interrupted"
		return err
	}
	if err != nil {
		s.Error = err.Error()
		if s.Failures++; s.Failures == 1 {
			n.tell(ctx, eventFailed, s.Error)
		}
		return err
	}
	well := s.Failures > 0 || !s.ToldMissed.IsZero()
	s.LastDone, s.Error, s.Failures, s.ToldMissed = s.LastStart, "", 0, time.Time{}
	before := s.Damage
	err = p.upkeep(ctx, is, s, disks)
	if ctx.Err() != nil {
		return err
	}
	var damage []string // with what failed earlier and has not been done again since
	if err != nil {
		damage = append(damage, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	for _, bad := range []string{s.BadVerify, s.BadTests()} {
		if bad != "" && (err == nil || !strings.Contains(damage[0], bad)) {
			damage = append(damage, bad)
		}
	}
	s.Damage = strings.Join(damage, "; ")
	switch {
	case before == "" && s.Damage != "":
		n.tell(ctx, eventUpkeep, s.Damage)
	case s.Damage == "" && (well || before != ""):
		n.tell(ctx, eventWell, "")
	}
	return err
}

// backUp backs up, and returns the backups of disks.
func (p *policies) backUp(ctx context.Context, is *policy.Policy, s *policy.State) (disks []doneRun, err error) {
	args := runArgs(is)
	for _, agent := range is.GuestAgents {
		args = append(args, "--guest-agent", agent)
	}
	disks, err = p.backUpOne(ctx, is, args)
	all := slices.Clone(disks)
	for _, name := range slices.Sorted(maps.Keys(is.Files)) {
		files, filesErr := p.backUpOne(ctx, is, append([]string{"run", "--files", name}, is.Files[name]...))
		all, err = append(all, files...), errors.Join(err, filesErr)
	}
	if err != nil {
		return nil, err
	}
	s.Backups = nil
	for _, one := range all {
		s.Backups = append(s.Backups, one.Backup)
		if p.a.output != "json" {
			p.a.say("policy %s: backed up %s %s as %s", is.Name, one.Kind, one.Source, one.Backup)
		}
	}
	return disks, nil
}

// backUpOne is one run, of one or several backups.
func (p *policies) backUpOne(ctx context.Context, is *policy.Policy, args []string) (all []doneRun, err error) {
	if is.Lock > 0 {
		args = append(args, "--lock", is.Lock.Duration().String())
	}
	text, err := p.step(ctx, is, append(args, "--tag", is.Tag(), "-o", "json")...)
	if err != nil {
		return nil, err
	}
	if text = bytes.TrimSpace(text); len(text) > 0 && text[0] == '{' {
		text = slices.Concat([]byte("["), text, []byte("]"))
	}
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, fmt.Errorf("what the backup says: %w", err)
	}
	return all, nil
}

// upkeep copies, forgets, prunes, verifies and tests. A step that fails does not keep the others from being done, but a copy.
func (p *policies) upkeep(ctx context.Context, is *policy.Policy, s *policy.State, disks []doneRun) error {
	var failed error
	do := func(args ...string) bool {
		if ctx.Err() != nil {
			return false
		}
		text, err := p.step(ctx, is, args...)
		if failed = errors.Join(failed, err); p.a.output != "json" {
			_, err = p.a.out.Write(text)
			failed = errors.Join(failed, err)
		}
		return err == nil
	}
	if is.CopyTo != "" { // before anything is forgotten
		args := []string{"copy", "--to", is.CopyTo, "--tag", is.Tag()}
		if is.CopyPasswordFile != "" {
			args = append(args, "--to-password-file", is.CopyPasswordFile)
		}
		if is.CopyLock > 0 {
			args = append(args, "--lock", is.CopyLock.Duration().String())
		}
		if !do(args...) {
			return failed // what is not copied yet must not be forgotten
		}
	}
	if is.Keep != (retention.Rules{}) {
		args := []string{"forget", "--tag", is.Tag()}
		for name, n := range map[string]int{"last": is.Keep.Last, "hourly": is.Keep.Hourly, "daily": is.Keep.Daily, "weekly": is.Keep.Weekly, "monthly": is.Keep.Monthly, "yearly": is.Keep.Yearly} {
			if n > 0 {
				args = append(args, "--keep-"+name, strconv.Itoa(n))
			}
		}
		do(args...)
	}
	if now := time.Now().UTC(); is.NeedsPrune(*s, now) && do("prune") {
		s.LastPrune = now
	}
	if now := time.Now().UTC(); is.NeedsVerify(*s, now) {
		args := []string{"repo", "verify"}
		if is.VerifyPercent > 0 {
			args = append(args, fmt.Sprintf("--read-data=%d%%", is.VerifyPercent))
		}
		before := failed
		failed = nil
		do(args...)
		if ctx.Err() == nil {
			s.LastVerify, s.BadVerify = now, ""
			if failed != nil {
				s.BadVerify = strings.ReplaceAll(failed.Error(), "\n", "; ")
			}
		}
		failed = errors.Join(before, failed)
	}
	if now := time.Now().UTC(); is.NeedsTest(*s, now) && ctx.Err() == nil {
		tests, err := p.test(ctx, is, disks)
		if failed = errors.Join(failed, err); ctx.Err() == nil {
			s.LastTest, s.Tests = now, tests
		}
	}
	return failed
}

// step runs one command of this program for a policy and returns what it prints.
func (p *policies) step(ctx context.Context, is *policy.Policy, args ...string) ([]byte, error) {
	return p.stepWith(ctx, is, args, nil)
}

// stepWith is step, with arguments behind a --.
func (p *policies) stepWith(ctx context.Context, is *policy.Policy, args, behind []string) ([]byte, error) {
	var out, said bytes.Buffer
	sub := newApp(strings.NewReader(""), &out, &said, p.a.getenv)
	args = append(args, "--repo", is.Repository)
	if is.PasswordFile != "" {
		args = append(args, "--password-file", is.PasswordFile)
	}
	for _, identity := range is.Identities {
		args = append(args, "--identity", identity)
	}
	if is.Endpoint != "" {
		args = append(args, "--endpoint", is.Endpoint)
	}
	if len(behind) > 0 {
		args = append(append(args, "--"), behind...)
	}
	code := run(ctx, sub, args)
	lines := strings.Split(strings.TrimSpace(said.String()), "\n")
	failure := ""
	if code != exitDone { // the last line is why
		failure, lines = strings.TrimPrefix(lines[len(lines)-1], "hv-backup: "), lines[:len(lines)-1]
	}
	for _, line := range lines {
		if line != "" {
			p.a.note("%s", line)
		}
	}
	if code == exitDone {
		return out.Bytes(), nil
	}
	return out.Bytes(), &stepError{code, failure}
}
