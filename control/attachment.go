package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/nbd/inject"
)

// Attachment is a volume's export as a user sees it.
type Attachment struct {
	Volume      string
	URI         string // nbd+unix:///NAME?socket=PATH
	Socket      string
	OwnSocket   bool   // the socket serves this volume only
	TCPURI      string // nbds://HOST:PORT/NAME or nbd://…; empty unless it is served over TCP
	TCPMode     string // "durable" or "writeback"; empty unless it was attached for TCP
	Clients     []string
	ReadOnly    bool
	Inject      string // faults on purpose, as package nbd/inject writes them; empty for none
	AttachedAt  time.Time
	Connections int
	// Problem says why the export does not serve; empty when it does.
	Problem string
}

// attachmentRecord is an attachment in attachments.json (docs/format/control.md).
type attachmentRecord struct {
	Volume     string    `json:"volume"`
	UUID       string    `json:"uuid"`
	AttachedAt time.Time `json:"attachedAt"`
	way

	// What may change while it is attached; guarded by Control.mu.
	Clients       []string `json:"clients,omitempty"`       // names in certificates that may use it over TCP; none: all that the door lets in
	Inject        string   `json:"inject,omitempty"`        // faults (package nbd/inject)
	UnflushedBoot string   `json:"unflushedBoot,omitempty"` // boot of the machine in which a client over TCP wrote with writeback; see lostwrites.go
}

// way is how a volume is exported, as long as it is attached.
type way struct {
	OwnSocket bool   `json:"ownSocket,omitempty"`
	Owner     string `json:"owner,omitempty"` // USER[:GROUP]
	Mode      string `json:"mode,omitempty"`  // octal
	TCP       bool   `json:"tcp,omitempty"`
	// TCPWriteback lets writes over TCP be replied before they are durable, on a volume that does so.
	TCPWriteback bool `json:"tcpWriteback,omitempty"`
	ReadOnly     bool `json:"readOnly,omitempty"`
}

// attachment is an export that exists.
type attachment struct {
	record attachmentRecord

	// Guarded by Control.mu.
	uses       int           // connections that acquired it
	leaving    bool          // being detached: nobody enters any more
	idle       chan struct{} // closed when it is leaving and nobody uses it any more
	problem    string
	stopSocket context.CancelFunc // ends the volume's own socket; nil without one

	unflushed unflushed
	fenced    atomic.Bool // the volume's replica was promoted: it takes no change

	mu     sync.Mutex     // held while the device opens or closes
	device Device         // nil until it is opened
	view   shown          // of the device, for clients
	faults *inject.Device // in view; nil for none
}

func newAttachment(record attachmentRecord) *attachment {
	return &attachment{record: record, idle: make(chan struct{})}
}

var attachmentsHeader = stateHeader{Format: "hyper-nixos attachments", Version: 1}

type attachmentsFile struct {
	stateHeader
	Attachments []attachmentRecord `json:"attachments"`
}

func (c *Control) attachmentsPath() string { return filepath.Join(c.stateDir(), "attachments.json") }

// saveAttachments writes the attachments that are not leaving.
func (c *Control) saveAttachments() error {
	c.saving.Lock()
	defer c.saving.Unlock()
	file := attachmentsFile{stateHeader: attachmentsHeader, Attachments: []attachmentRecord{}}
	c.mu.Lock()
	for _, a := range c.mu.attachments {
		if !a.leaving {
			file.Attachments = append(file.Attachments, a.record)
		}
	}
	c.mu.Unlock()
	slices.SortFunc(file.Attachments, func(a, b attachmentRecord) int { return strings.Compare(a.Volume, b.Volume) })
	return writeState(c.attachmentsPath(), file)
}

// restoreAttachments makes the exports of attachments.json again. One that cannot be served stays attached and says why, so that a
// passing fault does not detach a guest for good.
func (c *Control) restoreAttachments() error {
	file := attachmentsFile{}
	if err := readState(c.attachmentsPath(), attachmentsHeader, &file); err != nil {
		return err
	}
	for _, record := range file.Attachments {
		a := newAttachment(record)
		c.mu.attachments[record.Volume] = a
		view, err := c.openDevice(a)
		if err == nil {
			err = c.settleUnflushed(a, view)
		}
		if err == nil {
			err = c.listenOwn(a)
		}
		if err != nil {
			a.problem = err.Error()
			c.log.Error("attached volume is not served", "volume", record.Volume, "error", err)
		}
	}
	return nil
}

// checkRecord refuses a record whose volume is another one by now, as after a data directory was put together from two.
func (c *Control) checkRecord(record attachmentRecord) error {
	info, err := c.visible(record.base())
	if err != nil {
		return err
	}
	if got := info.UUID.String(); got != record.UUID {
		return fmt.Errorf("volume %q has id %s, attached was %s; detach and attach it again: %w", record.Volume, got, record.UUID, block.ErrInvalid)
	}
	return nil
}

