package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/policy"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// oftenFlag is how often something is done: a span, or one of the words for it.
type oftenFlag struct{ units.Span }

// Set implements pflag.Value.
func (o *oftenFlag) Set(text string) error {
	if span, ok := map[string]string{"daily": "1d", "weekly": "1w", "monthly": "30d"}[text]; ok {
		text = span
	}
	return o.Span.Set(text)
}

// test boots what a policy has just backed up. A test that fails does not keep the others from being made.
func (p *policies) test(ctx context.Context, is *policy.Policy, disks []doneRun) (tests []policy.Test, failed error) {
	guests, backups := ofGuests(is, disks)
	if len(is.TestGuests) > 0 {
		guests = is.TestGuests
	}
	for _, guest := range guests {
		t := policy.Test{}
		var err error
		for _, name := range disksOf(is, guest) {
			if backups[name] == "" {
				err = fmt.Errorf("test of %s: a backup of %s in this run: %w", guest, name, block.ErrNotFound)
			}
			t.Backups = append(t.Backups, backups[name])
		}
		if err == nil {
			err = p.testOne(ctx, is, guest, &t)
		}
		if ctx.Err() != nil {
			return tests, errors.Join(failed, err)
		}
		if err != nil {
			t.Error = strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		tests, failed = append(tests, t), errors.Join(failed, err)
	}
	return tests, failed
}

// testOne boots one guest.
func (p *policies) testOne(ctx context.Context, is *policy.Policy, guest string, t *policy.Test) error {
	args := append([]string{"test-restore", "-o", "json"}, t.Backups...)
	for flag, value := range map[string]string{"--expect": is.TestExpect, "--timeout": units.Span(is.TestTimeout).String()} {
		if value != "" {
			args = append(args, flag, value)
		}
	}
	if is.TestMemory > 0 {
		args = append(args, "--memory", strconv.FormatUint(is.TestMemory, 10)+"B")
	}
	if is.TestAgent {
		args = append(args, "--agent")
	}
	if is.TestUEFI {
		args = append(args, "--uefi")
	}
	text, err := p.stepWith(ctx, is, args, is.TestQEMU)
	if len(text) == 0 {
		return err
	}
	var done tested
	if jsonErr := json.Unmarshal(text, &done); jsonErr != nil {
		return errors.Join(err, fmt.Errorf("what the test of %s says: %w", guest, jsonErr))
	}
	t.Seconds, t.Answer = done.Seconds, done.Console
	if t.Answer == "" && done.Agent != "" {
		t.Answer = "guest agent " + done.Agent
	}
	if err == nil && p.a.output != "json" {
		p.a.say("policy %s: %s boots from its backup: after %.1f s %q", is.Name, guest, t.Seconds, t.Answer)
	}
	return err
}

// lastTest is what `policy list` says of restore tests.
func lastTest(is *policy.Policy, s policy.State) string {
	switch {
	case is.TestEvery == 0:
		return "no"
	case s.LastTest.IsZero():
		return "not yet"
	case s.BadTests() != "":
		return "failed " + s.LastTest.Local().Format(time.DateTime)
	}
	return "passed " + s.LastTest.Local().Format(time.DateTime)
}
