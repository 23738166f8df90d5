package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
	"github.com/hyper-nixos/hyper-nixos/internal/unixsock"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
	"github.com/hyper-nixos/hyper-nixos/tiers/stripe"
)

// Off is the value of Listen and NBD.Listen that keeps a TCP door shut for good.
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
	if err := c.NBD.checkTCP(); err != nil {
		all = append(all, err)
	}
	if err := c.Replication.check(); err != nil {
		all = append(all, err)
	}
	if err := c.Repository.check(c.DataDir); err != nil {
		all = append(all, err)
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
	within("memory", c.Memory, 64<<20, 1<<40)
	within("store.log-cap", c.Store.LogCap, 64<<20, 1<<50)
	within("store.stream-room", c.Store.StreamRoom, 0, 1<<50)
	within("store.reserve", c.Store.Reserve, 0, 1<<60)
	within("store.keep-rate", c.Store.KeepRate, 64<<10, 1<<50)
	within("store.gc-rate", c.Store.GCRate, 64<<10, 1<<50)
	if n := c.Store.GCRequests; n < 1 || n > 1<<30 {
		bad("store.gc-requests", "%d is not within 1 and %d", n, 1<<30)
	}
	if _, err := erasure.ParseShape(c.Store.Parity); err != nil {
		all = append(all, fmt.Errorf("store.parity: %w", err))
	}
	c.Alarms.check(bad)
	c.Store.checkDisks(c.DataDir, bad)
	c.Store.checkKeys(bad)
	within("nbd.in-flight", c.NBD.InFlight, 48<<20, 1<<40)
	if c.Store.SyncEvery < time.Millisecond || c.Store.SyncEvery > time.Hour {
		bad("store.sync-every", "%s is not within 1ms and 1h", c.Store.SyncEvery)
	}
	if c.Store.DestageAfter < time.Millisecond || c.Store.DestageAfter > 24*time.Hour {
		bad("store.destage-after", "%s is not within 1ms and 24h", c.Store.DestageAfter)
	}
	if c.Store.ColdAfter != 0 && (c.Store.ColdAfter < time.Second || c.Store.ColdAfter > 10*365*24*time.Hour) {
		bad("store.cold-after", "%s is neither 0 nor within 1s and 87600h", c.Store.ColdAfter)
	}
	if c.Store.Workers < 0 || c.Store.Workers > 1024 {
		bad("store.workers", "%d is not within 0 and 1024", c.Store.Workers)
	}
	if c.NBD.MaxConnections < 1 || c.NBD.MaxConnections > 1<<20 {
		bad("nbd.max-connections", "%d is not within 1 and 1048576", c.NBD.MaxConnections)
	}
	if c.NBD.MaxRequests < 1 || c.NBD.MaxRequests > 1<<16 {
		bad("nbd.max-requests", "%d is not within 1 and 65536", c.NBD.MaxRequests)
	}
	for _, limit := range []struct {
		path  string
		value time.Duration
	}{{"nbd.handshake-timeout", c.NBD.Handshake}, {"nbd.stall-timeout", c.NBD.StallTimeout}} {
		if limit.value < 10*time.Millisecond || limit.value > time.Hour {
			bad(limit.path, "%s is not within 10ms and 1h", limit.value)
		}
	}
	if c.NBD.DrainTimeout < 0 || c.NBD.DrainTimeout > time.Hour {
		bad("nbd.drain-timeout", "%s is not within 0s and 1h", c.NBD.DrainTimeout)
	}
	return errors.Join(all...)
}

// checkDisks reports what of the disks makes no sense.
func (s *Store) checkDisks(dataDir string, bad func(path, format string, args ...any)) {
	disks := append([]string{dataDir}, s.DiskList()...)
	for i, d := range disks[1:] {
		if slices.Contains(disks[:i+1], d) {
			bad("store.disks", "%s is named twice, or is the data directory", d)
		}
	}
	shape, err := stripe.ParseShape(s.Stripe)
	switch n := shape.Data + shape.Parity; {
	case err != nil:
		bad("store.stripe", "%v", err)
	case n > len(disks):
		bad("store.stripe", "%s needs %d disks, there are %d with the data directory; add some to store.disks", s.Stripe, n, len(disks))
	}
	if len(disks) > 31 {
		bad("store.disks", "%d disks, at most 30 beside the data directory", len(disks)-1)
	}
	if s.LogCopies < 0 || s.LogCopies > min(3, len(disks)) {
		bad("store.log-copies", "%d is not within 0 and %d", s.LogCopies, min(3, len(disks)))
	}
}

// check reports marks that are out of order.
func (a *Alarms) check(bad func(path, format string, args ...any)) {
	for _, m := range []struct {
		path           string
		near, critical int
	}{{"space", a.SpaceNear, a.SpaceCritical}, {"quota", a.QuotaNear, a.QuotaCritical}} {
		if m.near < 5 || m.critical > 100 || m.near > m.critical {
			bad("alarms."+m.path+"-near", "%d %% and alarms.%s-critical of %d %% are not within 5 and 100, in this order", m.near, m.path, m.critical)
		}
	}
	if a.Overcommit < 0 || a.Overcommit > 1<<20 {
		bad("alarms.overcommit", "%d is not within 0 and %d", a.Overcommit, 1<<20)
	}
	if a.Damage < 0 || a.Damage > 1<<20 {
		bad("alarms.damage", "%d is not within 0 and %d", a.Damage, 1<<20)
	}
	if a.DegradedAfter < 0 || a.DegradedAfter > 30*24*time.Hour {
		bad("alarms.degraded-after", "%s is not within 0s and 720h", a.DegradedAfter)
	}
}