// openDevice returns the attachment's device as clients see it, opened once for all connections.
func (c *Control) openDevice(a *attachment) (shown, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.device != nil {
		return a.view, nil
	}
	c.mu.Lock()
	record := a.record
	c.mu.Unlock()
	if err := c.checkRecord(record); err != nil {
		return nil, err
	}
	open := c.openVolume
	if record.isMoment() {
		open = c.openMoment
	}
	device, err := open(record)
	if err != nil {
		return nil, err
	}
	view, faults, err := show(device, record)
	if err != nil {
		return nil, errors.Join(err, device.Close())
	}
	if faults != nil {
		c.log.Warn("volume is served with faults on purpose", "volume", record.Volume, "faults", record.Inject)
	}
	c.mu.Lock()
	c.fenceLocked(a)
	c.mu.Unlock()
	view = fenced{view, &a.fenced}
	a.device, a.view, a.faults = device, view, faults
	return view, nil
}

// openVolume opens the device of an attachment of a volume, which may still be coming.
func (c *Control) openVolume(record attachmentRecord) (Device, error) {
	device, err := c.engine.OpenDevice(record.Volume, "")
	r := c.restoreOf(record.Volume)
	switch {
	case err != nil || r == nil:
		return device, err
	case r.problem != nil:
		return nil, errors.Join(r.problem, device.Close())
	}
	return r.live.Wrap(device), nil
}

// close closes the device, if it is open. Nobody uses it any more.
func (a *attachment) close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.device == nil {
		return nil
	}
	device := a.device
	a.device, a.view, a.faults = nil, nil, nil
	if err := device.Close(); err != nil {
		return fmt.Errorf("close volume %q: %w", a.record.Volume, err)
	}
	return nil
}

func (c *Control) closeDevices() error {
	c.mu.Lock()
	attachments := slices.Collect(maps.Values(c.mu.attachments))
	c.mu.Unlock()
	var all []error
	for _, a := range attachments {
		all = append(all, a.close())
	}
	return errors.Join(all...)
}

// socket is the path that clients of the attachment connect to.
func (c *Control) socket(record *attachmentRecord) string {
	if record.OwnSocket {
		return filepath.Join(c.opts.Config.NBD.VolumeSocketDir, record.Volume+".sock")
	}
	return c.opts.Config.NBD.Socket
}

// attachmentOf returns nil when the volume is not attached.
func (c *Control) attachmentOf(volume string) *Attachment {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.mu.attachments[volume]
	if a == nil {
		return nil
	}
	return c.describe(a)
}

// describe is called with Control.mu held.
func (c *Control) describe(a *attachment) *Attachment {
	r, socket := a.record, c.socket(&a.record)
	at := &Attachment{
		Volume: r.Volume, URI: exportURI(r.Volume, socket), Socket: socket, OwnSocket: r.OwnSocket,
		Clients: append([]string{}, r.Clients...), ReadOnly: r.ReadOnly, Inject: r.Inject,
		AttachedAt: r.AttachedAt, Connections: a.uses, Problem: a.problem,
	}
	if !r.TCP {
		return at
	}
	at.TCPMode = tcpMode(r.TCPWriteback).String()
	if c.tcp != nil {
		at.TCPURI = c.tcp.uri(r.Volume)
	}
	if err := c.tcpProblem(r); err != nil && at.Problem == "" {
		at.Problem = err.Error()
	}
	return at
}

// SnapshotExport describes the export VOLUME@SNAPSHOT that a snapshot of an attached volume has: read-only, as long as the volume is attached.
func (c *Control) SnapshotExport(volume, snapshot string) (Attachment, error) {
	snapshots, err := c.Snapshots(volume)
	if err != nil {
		return Attachment{}, err
	}
	if !slices.ContainsFunc(snapshots, func(s Snapshot) bool { return s.Name == snapshot }) {
		return Attachment{}, fmt.Errorf("snapshot %q of volume %q: %w", snapshot, volume, block.ErrNotFound)
	}
	at := c.attachmentOf(volume)
	if at == nil {
		return Attachment{}, fmt.Errorf("snapshot %q of volume %q has no export while the volume is not attached: %w", snapshot, volume, ErrRefused)
	}
	at.Volume += "@" + snapshot
	at.URI, at.ReadOnly, at.Inject, at.TCPMode = exportURI(at.Volume, at.Socket), true, "", ""
	at.Connections = c.nbd.Connections(at.Volume)
	if at.TCPURI != "" {
		at.TCPURI = c.tcp.uri(at.Volume)
	}
	return *at, nil
}

// recordOf returns what is on record of a volume that is attached and stays so.
func (c *Control) recordOf(volume string) (attachmentRecord, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.mu.attachments[volume]
	if a == nil || a.leaving {
		return attachmentRecord{}, false
	}
	return a.record, true
}

func (c *Control) refuseAttached(verb, volume string) error {
	if c.attachmentOf(volume) != nil {
		return fmt.Errorf("%s volume %q: it is attached: %w", verb, volume, block.ErrInUse)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.mu.attachments {
		if strings.HasPrefix(name, volume+momentMark) {
			return fmt.Errorf("%s volume %q: a moment of it is attached, %s: %w", verb, volume, name, block.ErrInUse)
		}
	}
	return nil
}

// Attachments lists all exports ordered by volume.
func (c *Control) Attachments() []Attachment {
	c.mu.Lock()
	names := slices.Sorted(maps.Keys(c.mu.attachments))
	c.mu.Unlock()
	list := make([]Attachment, 0, len(names))
	for _, name := range names {
		if a := c.attachmentOf(name); a != nil {
			list = append(list, *a)
		}
	}
	return list
}
