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
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Attachment is a volume's export as a user sees it.
type Attachment struct {
	Volume      string
	URI         string // nbd+unix:///NAME?socket=PATH
	Socket      string
	OwnSocket   bool // the socket serves this volume only
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
	OwnSocket  bool      `json:"ownSocket,omitempty"`
	Owner      string    `json:"owner,omitempty"` // USER[:GROUP]
	Mode       string    `json:"mode,omitempty"`  // octal
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

	mu     sync.Mutex // held while the device opens or closes
	device Device     // nil until it is opened
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
		_, err := c.openDevice(a)
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
	info, err := c.visible(record.Volume)
	if err != nil {
		return err
	}
	if got := info.UUID.String(); got != record.UUID {
		return fmt.Errorf("volume %q has id %s, attached was %s; detach and attach it again: %w", record.Volume, got, record.UUID, block.ErrInvalid)
	}
	return nil
}

// openDevice returns the attachment's device, opened once for all connections.
func (c *Control) openDevice(a *attachment) (Device, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.device != nil {
		return a.device, nil
	}
	if err := c.checkRecord(a.record); err != nil {
		return nil, err
	}
	device, err := c.engine.OpenDevice(a.record.Volume, "")
	if err != nil {
		return nil, err
	}
	a.device = device
	return device, nil
}

// close closes the device, if it is open. Nobody uses it any more.
func (a *attachment) close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.device == nil {
		return nil
	}
	device := a.device
	a.device = nil
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
func (c *Control) socket(record attachmentRecord) string {
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
	socket := c.socket(a.record)
	return &Attachment{
		Volume: volume, URI: exportURI(volume, socket), Socket: socket, OwnSocket: a.record.OwnSocket,
		AttachedAt: a.record.AttachedAt, Connections: a.uses, Problem: a.problem,
	}
}

func (c *Control) refuseAttached(verb, volume string) error {
	if c.attachmentOf(volume) != nil {
		return fmt.Errorf("%s volume %q: it is attached: %w", verb, volume, block.ErrInUse)
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
