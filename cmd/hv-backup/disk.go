package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/unixsock"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

const (
	drainTime    = 2 * time.Second // that clients have to get their last replies
	maxToldOnce  = 1000            // damaged places that are told, each once
	maxDiskConns = 64
)

// disk is a backup that is served as a read-only NBD export on a unix socket.
type disk struct {
	uri    string
	socket string

	a      *app
	m      *repository.Manifest
	device *backup.Device
	server *nbd.Server
	ended  chan struct{} // closed when nobody new can connect any more
	endErr error         // why, then
	folder string        // that was made for the socket, "" for none

	told struct {
		sync.Mutex
		errors map[string]bool
	}
}

// serve serves a backup at a socket, or at one in a new private folder if path is "". It ends with close.
func (a *app) serve(r *repository.Repository, m *repository.Manifest, path string, cacheBytes int) (d *disk, err error) {
	if more := cacheBytes - int(defaultCache); more > 0 && a.getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit + int64(more)) // or the collector would work all the time
	}
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // who reads what it says may go: a line that nobody reads must not end it
	d = newDisk(a, m)
	if path == "" {
		if d.folder, err = os.MkdirTemp(a.getenv("XDG_RUNTIME_DIR"), "hv-backup-"); err != nil {
			return nil, err
		}
		path = filepath.Join(d.folder, "nbd.sock")
	}
	d.socket, d.uri = path, nbd.UnixURI(path, m.Name)
	return d, d.start(r, cacheBytes, func() (net.Listener, error) { return listen(path) })
}

func newDisk(a *app, m *repository.Manifest) *disk {
	d := &disk{a: a, m: m, ended: make(chan struct{})}
	d.told.errors = make(map[string]bool)
	return d
}

// start opens the backup and begins to serve it. After an error nothing is left of it.
func (d *disk) start(r *repository.Repository, cacheBytes int, listen func() (net.Listener, error)) (err error) {
	d.device, err = backup.NewDevice(r, d.m, cacheBytes)
	if err == nil {
		d.server, err = nbd.NewServer(d, nbd.Options{MaxConnections: maxDiskConns, Events: nbd.Events{RequestFailed: d.failed}})
	}
	var listener net.Listener
	if err == nil {
		listener, err = listen()
	}
	if err != nil {
		return errors.Join(err, d.abandon())
	}
	go func() {
		d.endErr = d.server.Serve(context.Background(), listener)
		close(d.ended)
	}()
	return nil
}

// handOver serves a backup to one client alone, which is handed its end of the connection. It ends with close.
func (a *app) handOver(r *repository.Repository, m *repository.Manifest, cacheBytes int) (d *disk, client *os.File, err error) {
	d = newDisk(a, m)
	door := unixsock.NewHandover()
	if err := d.start(r, cacheBytes, func() (net.Listener, error) { return door, nil }); err != nil {
		return nil, nil, err
	}
	if client, err = door.Connect(); err != nil {
		return nil, nil, errors.Join(err, d.close())
	}
	return d, client, nil
}

// damage says what of it could not be read.
func (d *disk) damage() []string {
	d.told.Lock()
	defer d.told.Unlock()
	return slices.Sorted(maps.Keys(d.told.errors))
}

// listen makes a socket for this user alone, unless somebody is serving at it.
func listen(path string) (net.Listener, error) {
	if c, err := net.Dial("unix", path); err == nil {
		return nil, errors.Join(fmt.Errorf("somebody serves at socket %s already; give another --socket: %w", path, block.ErrInUse), c.Close())
	}
	return unixsock.Listen(path, unixsock.Private())
}

// close ends the export: what was asked for is answered, for a moment.
func (d *disk) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	if err := d.server.Shutdown(ctx); err != nil && ctx.Err() == nil {
		return err
	}
	<-d.ended
	return errors.Join(d.endErr, d.device.Close(), d.removeFolder())
}

// abandon undoes what was begun of serve.
func (d *disk) abandon() (err error) {
	if d.server != nil {
		err = d.server.Close()
	}
	if d.device != nil {
		err = errors.Join(err, d.device.Close())
	}
	return errors.Join(err, d.removeFolder())
}

func (d *disk) removeFolder() error {
	if d.folder == "" {
		return nil
	}
	return os.RemoveAll(d.folder)
}

// failed tells why a request was answered with an error; the same reason once.
func (d *disk) failed(_ nbd.Peer, f nbd.Failure) {
	if errors.Is(f.Err, context.Canceled) || errors.Is(f.Err, block.ErrReadOnly) {
		return // the client has gone, or tries to write
	}
	reason := f.Err.Error()
	d.told.Lock()
	known := d.told.errors[reason] || len(d.told.errors) >= maxToldOnce
	if !known {
		d.told.errors[reason] = true
	}
	d.told.Unlock()
	if !known {
		d.a.note("hv-backup: %v of %d B at %d of %s: %s; the client gets EIO for it", f.Command, f.Len, f.Off, d.m.Name, reason)
	}
}

// Acquire implements nbd.Exports. The disk is the default export, too.
func (d *disk) Acquire(name string) (nbd.Export, func(), error) {
	if name != "" && name != d.m.Name {
		return nbd.Export{}, nil, fmt.Errorf("export %q: %w", name, block.ErrNotFound)
	}
	return d.export(), func() {}, nil
}

// List implements nbd.Exports.
func (d *disk) List() []nbd.Export { return []nbd.Export{d.export()} }

func (d *disk) export() nbd.Export {
	return nbd.Export{Name: d.m.Name, Description: fmt.Sprintf("backup of %s %s", d.m.Source.Kind, d.m.Source.Name), Device: d.device, MinBlock: 1, PreferredBlock: 64 << 10, MaxBlock: nbd.MaxPayload}
}
