package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
	"github.com/hyper-nixos/hyper-nixos/internal/unixsock"
)

// Off is the value of Listen that keeps the TCP door shut for good.
const Off = "off"

// Validate reports every setting that makes no sense, each by its path in the file. The errors wrap block.ErrInvalid.
func (c *Config) Validate() error {
	var all []error
	bad := func(path, format string, args ...any) {
		all = append(all, fmt.Errorf("%s: %s: %w", path, fmt.Sprintf(format, args...), block.ErrInvalid))
	}
	for path, allowed := range enums(c) {
		if value := allowed.value; !slices.Contains(allowed.words, value) {
			bad(path, "%q is not one of %s", value, strings.Join(allowed.words, ", "))
		}
	}
	if err := CheckListen(c.Listen); err != nil {
		all = append(all, fmt.Errorf("listen: %w", err))
	}
	for _, s := range []struct{ path, socket string }{{"control-socket", c.ControlSocket}, {"nbd.socket", c.NBD.Socket}} {
		if err := unixsock.CheckPath(s.socket); err != nil {
			all = append(all, fmt.Errorf("%s: %w; use a shorter data-dir or set %s", s.path, err, s.path))
		}
	}
	if c.ControlSocket == c.NBD.Socket {
		bad("nbd.socket", "is the control socket too")
	}
	within := func(path string, value, least, most units.Size) {
		if value < least || value > most {
			bad(path, "%s is not within %s and %s", value, least, most)
		}
	}
	within("memory", c.Memory, 128<<20, 1<<40)
	within("store.log-cap", c.Store.LogCap, 64<<20, 1<<50)
	within("store.reserve", c.Store.Reserve, 0, 1<<60)
	within("nbd.in-flight", c.NBD.InFlight, 48<<20, 1<<40)
	if c.Store.SyncEvery < time.Millisecond || c.Store.SyncEvery > time.Hour {
		bad("store.sync-every", "%s is not within 1ms and 1h", c.Store.SyncEvery)
	}
	if c.Store.DestageAfter < time.Millisecond || c.Store.DestageAfter > 24*time.Hour {
		bad("store.destage-after", "%s is not within 1ms and 24h", c.Store.DestageAfter)
	}
	if c.Store.Workers < 0 || c.Store.Workers > 1024 {
		bad("store.workers", "%d is not within 0 and 1024", c.Store.Workers)
	}
	if c.NBD.MaxConnections < 1 || c.NBD.MaxConnections > 1<<20 {
		bad("nbd.max-connections", "%d is not within 1 and 1048576", c.NBD.MaxConnections)
	}
	if c.NBD.DrainTimeout < 0 || c.NBD.DrainTimeout > time.Hour {
		bad("nbd.drain-timeout", "%s is not within 0s and 1h", c.NBD.DrainTimeout)
	}
	return errors.Join(all...)
}

// CheckListen accepts "off" and HOST:PORT with a loopback HOST. Names other than localhost are refused, as what they mean is decided
// elsewhere.
func CheckListen(address string) error {
	if address == Off {
		return nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("address %q: want HOST:PORT, such as 127.0.0.1:8081, or off: %w", address, block.ErrInvalid)
	}
	if _, err := net.LookupPort("tcp", port); err != nil || port == "" {
		return fmt.Errorf("address %q: port %q is not a port: %w", address, port, block.ErrInvalid)
	}
	if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return fmt.Errorf("address %q is not loopback; without TLS, which this version does not have, tokens would cross the network in the clear; use 127.0.0.1 with an SSH tunnel: %w",
			address, block.ErrInvalid)
	}
	return nil
}
