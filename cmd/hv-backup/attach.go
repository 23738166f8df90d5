package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// Bounds of the memory for frames of a backup that is served, bytes.
const (
	defaultCache units.Size = 64 << 20
	minCache     units.Size = 8 << 20
	maxCache     units.Size = 64 << 30
)

// attaching is the command attach.
type attaching struct {
	a      *app
	socket string
	cache  units.Size
}

func newAttach(a *app) *cobra.Command {
	t := &attaching{a: a, cache: defaultCache}
	c := &cobra.Command{
		Use:   "attach BACKUP",
		Short: "Serve a backup as a read-only NBD disk, straight from the repository",
		Long: `Serve a backup as a read-only NBD disk on a unix socket, until it is interrupted. Nothing is restored before: what a client reads is fetched from the repository, checked, and kept in a
cache; who reads on is read ahead for. A read of what is damaged gets an I/O error, and only that; standard error says which pack and where. The socket is this user's alone (0600).

The URI goes to nbdcopy, nbdinfo, nbdfuse, qemu-img, qemu-nbd, fio or a guest. Without --socket it is made in a private folder, which goes in the end. It needs an owner's keys.`,
		Example: `  hv-backup attach latest:web1 --repo /mnt/backup/vms
  hv-backup attach latest:web1 --socket /run/user/1000/web1.sock -o json --repo s3://bucket/vms
  qemu-img convert -p -O qcow2 'nbd+unix:///?socket=/run/user/1000/web1.sock' web1.qcow2`,
		Args: console.Exactly("BACKUP"),

		ValidArgsFunction: a.completeBackups(0, 1),
		RunE:              func(c *cobra.Command, args []string) error { return t.run(c.Context(), args[0]) },
	}
	c.Flags().StringVar(&t.socket, "socket", "", "where to listen (default a new private folder)")
	c.Flags().Var(&t.cache, "cache", "memory for what was read of the repository")
	return c
}

// checkCache bounds what --cache may say.
func checkCache(n units.Size) error {
	if n < minCache || n > maxCache {
		return console.Usagef("a cache of %s: give %s to %s", n.Human(), minCache.Human(), maxCache.Human())
	}
	return nil
}

func (t *attaching) run(ctx context.Context, name string) error {
	if err := checkCache(t.cache); err != nil {
		return err
	}
	r, err := t.a.openIndexed(ctx)
	if err != nil {
		return err
	}
	m, err := complete(ctx, t.a, r, name)
	if err != nil {
		return err
	}
	d, err := t.a.serve(r, m, t.socket, int(t.cache))
	if err != nil {
		return fmt.Errorf("attach %s: %w", m.Name, err)
	}
	out := map[string]any{"backup": m.Name, "uri": d.uri, "socket": d.socket, "sizeBytes": m.SizeBytes}
	if err := t.a.show(out, func() { t.a.say("%s", d.uri) }); err != nil {
		return errors.Join(err, d.close())
	}
	t.a.note("hv-backup: serving %s (%s); interrupt to end it", m.Name, units.Size(m.SizeBytes).Human())
	select {
	case <-ctx.Done():
	case <-d.ended: // by itself; close says why
	}
	return d.close()
}
