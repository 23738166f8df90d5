package main

import (
	"slices"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/backup/machine"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/hypervisor"
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
