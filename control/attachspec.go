package control

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/tlspsk"
	"github.com/hyper-nixos/hyper-nixos/nbd"
	"github.com/hyper-nixos/hyper-nixos/nbd/inject"
)

// noFaults as AttachSpec.Inject ends the faults of an attachment.
const noFaults = "none"

// maxClients is how many client names one attachment can have, each of maxName bytes at most.
const maxClients = 256

// way is the part that lasts as long as the attachment.
func (s AttachSpec) way() way {
	return way{OwnSocket: s.OwnSocket, Owner: s.Owner, Mode: s.Mode, TCP: s.TCP, TCPWriteback: s.TCPWriteback, ReadOnly: s.ReadOnly}
}

// bare reports whether nothing but the volume was asked for.
func (s AttachSpec) bare() bool {
	return s.way() == way{} && len(s.Clients) == 0 && s.Inject == "" && !s.Force
}

// faults is what the record keeps of Inject.
func (s AttachSpec) faults() string {
	if s.Inject == noFaults {
		return ""
	}
	return s.Inject
}

// checkSpec checks what does not depend on the volume.
func (c *Control) checkSpec(s AttachSpec) error {
	switch {
	case !s.OwnSocket && (s.Owner != "" || s.Mode != ""):
		return fmt.Errorf("owner and mode need a socket per volume: %w", block.ErrInvalid)
	case !s.TCP && (s.TCPWriteback || len(s.Clients) > 0 || s.Force):
		return fmt.Errorf("writeback, clients and force are for TCP: %w", block.ErrInvalid)
	case s.TCP && c.tcp == nil:
		return fmt.Errorf("nbd.listen is off; set it, and nbd.tls for an address that others can reach, and restart hvd: %w", ErrRefused)
	case len(s.Clients) > maxClients:
		return fmt.Errorf("%d clients are more than %d; give those that belong together certificates of one name: %w", len(s.Clients), maxClients, block.ErrInvalid)
	}
	if len(s.Clients) > 0 {
		if err := c.tcp.provable(s.Clients); err != nil {
			return err
		}
	}
	for _, name := range s.Clients {
		if identity, key := strings.CutPrefix(name, nbd.PSKPrefix); key && identity == "" {
			return fmt.Errorf("client name %q: want %sIDENTITY: %w", name, nbd.PSKPrefix, block.ErrInvalid)
		}
		if name == "" || len(name) > maxName || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return fmt.Errorf("client name %q: want 1 to %d bytes without control characters: %w", name, maxName, block.ErrInvalid)
		}
	}
	_, err := inject.Parse(s.faults())
	return err
}

// tcpWarning says what a user of TCP should know.
func (c *Control) tcpWarning(s AttachSpec) string {
	var all []string
	switch {
	case !s.TCP:
		return ""
	case !c.tcp.certified && !c.tcp.keyed:
		all = append(all, "every user of this machine can connect to "+c.tcp.address+" and use the volume")
	case len(s.Clients) == 0 && c.tcp.loopback:
		all = append(all, "every user of this machine can connect to "+c.tcp.address+" and use the volume, as no client is named")
	case len(s.Clients) == 0:
		all = append(all, "every client with a "+c.tcp.needs()+" that hvd accepts can use the volume, as none is named")
	}
	if s.TCPWriteback {
		all = append(all, "if this machine goes down, what clients have not flushed is lost, and the volume is not served over TCP until it is attached with force")
	}
	return strings.Join(all, "; ")
}

// keyless warns of clients that are named by pre-shared keys that are in no file: the file may get them later, and until then nobody can connect as one of them.
func (c *Control) keyless(clients []string) string {
	if c.tcp == nil || c.tcp.pskFile == "" {
		return ""
	}
	keys, err := tlspsk.LoadKeys(c.tcp.pskFile)
	if err != nil {
		return fmt.Sprintf("whether the clients have keys is not known: %v", err)
	}
	var missing []string
	for _, name := range clients {
		if identity, key := strings.CutPrefix(name, nbd.PSKPrefix); key && !keys.Has(identity) {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return ""
	}
	return fmt.Sprintf("%s has no key for %s, so nobody can connect as that until it has; it is read again when it changes", c.tcp.pskFile, strings.Join(missing, ", "))
}

// join puts two warnings together, of which either may be empty.
func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}

// reattach reports whether the volume is attached already, and then makes the changes that need no detach: who may use it, and what goes wrong on purpose. Attached
// otherwise, it is an error.
func (c *Control) reattach(want attachmentRecord, spec AttachSpec) (bool, error) {
	c.mu.Lock()
	a := c.mu.attachments[want.Volume]
	if a == nil {
		c.mu.Unlock()
		return false, nil
	}
	old := a.record
	c.mu.Unlock()
	if spec.bare() {
		return true, nil // whatever the way: the caller wants it attached, and learns how it is
	}
	if old.way != want.way {
		return false, fmt.Errorf("it is attached in another way (socket, owner, mode, TCP or read-only); detach it first: %w", block.ErrInUse)
	}
	changed := old
	if len(spec.Clients) > 0 {
		changed.Clients = spec.Clients
	}
	if spec.Inject != "" {
		changed.Inject = spec.faults()
	}
	if spec.Force && c.refuseLostWrites(old) != nil {
		changed.UnflushedBoot = ""
	}
	if slices.Equal(old.Clients, changed.Clients) && old.Inject == changed.Inject && old.UnflushedBoot == changed.UnflushedBoot {
		return true, nil
	}
	return true, c.alter(a, old, changed)
}

// alter changes an attachment as it goes.
func (c *Control) alter(a *attachment, old, changed attachmentRecord) error {
	if old.Inject != changed.Inject {
		if err := a.setFaults(changed.Inject); err != nil {
			return err
		}
	}
	put := func(r attachmentRecord) {
		c.mu.Lock()
		defer c.mu.Unlock()
		a.record.Clients, a.record.Inject = r.Clients, r.Inject
		if old.UnflushedBoot != changed.UnflushedBoot {
			a.record.UnflushedBoot = r.UnflushedBoot
		}
	}
	put(changed)
	err := c.saveAttachments()
	if err == nil {
		return nil
	}
	put(old)
	if old.Inject != changed.Inject {
		err = errors.Join(err, a.setFaults(old.Inject))
	}
	return err
}

// setFaults changes what goes wrong, for the clients that are connected too.
func (a *attachment) setFaults(text string) error {
	faults, err := inject.Parse(text)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.faults == nil {
		return fmt.Errorf("it is attached without faults, which can be changed but not begun; detach it first: %w", block.ErrInUse)
	}
	return a.faults.Set(faults)
}