// CheckListen accepts "off" and HOST:PORT with a loopback HOST. Names other than localhost are refused, as what they mean is decided
// elsewhere.
func CheckListen(address string) error {
	if address == Off {
		return nil
	}
	if err := checkAddress(address, "127.0.0.1:8081"); err != nil {
		return err
	}
	if !Loopback(address) {
		return fmt.Errorf("address %q is not loopback; the control API has no TLS, so tokens would cross the network in the clear; use 127.0.0.1 with an SSH tunnel: %w",
			address, block.ErrInvalid)
	}
	return nil
}

// checkTCP wants TLS for an address that others than this machine can reach, and every client to prove who it is, by a certificate or a pre-shared key.
func (n *NBD) checkTCP() error {
	t := n.TLS
	switch {
	case (t.Cert == "") != (t.Key == ""):
		return fmt.Errorf("nbd.tls: cert and key go together: %w", block.ErrInvalid)
	case t.ClientCA != "" && t.Cert == "":
		return fmt.Errorf("nbd.tls.client-ca: needs nbd.tls.cert and nbd.tls.key: %w", block.ErrInvalid)
	case n.Listen == Off:
		return nil
	}
	if err := checkAddress(n.Listen, "192.0.2.1:10809"); err != nil {
		return fmt.Errorf("nbd.listen: %w", err)
	}
	if Loopback(n.Listen) {
		return nil
	}
	if !t.Set() {
		return fmt.Errorf("nbd.listen: %q can be reached from the network, so it needs TLS: set nbd.tls.cert and nbd.tls.key, and nbd.tls.client-ca to know who may connect, or nbd.tls.psk-file; "+
			"or listen on 127.0.0.1 and use an SSH tunnel: %w", n.Listen, block.ErrInvalid)
	}
	if t.Cert != "" && t.ClientCA == "" {
		return fmt.Errorf("nbd.listen: %q can be reached from the network, and nbd.tls.cert without nbd.tls.client-ca lets everybody in: set nbd.tls.client-ca, "+
			"or nbd.tls.psk-file alone: %w", n.Listen, block.ErrInvalid)
	}
	return nil
}

// check wants certificates on both sides.
func (r *Replication) check() error {
	return checkMutual("replication", r.Listen, "192.0.2.1:8082", r.Cert, r.Key, r.CA)
}

// checkMutual wants all files of TLS with certificates on both sides or none, and all for an address.
func checkMutual(section, listen, example string, files ...string) error {
	set := 0
	for _, file := range files {
		if file != "" {
			set++
		}
	}
	if set != 0 && set != len(files) {
		return fmt.Errorf("%s: cert, key and ca go together: %w", section, block.ErrInvalid)
	}
	if listen == Off {
		return nil
	}
	if err := checkAddress(listen, example); err != nil {
		return fmt.Errorf("%s.listen: %w", section, err)
	}
	if set == 0 {
		return fmt.Errorf("%[1]s.listen: %[2]q needs TLS with certificates on both sides: set %[1]s.cert, %[1]s.key and %[1]s.ca: %[3]w", section, listen, block.ErrInvalid)
	}
	return nil
}

// maxKeep bounds repository.keep: what nobody can delete fills a disk for as long.
const maxKeep = 10 * 365 * 24 * time.Hour

// check wants certificates on both sides, a directory, and rules.
func (r *Repository) check(dataDir string) error {
	if err := checkMutual("repository", r.Listen, "192.0.2.1:8083", r.Cert, r.Key, r.CA); err != nil {
		return err
	}
	if _, _, err := r.QuotaLists(); err != nil {
		return err
	}
	rules, err := r.Rules()
	switch {
	case err != nil:
		return fmt.Errorf("repository.peers: %w", err)
	case r.Keep < 0 || r.Keep > maxKeep:
		return fmt.Errorf("repository.keep: %s is not within 0s and %s: %w", r.Keep, maxKeep, block.ErrInvalid)
	case r.Reserve > 1<<60:
		return fmt.Errorf("repository.reserve: %s is more than %s: %w", r.Reserve, units.Size(1<<60), block.ErrInvalid)
	case r.Listen == Off:
		return nil
	case r.Dir == "":
		return fmt.Errorf("repository.dir: not set; name a directory for the repositories of other machines: %w", block.ErrInvalid)
	case len(rules) == 0:
		return fmt.Errorf("repository.peers: not set, so nobody could do anything; set who may do what, such as web1=append,admin=all: %w", block.ErrInvalid)
	}
	if inside, err := filepath.Rel(dataDir, r.Dir); err == nil && filepath.IsLocal(inside) {
		return fmt.Errorf("repository.dir: %s lies in the data directory: %w", r.Dir, block.ErrInvalid)
	}
	return nil
}

func checkAddress(address, example string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("address %q: want HOST:PORT, such as %s, or off: %w", address, example, block.ErrInvalid)
	}
	if _, err := net.LookupPort("tcp", port); err != nil || port == "" {
		return fmt.Errorf("address %q: port %q is not a port: %w", address, port, block.ErrInvalid)
	}
	return nil
}

// Loopback reports whether the HOST of HOST:PORT is this machine alone for sure.
func Loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}
