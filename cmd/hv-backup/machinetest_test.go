package main

import (
	"slices"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/backup/machine"
	"github.com/hyper-nixos/hyper-nixos/backup/policy"
	"github.com/hyper-nixos/hyper-nixos/hypervisor"
)

// A machine is booted in a test from the disk that its definition says, on the bus that it has there, and never from a drive.
func TestBootOrder(t *testing.T) {
	d := &hypervisor.Domain{Disks: []hypervisor.Disk{{Target: "vda", Bus: "virtio"}, {Target: "hda", Bus: "ide", Boot: 2}, {Target: "sdb", Bus: "usb", Boot: 1}, {Target: "sdc", Device: "cdrom"}}}
	part := func(target, device string) *restorePart {
		return &restorePart{Disk: machine.Disk{Target: target, Device: device}}
	}
	var got []string
	for _, p := range bootOrder(d, []*restorePart{part("vdz", "disk"), part("sdc", "cdrom"), part("fda", "floppy"), part("vda", "disk"), part("hda", "disk"), part("sdb", "lun")}) {
		got = append(got, p.Disk.Target)
	}
	if !slices.Equal(got, []string{"sdb", "hda", "vda", "vdz"}) {
		t.Errorf("it boots from %q", got)
	}
	for target, want := range map[string]string{"vda": "virtio", "hda": "sata", "sdb": "", "vdz": ""} {
		if bus := trialBus(d, target); bus != want {
			t.Errorf("%s is on %q, want %q", target, bus, want)
		}
	}
}

// What a policy backs up becomes the arguments of a run, whatever domains are called, and says itself in a list.
func TestPolicyTargets(t *testing.T) {
	for _, c := range []struct {
		is   policy.Policy
		says string
		args []string
	}{
		{policy.Policy{Volumes: []string{"web1", "db1"}}, "web1 db1", []string{"run", "web1", "db1"}},
		{policy.Policy{Group: "shop"}, "@shop", []string{"run", "@shop"}},
		{policy.Policy{Domains: []string{"web1"}, Connect: "qemu:///system"}, "domain:web1", []string{"run", "--domain=web1", "--connect=qemu:///system"}},
		{policy.Policy{Domains: []string{`a,b "c"`, "-x y"}}, `domain:a,b "c" domain:-x y`, []string{"run", `--domain="a,b ""c"""`, "--domain=-x y"}},
	} {
		if got := targets(&c.is); got != c.says {
			t.Errorf("targets %q, want %q", got, c.says)
		}
		args := runArgs(&c.is)
		if !slices.Equal(args, c.args) {
			t.Errorf("arguments %q, want %q", args, c.args)
		}
		command := newRun(&app{getenv: func(string) string { return "" }})
		if err := command.ParseFlags(args[1:]); err != nil {
			t.Errorf("%q: %v", args, err)
		}
		if domains, err := command.Flags().GetStringSlice("domain"); err != nil || !slices.Equal(domains, c.is.Domains) {
			t.Errorf("%q are domains %q, %v", args, domains, err)
		}
	}
}
