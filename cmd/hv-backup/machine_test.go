package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/backup/machine"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/hypervisor"
	"github.com/hyper-nixos/hyper-nixos/hypervisor/libvirt"
)

func manifestOf(name, kind, source string, hour int) *repository.Manifest {
	return &repository.Manifest{Name: name, Time: time.Date(2026, 11, 28, hour, 0, 0, 0, time.UTC), Source: repository.Source{Kind: kind, Name: source, Host: "h"}}
}

// A volume and a machine of one name are told apart.
func TestChooseMachines(t *testing.T) {
	both := []*repository.Manifest{manifestOf("1", "volume", "web1", 1), manifestOf("2", machine.Kind, "web1", 1), manifestOf("3", "volume", "data", 2), manifestOf("4", machine.Kind, "db", 3)}
	only := []*repository.Manifest{both[1], both[3]}
	for _, c := range []struct {
		all        []*repository.Manifest
		what, want string
	}{
		{both, "latest:web1", "1"}, {both, "latest:domain:web1", "2"}, {both, "latest", "3"}, {both, "2", "2"}, {both, "latest:db", ""}, {both, "latest:domain:data", ""},
		{only, "latest:web1", "2"}, {only, "latest:domain:web1", "2"}, {only, "latest", "4"}, {only, "latest:data", ""},
	} {
		m, err := choose(c.all, c.what)
		if c.want == "" && err == nil || c.want != "" && (err != nil || m.Name != c.want) {
			t.Errorf("%s of %d is %v, %v; want %q", c.what, len(c.all), m, err, c.want)
		}
	}
}

// Rules that keep a machine keep its volumes of that moment, although younger backups of these would take their place.
func TestForgetKeepsMachinesWhole(t *testing.T) {
	all := []*repository.Manifest{
		manifestOf("v1", "volume", "web1", 1), manifestOf("m1", machine.Kind, "web1", 1), manifestOf("v2", "volume", "web1", 2), manifestOf("m2", machine.Kind, "web1", 2),
		manifestOf("v3", "volume", "web1", 3), manifestOf("v4", "volume", "web1", 4),
	}
	names := func(f *forgetting) (forgotten []string) {
		list, _ := f.judge(all)
		for _, b := range list {
			forgotten = append(forgotten, b.Name)
		}
		return forgotten
	}
	if got := names(&forgetting{keep: backup.Retention{Last: 1}}); !slices.Equal(got, []string{"v1", "m1", "v3"}) {
		t.Errorf("forgotten are %q", got)
	}
	all[0].Tags, all[2].Tags = []string{"t"}, []string{"t"} // the machines are not looked at, and stay
	if got := names(&forgetting{keep: backup.Retention{Last: 1}, tags: []string{"t"}}); len(got) != 0 {
		t.Errorf("with a tag, forgotten are %q", got)
	}
}

func TestVolumeFor(t *testing.T) {
	for _, c := range [][4]string{
		{"web1", "web1", "web1-data", "web1-data"}, {"web2", "web1", "web1", "web2"}, {"web2", "web1", "web1-data", "web2-data"}, {"web2", "web1", "data", "web2-data"}, {"web2", "web1", "web10", "web2-web10"},
	} {
		if got := volumeFor(c[0], c[1], c[2]); got != c[3] {
			t.Errorf("%s of %s is %s in %s, want %s", c[2], c[1], got, c[0], c[3])
		}
	}
}

// Which disks are hvd's: the right volume at the right socket or address, nothing else.
func TestFindExports(t *testing.T) {
	e := &exports{local: map[string]bool{"localhost": true, "192.0.2.7": true, "me": true}, volumes: []client.Volume{
		{Name: "own", Attachment: &client.Attachment{Socket: "/run/own.sock", OwnSocket: true}},
		{Name: "shared", Attachment: &client.Attachment{Socket: "/run/nbd.sock", TcpUri: "nbds://0.0.0.0:10810/shared"}},
		{Name: "far", Attachment: &client.Attachment{Socket: "/run/nbd.sock", TcpUri: "nbd://storage.example:10809/far"}},
	}}
	unix := func(name, socket string) hypervisor.Disk {
		return hypervisor.Disk{Kind: "network", Protocol: "nbd", Export: name, Transport: "unix", Socket: socket}
	}
	tcp := func(name, host, port string) hypervisor.Disk {
		return hypervisor.Disk{Kind: "network", Protocol: "nbd", Export: name, Transport: "tcp", Host: host, Port: port}
	}
	for _, c := range []struct {
		disk hypervisor.Disk
		want string
	}{
		{unix("own", "/run/own.sock"), "own"}, {unix("", "/run/own.sock"), "own"}, {unix("other", "/run/own.sock"), ""}, {unix("own", "/run/other.sock"), ""},
		{unix("shared", "/run/nbd.sock"), "shared"}, {unix("", "/run/nbd.sock"), ""}, {unix("shared@s", "/run/nbd.sock"), ""},
		{tcp("shared", "127.0.0.1", "10810"), "shared"}, {tcp("shared", "::1", "10810"), "shared"}, {tcp("shared", "192.0.2.7", "10810"), "shared"}, {tcp("shared", "me", "10810"), "shared"},
		{tcp("shared", "192.0.2.8", "10810"), ""}, {tcp("shared", "localhost", "10809"), ""}, {tcp("own", "localhost", "10810"), ""},
		{tcp("far", "storage.example", ""), "far"}, {tcp("far", "storage.example", "10809"), "far"}, {tcp("far", "elsewhere.example", "10809"), ""},
		{hypervisor.Disk{Kind: "file", Path: "/run/own.sock"}, ""}, {hypervisor.Disk{Kind: "network", Protocol: "rbd", Export: "own", Socket: "/run/own.sock"}, ""},
	} {
		got := ""
		if v := e.find(&c.disk); v != nil {
			got = v.Name
		}
		if got != c.want {
			t.Errorf("%+v is %q, want %q", c.disk, got, c.want)
		}
	}
}

