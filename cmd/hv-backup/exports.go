package main

import (
	"context"
	"net"
	"net/url"
	"os"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/hypervisor"
)

// exports are the attached volumes of hvd.
type exports struct {
	volumes []client.Volume
	local   map[string]bool // addresses of this host
}

func lookAtExports(ctx context.Context, api *client.Client) (*exports, error) {
	reply, err := client.ListVolumes(ctx, api)
	if err != nil {
		return nil, err
	}
	e := &exports{local: map[string]bool{"localhost": true}}
	for _, v := range reply.Volumes {
		if v.Attachment != nil {
			e.volumes = append(e.volumes, v)
		}
	}
	if name, err := os.Hostname(); err == nil {
		e.local[name] = true
	}
	addresses, _ := net.InterfaceAddrs() // without them only names count
	for _, a := range addresses {
		if ip, ok := a.(*net.IPNet); ok {
			e.local[ip.IP.String()] = true
		}
	}
	return e, nil
}

// find returns the volume that a disk is read from, nil if it is none of hvd's.
func (e *exports) find(d *hypervisor.Disk) *client.Volume {
	if d.Kind != "network" || d.Protocol != "nbd" {
		return nil
	}
	for i, v := range e.volumes {
		at := v.Attachment
		switch {
		case d.Socket != "":
			if (d.Export == v.Name || d.Export == "" && at.OwnSocket) && sameSocket(d.Socket, at.Socket) {
				return &e.volumes[i]
			}
		case d.Export == v.Name && e.sameAddress(d, at.TcpUri):
			return &e.volumes[i]
		}
	}
	return nil
}

// sameSocket reports whether two paths lead to one socket.
func sameSocket(a, b string) bool {
	if a == b {
		return true
	}
	one, err := os.Stat(a)
	if err != nil {
		return false
	}
	other, err := os.Stat(b)
	return err == nil && os.SameFile(one, other)
}

// sameAddress reports whether a disk is read from where hvd says that it serves the volume over TCP.
func (e *exports) sameAddress(d *hypervisor.Disk, uri string) bool {
	u, err := url.Parse(uri)
	if uri == "" || err != nil {
		return false
	}
	port := d.Port
	if port == "" {
		port = "10809"
	}
	if u.Port() != port && !(u.Port() == "" && port == "10809") {
		return false
	}
	host := strings.Trim(d.Host, "[]")
	ip := net.ParseIP(host)
	return host == u.Hostname() || e.local[host] || ip != nil && (ip.IsLoopback() || e.local[ip.String()])
}
