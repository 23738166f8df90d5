package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Options say what to mount, and where.
type Options struct {
	URI       string // of the NBD export
	SizeBytes uint64 // of its disk
	Directory string // absolute; there, empty, and nothing is mounted on it
	Folder    string // of the caller, private and absolute, for the disk as a file
	Others    bool   // users other than root may look, as far as the modes of files let them
}

// Mounted is a disk whose file systems are mounted.
type Mounted struct {
	Partitions []Partition

	o      Options
	file   string // the disk
	fuse   *exec.Cmd
	exited chan struct{} // closed when nbdfuse has ended
}

const (
	fuseTime    = 20 * time.Second
	pollEvery   = 20 * time.Millisecond
	noticeEvery = 500 * time.Millisecond
	busyTime    = 10 * time.Second
	connections = "4"
	hardened    = "ro,nosuid,nodev,noexec"
)

// New mounts what can be mounted of a disk; Partitions says what that is, and why the rest is not. An error if that is nothing. Close ends it.
func New(ctx context.Context, o Options) (m *Mounted, err error) {
	if err := CheckDirectory(o.Directory); err != nil {
		return nil, err
	}
	m = &Mounted{o: o, exited: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
			m = nil
		}
	}()
	mode := "0700"
	if o.Others {
		mode = "0755"
	}
	// First of all: it says what there is to remove, should this process be killed.
	if _, err := run(ctx, "mount", "-t", "tmpfs", "-o", "nosuid,nodev,noexec,size=64k,nr_inodes=512,mode="+mode, owner(o.Folder), o.Directory); err != nil {
		return m, err
	}
	if err := m.startFuse(ctx); err != nil {
		return m, err
	}
	if m.Partitions, err = partitions(ctx, m.file, o.SizeBytes); err != nil {
		return m, err
	}
	return m, m.mountAll(ctx)
}

// CheckDirectory says why nothing can be mounted below a directory: it is not there, not empty, or something is mounted there already.
func CheckDirectory(path string) error {
	entries, err := os.ReadDir(path)
	switch {
	case err != nil:
		return fmt.Errorf("mount point: %w; make an empty folder", err)
	case len(entries) > 0:
		return fmt.Errorf("mount point %s is not empty; give an empty folder: %w", path, block.ErrExists)
	case strings.ContainsFunc(path, func(r rune) bool { return r < ' ' }):
		return fmt.Errorf("mount point %q: %w", path, block.ErrInvalid)
	}
	found, err := mountsAt(path)
	if err == nil && len(found) > 0 {
		err = fmt.Errorf("something is mounted on %s already: %w", path, block.ErrInUse)
	}
	return err
}

// startFuse shows the disk as a file. nbdfuse has a process group of its own, as an interrupt from the terminal is not for it. If this process is killed it stays, and Unmount ends it.
func (m *Mounted) startFuse(ctx context.Context) error {
	folder := filepath.Join(m.o.Folder, "fuse")
	if err := os.Mkdir(folder, 0o700); err != nil {
		return err
	}
	m.file = filepath.Join(folder, "disk")
	var said limited
	m.fuse = exec.Command(find("nbdfuse"), "--readonly", "--connections", connections, m.file, m.o.URI)
	m.fuse.Stderr = &said
	m.fuse.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := m.fuse.Start(); err != nil {
		return err
	}
	go func() {
		_ = m.fuse.Wait() // why, it has said
		close(m.exited)
	}()
	for deadline := time.Now().Add(fuseTime); ; {
		if info, err := os.Stat(m.file); err == nil && info.Mode().IsRegular() {
			return nil
		}
		select {
		case <-m.exited:
			return &toolError{"nbdfuse", strings.TrimSpace(said.String()), errors.New("it ended")}
		case <-ctx.Done():
			return errors.Join(ctx.Err(), m.endFuse())
		case <-time.After(pollEvery):
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("nbdfuse shows nothing after %v", fuseTime), m.endFuse())
		}
	}
}

// mountAll mounts each partition that it can.
func (m *Mounted) mountAll(ctx context.Context) error {
	mounted := 0
	for i := range m.Partitions {
		p := &m.Partitions[i]
		if p.Reason != "" {
			continue
		}
		if err := m.mountOne(ctx, p); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			p.Reason = err.Error()
			continue
		}
		mounted++
	}
	if mounted == 0 {
		return fmt.Errorf("nothing on the disk can be mounted: %s", m.reasons())
	}
	_, err := run(ctx, "mount", "-o", "remount,ro", m.o.Directory)
	return err
}

func (m *Mounted) reasons() string {
	var all []string
	for _, p := range m.Partitions {
		all = append(all, p.Name+": "+p.Reason)
	}
	if len(all) == 0 {
		return "its partition table is empty"
	}
	return strings.Join(all, "; ")
}

func (m *Mounted) mountOne(ctx context.Context, p *Partition) error {
	extra, ok := options[p.Type]
	switch {
	case p.Type == "":
		return errors.New("no file system was found")
	case !ok:
		return fmt.Errorf("%s is not mounted", p.Type)
	}
	kind := p.Type
	if driver := drivers[kind]; driver != "" {
		kind = driver
	}
	path := filepath.Join(m.o.Directory, p.Name)
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	list := fmt.Sprintf("%s,loop,offset=%d,sizelimit=%d", hardened, p.Off, p.Len)
	if extra != "" {
		list += "," + extra
	}
	if _, err := run(ctx, "mount", "-t", kind, "-o", list, m.file, path); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	p.Path = path
	return nil
}

// Wait returns when the context ends, or somebody has unmounted the directory (nil), or nbdfuse has ended (an error).
func (m *Mounted) Wait(ctx context.Context) error {
	tick := time.NewTicker(noticeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.exited:
			return errors.New("nbdfuse has ended: the files can no longer be read")
		case <-tick.C:
			if found, err := mountsAt(m.o.Directory); err == nil && len(found) == 0 {
				return nil
			}
		}
	}
}

// Close unmounts everything. What is in use after some seconds is detached: nobody finds it any more, and who has it open gets errors.
func (m *Mounted) Close() error {
	found, err := mountsAt(m.o.Directory)
	ours := func(e entry) bool { return e.point == m.o.Directory && e.source == owner(m.o.Folder) }
	if err == nil && slices.ContainsFunc(found, ours) { // or somebody else was faster
		err = unmountAll(m.o.Directory)
	}
	return errors.Join(err, m.endFuse())
}

// endFuse takes the file of the disk away, if there is one.
func (m *Mounted) endFuse() error {
	if m.fuse == nil || m.fuse.Process == nil {
		return nil
	}
	folder := filepath.Dir(m.file)
	for deadline := time.Now().Add(busyTime); ; time.Sleep(5 * pollEvery) { // a loop device lets go a moment after its unmount
		select {
		case <-m.exited:
			_ = removeFuse(folder) // if it left its mount
			return nil
		default:
		}
		_, err := run(context.Background(), "fusermount3", "-u", folder) // which nbdfuse notices
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			_ = removeFuse(folder)
			break
		}
	}
	select {
	case <-m.exited:
	case <-time.After(time.Second):
		_ = m.fuse.Process.Signal(syscall.SIGTERM)
		select {
		case <-m.exited:
		case <-time.After(busyTime):
			_ = m.fuse.Process.Kill()
			<-m.exited
		}
	}
	return nil
}
