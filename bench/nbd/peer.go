package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// peerNames are the servers that only copy bytes, by what this program calls them.
var peerNames = []string{"qemu-nbd", "nbdkit"}

// peer is such a server over a raw file.
type peer struct {
	name   string
	file   string
	socket string
	proc   *process
}

// startPeer makes a sparse file and starts the server on it.
func (b *bench) startPeer(ctx context.Context, name string) (*peer, error) {
	p := &peer{name: name, file: filepath.Join(b.dir, name+".raw"), socket: filepath.Join(b.dir, name+".sock")}
	f, err := os.Create(p.file)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(int64(b.o.volume)); err != nil {
		return nil, fmt.Errorf("make %s: %w", p.file, err)
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	args := []string{"qemu-nbd", "-f", "raw", "--cache=writeback", "--aio=threads", "--persistent", "--shared=0", "--socket=" + p.socket, p.file}
	if name == "nbdkit" {
		args = []string{"nbdkit", "--foreground", "--unix", p.socket, "file", p.file}
	}
	if p.proc, err = startProcess(name, filepath.Join(b.dir, name+".log"), args); err != nil {
		return nil, err
	}
	if err := p.proc.listening(ctx, p.socket); err != nil {
		return p, err
	}
	return p, nil
}

// remove ends the server and takes its file away.
func (p *peer) remove() error { return errors.Join(p.proc.stop(), os.Remove(p.file)) }

func (p *peer) uri() string { return "nbd+unix:///?socket=" + p.socket }