// A volume that is there is not taken for the machine's if it cannot be.
func TestAdoptable(t *testing.T) {
	k, p := &machineRestore{}, &restorePart{Volume: "v", Was: "v", Size: 7}
	for _, c := range []struct {
		v    client.Volume
		want error
	}{
		{client.Volume{SizeBytes: 7}, nil},
		{client.Volume{SizeBytes: 7, Attachment: &client.Attachment{}}, nil},
		{client.Volume{SizeBytes: 7, Attachment: &client.Attachment{Connections: 1}}, block.ErrExists},
		{client.Volume{SizeBytes: 8}, block.ErrInvalid},
	} {
		if err := k.adoptable(p, &c.v); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", c.v, err, c.want)
		}
	}
}

// A machine beside the one it was is not started on disks of that one.
func TestCheckStart(t *testing.T) {
	const head = "<domain><name>web1</name><uuid>6f0c2f3e-1111-4222-8333-444455556666</uuid><devices><disk type='network'><source protocol='nbd' name='a'/><target dev='vda'/></disk><disk type='file' device='cdrom'><source file='/s'/><target dev='sda'/></disk>"
	for disk, refused := range map[string]bool{
		"": false, "<disk type='file' device='cdrom'><source file='/x'/><target dev='sdb'/></disk>": false, "<disk type='file' device='floppy'><target dev='fda'/></disk>": false,
		"<disk type='file' device='floppy'><source file='/f'/><target dev='fda'/></disk>":     true,
		"<disk type='block' device='floppy'><source dev='/dev/f'/><target dev='fda'/></disk>": true,
		"<disk type='file' device='floppy'><source file='/f'/><target dev='fdb'/></disk>":     false, // is in the backup
		"<disk type='file'><source file='/x'/><target dev='vdb'/></disk>":                     true,
		"<disk type='block' device='lun'><source dev='/dev/x'/><target dev='vdb'/></disk>":    true,
		"<disk type='network'><source protocol='rbd' name='b'/><target dev='vdb'/></disk>":    true,
	} {
		for _, name := range []string{"web1", "web2"} {
			k := &machineRestore{start: true, plan: plannedMachine{Domain: name}, m: &machine.Machine{Name: "web1", Disks: []machine.Disk{{Target: "vda"}}, Media: []machine.Medium{{Target: "fdb", Path: "/f"}}, XML: head + disk + "</devices></domain>"}}
			if err := k.checkStart(); (err != nil) != (refused && name == "web2") {
				t.Errorf("%s with %s: %v", name, disk, err)
			}
			if k.start = false; k.checkStart() != nil {
				t.Errorf("%s with %s is refused without a start", name, disk)
			}
		}
	}
}

// A floppy of a machine beside the one it was is another one, as both write to it; a CD is the same.
func TestFloppyBeside(t *testing.T) {
	env := map[string]string{"XDG_CONFIG_HOME": t.TempDir(), "XDG_DATA_HOME": t.TempDir()}
	place, err := libvirt.Find("qemu:///session", func(name string) string { return env[name] })
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	m := &machine.Machine{Name: "web1", XML: "<domain><name>web1</name><uuid>6f0c2f3e-1111-4222-8333-444455556666</uuid><devices><disk type='file' device='cdrom'><target dev='sda'/></disk><disk type='file' device='floppy'><target dev='fda'/></disk></devices></domain>"}
	for _, target := range []string{"sda", "fda"} {
		path := filepath.Join(dir, target+".img")
		if err := os.WriteFile(path, []byte(target), 0o600); err != nil {
			t.Fatal(err)
		}
		m.Media = append(m.Media, machine.Medium{Target: target, Path: path})
		m.Contents = append(m.Contents, machine.File{Name: machine.MediumFile(target), Mode: 0o600, Data: []byte(target)})
	}
	own := filepath.Join(place.ImagesDir(), "web2-fda.img")
	for name, want := range map[string][]string{"web1": {m.Media[0].Path, m.Media[1].Path}, "web2": {m.Media[0].Path, own}} {
		k := &machineRestore{m: m, place: place, plan: plannedMachine{Domain: name}, change: hypervisor.Change{Disks: make(map[string]hypervisor.Source)}}
		if err := k.planFiles(); err != nil || !slices.Equal(k.plan.Media, want) || k.change.Disks["sda"] != (hypervisor.Source{}) || (name == "web2") != (k.change.Disks["fda"].File == own) || len(k.files) != len(k.change.Disks) {
			t.Errorf("%s reads %q and writes %+v, %v; want %q", name, k.plan.Media, k.files, err, want)
		}
	}
}

// Variables of firmware that are there are not taken for those of a machine whose backup has none.
func TestStaleNVRAM(t *testing.T) {
	env := map[string]string{"XDG_CONFIG_HOME": t.TempDir()}
	place, err := libvirt.Find("qemu:///session", func(name string) string { return env[name] })
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(place.NVRAMDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(place.NVRAMDir(), "web1_VARS.fd"), []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := &machine.Machine{Name: "web1", XML: "<domain><name>web1</name><uuid>6f0c2f3e-1111-4222-8333-444455556666</uuid><os><nvram>/old/web1_VARS.fd</nvram></os></domain>"}
	for _, c := range []struct {
		name  string
		adopt bool
		want  error
	}{{"web1", false, block.ErrExists}, {"web1", true, nil}, {"web2", false, nil}} {
		k := &machineRestore{m: m, place: place, adopt: c.adopt, plan: plannedMachine{Domain: c.name}}
		if err := k.planFiles(); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
