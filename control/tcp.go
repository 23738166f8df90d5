package control

import (
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/config"
	"github.com/hyper-nixos/hyper-nixos/internal/mutualtls"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// tcpDoor is the way to the NBD server over TCP. It shows what is attached for it, each volume to the clients that may have it.
type tcpDoor struct {
	address   string // HOST:PORT as clients can use it
	loopback  bool
	encrypts  bool
	certified bool // clients can prove who they are by a certificate
	keyed     bool // or by a pre-shared key
	secrets   []secretFile
	pskFile   string // nbd.tls.psk-file
}

// listenTCP opens the door that the configuration wants, if it wants one. Beyond loopback everything is encrypted; on loopback the client chooses.
func (c *Control) listenTCP() error {
	cfg := c.opts.Config.NBD
	if cfg.Listen == config.Off {
		return nil
	}
	door := nbd.Door{Exports: tcpExports{sharedExports{c}}}
	var err error
	if door.TLS, err = openTLS(cfg, func(err error) {
		c.log.Error("changed TLS files cannot be used; the old ones stay in use", "error", err)
	}); err != nil {
		return err
	}
	most := boundsOf(cfg.MaxConnections)
	listener, err := listenLimited(cfg.Listen, most, func(from net.Addr) {
		c.tellOf(slog.LevelWarn, from, "NBD connection over TCP refused: too many", "max", most.settled, "maxInHandshake", most.shaking, "maxInHandshakeOfAnAddress", most.address)
	})
	if err != nil {
		return fmt.Errorf("nbd.listen: %w", err)
	}
	c.tcp = &tcpDoor{
		address: reachable(cfg.Listen, listener.Addr()), loopback: config.Loopback(cfg.Listen),
		encrypts: cfg.TLS.Set(), certified: cfg.TLS.ClientCA != "", keyed: cfg.TLS.PSKFile != "",
		secrets: secretsOf(cfg.TLS), pskFile: cfg.TLS.PSKFile,
	}
	c.log.Info("NBD over TCP", "at", c.tcp.base(), "clientsNeed", c.tcp.needs())
	c.goServe("nbd tcp", func() error { return c.nbd.ServeDoor(c.background, listener, door) })
	return nil
}

// openTLS reads the files of nbd.tls; without any it returns nil.
func openTLS(cfg config.NBD, reloadFailed func(error)) (*nbd.TLS, error) {
	if !cfg.TLS.Set() {
		return nil, nil
	}
	if err := checkSecrets(secretsOf(cfg.TLS)); err != nil {
		return nil, err
	}
	opened, err := nbd.OpenTLS(nbd.TLSOptions{
		CertFile: cfg.TLS.Cert, KeyFile: cfg.TLS.Key, ClientCAFile: cfg.TLS.ClientCA, PSKFile: cfg.TLS.PSKFile,
		Required: !config.Loopback(cfg.Listen), ReloadFailed: reloadFailed,
	})
	if err != nil {
		return nil, fmt.Errorf("nbd.tls: %w", err)
	}
	return opened, nil
}

// CheckTLS tells whether the files of nbd.tls are such that a start would take them.
func CheckTLS(cfg config.NBD) error {
	if cfg.Listen == config.Off {
		return nil
	}
	_, err := openTLS(cfg, func(error) {})
	return err
}

// secretFile is a file that others must not read, and the setting that names it.
type secretFile struct{ setting, path string }

func secretsOf(t config.TLS) []secretFile {
	var all []secretFile
	if t.Key != "" {
		all = append(all, secretFile{"nbd.tls.key", t.Key})
	}
	if t.PSKFile != "" {
		all = append(all, secretFile{"nbd.tls.psk-file", t.PSKFile})
	}
	return all
}

// checkSecrets refuses keys that every user of this machine can read or replace.
func checkSecrets(files []secretFile) error {
	for _, f := range files {
		if err := mutualtls.Private(f.path); err != nil {
			return fmt.Errorf("%s: %w", f.setting, err)
		}
	}
	return nil
}

// needs is what a client must have to come in.
func (d *tcpDoor) needs() string {
	switch {
	case d.loopback || !d.encrypts:
		return "nothing"
	case d.certified && d.keyed:
		return "certificate or pre-shared key"
	case d.keyed:
		return "pre-shared key"
	}
	return "certificate"
}

// provable reports whether clients can prove that they bear these names.
func (d *tcpDoor) provable(names []string) error {
	for _, name := range names {
		switch key := strings.HasPrefix(name, nbd.PSKPrefix); {
		case key && !d.keyed:
			return fmt.Errorf("client %q: nobody has a pre-shared key without nbd.tls.psk-file: %w", name, ErrRefused)
		case !key && !d.certified:
			return fmt.Errorf("client %q: nobody has a certificate without nbd.tls.client-ca (a pre-shared key is named %sIDENTITY): %w", name, nbd.PSKPrefix, ErrRefused)
		}
	}
	return nil
}

// reachable is the address for clients of a listener: the host as configured, this machine's name where it is any address, and the port in use.
func reachable(configured string, listening net.Addr) string {
	host, _, _ := net.SplitHostPort(configured) // was validated
	_, port, _ := net.SplitHostPort(listening.String())
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		if name, err := os.Hostname(); err == nil {
			host = name
		}
	}
	return net.JoinHostPort(host, port)
}

