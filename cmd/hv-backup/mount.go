package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/backup/mount"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// mounting is the command mount.
type mounting struct {
	a      *app
	cache  units.Size
	others bool
}

func newMount(a *app) *cobra.Command {
	m := &mounting{a: a, cache: defaultCache}
	c := &cobra.Command{
		Use:   "mount BACKUP DIRECTORY",
		Short: "Make the files of a backup browsable, read-only",
		Long: `Mount the partitions of a backup below an empty directory, read-only, until it is interrupted or ` + "`hv-backup unmount DIRECTORY`" + ` ends it: DIRECTORY/p1 is partition 1 and so on, DIRECTORY/disk
a file system without partitions. Nothing is restored before: what is read is fetched from the repository, and checked.

It needs root, nbdfuse (Debian: libnbd-bin), fusermount3 (fuse3), mount, blkid and sfdisk. ext2 to ext4, xfs, btrfs, vfat, exfat, ntfs, iso9660, udf, squashfs and erofs are mounted; LVM, RAID and
encrypted partitions are named and left out. Journals are not replayed, so the last changes before a backup of a running guest may be missing.

Mounts are ro,nosuid,nodev,noexec. Still the kernel parses what the guest wrote, and a symbolic link of the guest may lead to a file of this host: for guests that you do not trust
use ` + "`hv-backup attach`" + ` and guestmount, which does that in a virtual machine.`,
		Example: `  hv-backup mount latest:web1 /mnt/web1 --repo /mnt/backup/vms
  cp /mnt/web1/p1/etc/fstab . && hv-backup unmount /mnt/web1`,
		Args: console.Exactly("BACKUP", "DIRECTORY"),
		ValidArgsFunction: func(c *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return nil, cobra.ShellCompDirectiveFilterDirs
			}
			return a.completeBackups(0, 1)(c, args, text)
		},
		RunE: func(c *cobra.Command, args []string) error { return m.run(c.Context(), args[0], args[1]) },
	}
	c.Flags().Var(&m.cache, "cache", "memory for what was read of the repository")
	c.Flags().BoolVar(&m.others, "allow-others", false, "users other than root may look, as far as the modes of files let them")
	return c
}

func (m *mounting) run(ctx context.Context, name, directory string) error {
	if err := checkCache(m.cache); err != nil {
		return err
	}
	if err := mount.Check(); err != nil {
		return err
	}
	directory, err := realPath(directory)
	if err != nil {
		return fmt.Errorf("mount point: %w; make an empty folder", err)
	}
	if err := mount.CheckDirectory(directory); err != nil {
		return err
	}
	r, err := m.a.openIndexed(ctx)
	if err != nil {
		return err
	}
	b, err := complete(ctx, m.a, r, name)
	if err != nil {
		return err
	}
	d, err := m.a.serve(r, b, "", int(m.cache))
	if err != nil {
		return fmt.Errorf("mount %s: %w", b.Name, err)
	}
	mounted, err := mount.New(ctx, mount.Options{URI: d.uri, SizeBytes: b.SizeBytes, Directory: directory, Folder: d.folder, Others: m.others})
	if err != nil {
		return fmt.Errorf("mount %s: %w", b.Name, errors.Join(err, d.close()))
	}
	out := map[string]any{"backup": b.Name, "directory": directory, "partitions": mounted.Partitions}
	err = m.a.show(out, func() { m.say(mounted.Partitions) })
	if err == nil {
		m.a.note("hv-backup: %s is mounted; interrupt, or run `hv-backup unmount %s`, to end it", b.Name, directory)
		err = mounted.Wait(ctx)
	}
	return errors.Join(err, mounted.Close(), d.close())
}

func (m *mounting) say(parts []mount.Partition) {
	rows := make([][]string, len(parts))
	for i, p := range parts {
		rows[i] = []string{p.Name, units.Size(p.Len).Human(), p.Type, p.Label, p.Path + p.Reason}
	}
	console.Table(m.a.out, m.a.getenv, []string{"PART", "SIZE", "TYPE", "LABEL", "MOUNTED"}, rows)
}

// realPath is the path of a directory as the kernel's list of mounts names it.
func realPath(directory string) (string, error) {
	path, err := filepath.EvalSymlinks(directory)
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}

func newUnmount(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "unmount DIRECTORY",
		Short:   "Unmount what `mount` has mounted",
		Long:    "Unmount a backup, and end the process that serves it. What is in use after ten seconds is detached all the same. If that process has died, what it left is removed.",
		Example: "  hv-backup unmount /mnt/web1",
		Aliases: []string{"umount"},
		Args:    console.Exactly("DIRECTORY"),
		RunE: func(c *cobra.Command, args []string) error {
			path, err := realPath(args[0])
			if err != nil {
				return err
			}
			if err := mount.Unmount(c.Context(), path); err != nil {
				return err
			}
			return a.show(map[string]string{"directory": path}, func() { a.say("unmounted %s", path) })
		},
	}
}
