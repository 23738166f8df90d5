package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	"github.com/hyper-nixos/hyper-nixos/internal/secret"
)

// keyView is a key with -o json. Its fields are part of the interface.
type keyView struct {
	Recipient string    `json:"recipient"`
	Label     string    `json:"label"`
	Added     time.Time `json:"added"`
}

func newStoreKey(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "key",
		Short: "Keys of a store that is encrypted at rest: make, list, add, remove, rotate",
		Long: `A store is encrypted if hvd has a key (store.key-file or store.key-credential) when it makes it. Its master keys lie in the file "keys" of the data directory, wrapped for age recipients, each of which opens the store
alone. Without the file, or without any of the identities, nothing of the store can be read by anybody: keep copies of both, and a second recipient whose identity lies in a safe. hvd must be stopped for add, remove and rotate.`,
	})
	c.AddCommand(newKeyNew(a), newKeyList(a), newKeyAdd(a), newKeyRemove(a), newKeyRotate(a))
	return c
}

func newKeyNew(a *app) *cobra.Command {
	var classic bool
	c := &cobra.Command{
		Use:     "new FILE",
		Short:   "Make a key file for hvd, and print its recipient",
		Long:    "Make an age identity in a new file that only its owner can read, and print its recipient. It is of age's post-quantum hybrid, unless --x25519 asks for one that older programs know.",
		Example: "  hv-storage-fabric store key new /etc/hyper-nixos/store.key\n  hvd --data-dir /srv/store --store-key-file /etc/hyper-nixos/store.key",
		Args:    exactly("FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			text, recipient, err := newIdentity(classic)
			if err != nil {
				return err
			}
			if err := writeKeyFile(args[0], text); err != nil {
				return err
			}
			view := keyView{Recipient: recipient, Added: time.Now().UTC().Truncate(time.Second)}
			return a.show(view, func() { a.say("%s", recipient) })
		},
	}
	c.Flags().BoolVar(&classic, "x25519", false, "make an X25519 key, without post-quantum part")
	return c
}

func newIdentity(classic bool) (text, recipient string, err error) {
	if classic {
		id, err := age.GenerateX25519Identity()
		if err != nil {
			return "", "", fmt.Errorf("make a key: %w", err)
		}
		return id.String(), id.Recipient().String(), nil
	}
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		return "", "", fmt.Errorf("make a key: %w", err)
	}
	return id.String(), id.Recipient().String(), nil
}

// writeKeyFile makes a new file durable that its owner alone can read.
func writeKeyFile(path, identity string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	_, err = fmt.Fprintln(f, identity)
	return errors.Join(err, f.Sync(), f.Close())
}

func newKeyList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list DATA_DIR",
		Short:   "List whose keys open a store",
		Long:    "List the recipients whose identities open a store. It needs no key, and hvd may run.",
		Example: "  hv-storage-fabric store key list /var/lib/hyper-nixos\n  hv-storage-fabric store key list ./data -o json",
		Args:    exactly("DATA_DIR"),
		RunE: func(_ *cobra.Command, args []string) error {
			slots, err := blockstore.KeySlots(args[0])
			if err != nil {
				return err
			}
			views := []keyView{}
			for _, s := range slots {
				views = append(views, keyView{s.Recipient, s.Label, s.Added})
			}
			return a.show(views, func() {
				for _, v := range views {
					a.say("%s  %s  %s", v.Added.Format(time.DateOnly), v.Recipient, v.Label)
				}
			})
		},
	}
}

// editKeys makes a command that changes the keys of a closed store. arg names a second argument, or is empty.
func (a *app) editKeys(c *cobra.Command, arg string, edit func(f *keyring.File, r *keyring.Ring, arg string) (done string, err error)) *cobra.Command {
	var keyFile string
	var disks []string
	var dryRun bool
	names := []string{"DATA_DIR"}
	if arg != "" {
		names = append(names, arg)
	}
	c.Args = exactly(names...)
	c.RunE = func(_ *cobra.Command, args []string) error {
		ids, err := secret.ReadIdentities(keyFile, secret.OwnerOnly)
		if err != nil {
			return err
		}
		var done string
		err = blockstore.EditKeys(args[0], disks, ids, dryRun, func(f *keyring.File, r *keyring.Ring) (err error) {
			done, err = edit(f, r, args[len(args)-1])
			return err
		})
		if err != nil {
			return locked(err)
		}
		if dryRun {
			done = "would be done: " + done
		} else if several, err := blockstore.HasDisks(args[0]); err == nil && several && len(disks) == 0 {
			a.note("copies of the keys on further disks are as they were until hvd starts: name the disks with --disk to change them now")
		}
		return a.show(map[string]any{"done": done, "dryRun": dryRun}, func() { a.say("%s", done) })
	}
	c.Flags().StringVar(&keyFile, "key-file", "", "file of an age identity that opens the store")
	c.Flags().StringSliceVar(&disks, "disk", nil, "directory of a further disk of the store (store.disks of hvd), whose copy of the keys is changed, too; may be repeated")
	_ = c.MarkFlagDirname("disk")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing, and say what would be done")
	_ = c.MarkFlagRequired("key-file")
	return c
}

func newKeyAdd(a *app) *cobra.Command {
	var label string
	c := a.editKeys(&cobra.Command{
		Use:     "add DATA_DIR RECIPIENT --key-file FILE",
		Short:   "Let a further age recipient open a store",
		Example: "  hv-storage-fabric store key add /srv/store age1pq1... --key-file /etc/hyper-nixos/store.key --label safe",
	}, "RECIPIENT", func(f *keyring.File, r *keyring.Ring, recipient string) (string, error) {
		return "added " + recipient, f.Add(r, recipient, label, time.Now())
	})
	c.Flags().StringVar(&label, "label", "", "what to call it in lists")
	return c
}

func newKeyRemove(a *app) *cobra.Command {
	return a.editKeys(&cobra.Command{
		Use:   "remove DATA_DIR RECIPIENT --key-file FILE",
		Short: "Take a recipient's key to a store away",
		Long: `Take a recipient's key to a store away. Who has it still opens copies of the file "keys" that were made before, and with the master keys in them the data that was written so far. Rotate afterwards: what is written
from then on is sealed under a key that they never had. The last key is not removed.`,
		Example: "  hv-storage-fabric store key remove /srv/store age1... --key-file /etc/hyper-nixos/store.key --dry-run",
	}, "RECIPIENT", func(f *keyring.File, _ *keyring.Ring, recipient string) (string, error) {
		return "removed " + recipient + "; `store key rotate` keeps what is written from now on from its holder", f.Remove(recipient)
	})
}

func newKeyRotate(a *app) *cobra.Command {
	return a.editKeys(&cobra.Command{
		Use:   "rotate DATA_DIR --key-file FILE",
		Short: "Seal what is written from now on under a new master key",
		Long: `Make a new master key and wrap all anew for every recipient. No data is written again: what there is stays under the key that it names, and is sealed under the new one when garbage collection, cooling or the guest
writes it again. It takes effect with the next start of hvd.`,
		Example: "  systemctl stop hvd && hv-storage-fabric store key rotate /srv/store --key-file /etc/hyper-nixos/store.key && systemctl start hvd",
	}, "", func(f *keyring.File, r *keyring.Ring, _ string) (string, error) {
		if err := r.Rotate(); err != nil {
			return "", err
		}
		return fmt.Sprintf("what is written from now on is sealed under master key %d", r.Current()), f.Rewrap(r)
	})
}