// base is the NBD URI of the door.
func (d *tcpDoor) base() string {
	if d.encrypts {
		return "nbds://" + d.address
	}
	return "nbd://" + d.address
}

// uri is the NBD URI of an export behind the door.
func (d *tcpDoor) uri(export string) string { return d.base() + "/" + url.PathEscape(export) }

// checkSecrets looks again at who can read the keys: the files may have been replaced since.
func (d *tcpDoor) checkSecrets() error { return checkSecrets(d.secrets) }

// tcpExports is the table of that door.
type tcpExports struct{ sharedExports }

var _ nbd.ClientExports = tcpExports{}

// AcquireFor implements nbd.ClientExports.
func (t tcpExports) AcquireFor(client nbd.Client, name string) (nbd.Export, func(), error) {
	volume, _, ofSnapshot := strings.Cut(name, "@")
	if err := t.c.admit(client, volume, !ofSnapshot); err != nil {
		return nbd.Export{}, nil, err
	}
	return t.acquire(name, true)
}

// ListFor implements nbd.ClientExports. A client sees what it may have; the moments of a volume belong to it as its snapshots do.
func (t tcpExports) ListFor(client nbd.Client) []nbd.Export {
	return slices.DeleteFunc(t.List(), func(e nbd.Export) bool {
		volume, _, _ := strings.Cut(e.Name, "@")
		return t.c.admit(client, volume, false) != nil
	})
}

// admit reports why a client may not use a volume over TCP. One that is not meant for it learns no more than of a volume that does not exist.
func (c *Control) admit(client nbd.Client, volume string, toWrite bool) error {
	record, ok := c.recordOf(volume)
	if !ok || !record.TCP {
		return fmt.Errorf("export %q: %w", volume, block.ErrNotFound)
	}
	if len(record.Clients) > 0 {
		if !client.Encrypted {
			return fmt.Errorf("export %q: %w", volume, nbd.ErrTLSRequired)
		}
		if !mayUse(record.Clients, client) {
			c.tellOf(slog.LevelWarn, client.Addr, "NBD client may not use this volume", "volume", volume, "client", client.Identity())
			return fmt.Errorf("export %q: %w", volume, block.ErrNotFound)
		}
	}
	if toWrite {
		return c.refuseLostWrites(record)
	}
	return nil
}

// tcpProblem says why a volume that was attached for TCP is not served there.
func (c *Control) tcpProblem(record attachmentRecord) error {
	switch {
	case c.tcp == nil:
		return fmt.Errorf("not served over TCP: nbd.listen is %s: %w", config.Off, ErrRefused)
	}
	if err := c.tcp.provable(record.Clients); err != nil {
		return fmt.Errorf("not served over TCP to all that it is for: %w", err)
	}
	return c.refuseLostWrites(record)
}

// tellOf tells of a client that does what it should not, once a minute: whoever reaches the port must not be able to fill the log.
func (c *Control) tellOf(level slog.Level, from net.Addr, message string, about ...any) {
	host := hostOf(from)
	tell, heldBack := c.repeats.tell(message + host)
	if !tell {
		return
	}
	about = append(about, "address", host)
	if heldBack > 0 {
		about = append(about, "heldBack", heldBack)
	}
	c.log.Log(c.background, level, message, about...)
}

// hostOf is an address without its port.
func hostOf(from net.Addr) string {
	if tcp, ok := from.(*net.TCPAddr); ok {
		return tcp.IP.String()
	}
	return from.String()
}

// mayUse reports whether a client bears one of the names: in its certificate, as common name or as one of its DNS names, or as the identity of its pre-shared key, which is
// named with a prefix. A certificate that bears a name with that prefix does not count, so neither passes for the other.
func mayUse(names []string, client nbd.Client) bool {
	return slices.ContainsFunc(names, func(name string) bool {
		if identity, key := strings.CutPrefix(name, nbd.PSKPrefix); key {
			return client.PSK != "" && identity == client.PSK
		}
		certificate := client.Certificate
		return certificate != nil && (name == certificate.Subject.CommonName || slices.Contains(certificate.DNSNames, name))
	})
}
