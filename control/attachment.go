package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/unixsock"
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

// exportURI is the NBD URI (NBD URI specification) of an export on a unix socket.
func exportURI(volume, socket string) string {
	return "nbd+unix:///" + url.PathEscape(volume) + "?socket=" + strings.ReplaceAll(url.QueryEscape(socket), "%2F", "/")
}

// access reads owner and mode of a volume's own socket. Users and groups may be names or numbers.
func (r attachmentRecord) access() (unixsock.Access, error) {
	access := unixsock.Private()
	if r.Mode != "" {
		mode, err := strconv.ParseUint(r.Mode, 8, 32)
		if err != nil || mode > 0o777 {
			return access, fmt.Errorf("socket mode %q: want octal permissions such as 0660: %w", r.Mode, block.ErrInvalid)
		}
		access.Mode = fs.FileMode(mode)
	}
	owner, group, hasGroup := strings.Cut(r.Owner, ":")
	if owner != "" {
		u, err := lookup(owner, user.LookupId, user.Lookup)
		if err != nil {
			return access, fmt.Errorf("socket owner %q is not a user here: %w", owner, block.ErrInvalid)
		}
		access.UID, _ = strconv.Atoi(u.Uid)
		access.GID, _ = strconv.Atoi(u.Gid)
	}
	if hasGroup {
		g, err := lookup(group, user.LookupGroupId, user.LookupGroup)
		if err != nil {
			return access, fmt.Errorf("socket group %q is not a group here: %w", group, block.ErrInvalid)
		}
		access.GID, _ = strconv.Atoi(g.Gid)
	}
	return access, nil
}

// lookup finds by number what is a number and by name what is not.
func lookup[T any](text string, byID, byName func(string) (*T, error)) (*T, error) {
	if _, err := strconv.ParseUint(text, 10, 32); err == nil {
		return byID(text)
	}
	return byName(text)
}

// unreachable names the first folder above path that others may not pass, if access is meant for others; else "".
func unreachable(path string, access unixsock.Access) string {
	if access.UID < 0 && access.GID < 0 && access.Mode&0o066 == 0 || access.UID == os.Geteuid() && access.Mode&0o066 == 0 {
		return ""
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o001 == 0 {
			return dir
		}
		if dir == filepath.Dir(dir) {
			return ""
		}
	}
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
