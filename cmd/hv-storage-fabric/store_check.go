package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/check"
	"github.com/hyper-nixos/hyper-nixos/internal/secret"
)

func newStoreCheck(a *app) *cobra.Command {
	var most int
	var disks []string
	var keyFile string
	c := &cobra.Command{
		Use:   "check DATA_DIR",
		Short: "Read a whole store that no daemon has open, and say what is damaged",
		Long: `Read a whole store, log, metadata and segments, and say what is not as it should be, where, and which volumes that affects. Of volumes that share
what is damaged, as clones and snapshots do, the first that is met is named.
Of a store that is encrypted what is sealed is checked by its checksums alone, unless --key-file names the key: then every frame and log record is opened, and each chunk compared with its hash.
Nothing is changed. hvd must be stopped. The exit code is 0 when the store is whole and 1 when it is not; warnings do not count.`,
		Example: "  systemctl stop hvd && hv-storage-fabric store check /var/lib/hyper-nixos\n  hv-storage-fabric store check /srv/hv --disk /mnt/b/hv --disk /mnt/c/hv\n  hv-storage-fabric store check /srv/hv --key-file /etc/hyper-nixos/store.key\n  hv-storage-fabric store check ./data -o json | jq '.findings[].unit'",
		Args:    exactly("DATA_DIR"),
		RunE: func(c *cobra.Command, args []string) error {
			unwrap, err := unwrapWith(keyFile)
			if err != nil {
				return err
			}
			rep, err := check.Run(c.Context(), args[0], check.Options{MaxFindings: most, Disks: disks, Unwrap: unwrap})
			if err != nil {
				return locked(err)
			}
			if err := a.showDump(rep, &rep); err != nil {
				return err
			}
			if !rep.OK() {
				return fmt.Errorf("store %s is damaged: %d errors; restore what is affected, and its snapshots and clones, from a backup before hvd is started again", args[0], rep.Errors)
			}
			return nil
		},
	}
	c.Flags().StringSliceVar(&disks, "disk", nil, "directory of a further disk of the store (store.disks of hvd); may be repeated")
	_ = c.MarkFlagDirname("disk")
	addKeyFile(c, &keyFile)
	c.Flags().IntVar(&most, "max-findings", 1000, "print at most so many findings; the others are counted")
	return c
}

// addKeyFile adds the flag that names the key of an encrypted store.
func addKeyFile(c *cobra.Command, keyFile *string) {
	c.Flags().StringVar(keyFile, "key-file", "", "file of an age identity that opens the store, if it is encrypted (store.key-file of hvd)")
}

// unwrapWith reads a key file and returns what opens the slots of a store with it; nil without a file.
func unwrapWith(keyFile string) (check.Unwrap, error) {
	if keyFile == "" {
		return nil, nil
	}
	ids, err := secret.ReadIdentities(keyFile, secret.OwnerOnly)
	if err != nil {
		return nil, err
	}
	return func(sealed []byte) ([]byte, error) { return secret.Unwrap(sealed, maxWrapped, ids...) }, nil
}

// maxWrapped bounds the keys of a store as a slot has them, in bytes: 1,024 master keys in base64, and some more.
const maxWrapped = 128 << 10

// texter is what check.Dump* returns.
type texter interface{ WriteText(w io.Writer) error }

// showDump prints one document, as JSON or as the texts of its parts.
func (a *app) showDump(value any, parts ...texter) error {
	var failed error
	err := a.show(value, func() {
		for _, p := range parts {
			failed = errors.Join(failed, p.WriteText(a.out))
		}
	})
	return errors.Join(err, failed)
}

// locked marks a store in use as something that was refused.
func locked(err error) error {
	if errors.Is(err, block.ErrLocked) {
		return fmt.Errorf("%w: %w", err, errRefused)
	}
	return err
}

func newStoreDump(a *app) *cobra.Command {
	c := group(&cobra.Command{Use: "dump", Short: "Show what is on disk, decoded: superblocks, labels of disks, log, segments, parity, shards, index, pages, volumes"})
	c.AddCommand(
		a.dump("super", "", "Both superblocks", "", func(dir, _ string) error {
			d, err := check.DumpSuper(dir)
			if err != nil {
				return err
			}
			return a.showDump(d, d)
		}),
		a.newDumpLog(),
		a.dump("segment", "ID", "All segments; with the id of one, its frames and chunks", "17", a.dumpSegment),
		&cobra.Command{
			Use: "parity FILE", Short: "A parity sidecar; it needs neither its segment nor its store",
			Example: "  hv-storage-fabric store dump parity segments/2f/000000000000012f.00000001.par\n  hv-storage-fabric store dump parity FILE -o json",
			Args:    exactly("FILE"),
			RunE: func(_ *cobra.Command, args []string) error {
				d, err := check.DumpParity(args[0])
				if err != nil {
					return err
				}
				return a.showDump(d, d)
			},
		},
		&cobra.Command{
			Use: "shard FILE", Short: "A shard of a segment, of a store on several disks; it needs neither the others nor a store",
			Example: "  hv-storage-fabric store dump shard /mnt/b/hv/segments/2f/000000000000012f.00000001.3+1.01.04000000.shard\n  hv-storage-fabric store dump shard FILE -o json | jq .damagedColumns",
			Args:    exactly("FILE"),
			RunE: func(_ *cobra.Command, args []string) error {
				d, err := check.DumpShard(args[0])
				if err != nil {
					return err
				}
				return a.showDump(d, d)
			},
		},
		&cobra.Command{
			Use: "label FILE", Short: "The label of a directory of a disk: which directories were in sync, and since which generation",
			Example: "  hv-storage-fabric store dump label /mnt/b/hv/segments/members\n  hv-storage-fabric store dump label /mnt/b/hv/log/members -o json",
			Args:    exactly("FILE"),
			RunE: func(_ *cobra.Command, args []string) error {
				d, err := check.DumpLabel(args[0])
				if err != nil {
					return err
				}
				return a.showDump(d, d)
			},
		},
		&cobra.Command{
			Use: "copies FILE", Short: "The second copies of what very many references lead to",
			Example: "  hv-storage-fabric store dump copies /var/lib/hyper-nixos/copies",
			Args:    exactly("FILE"),
			RunE: func(_ *cobra.Command, args []string) error {
				d, err := check.DumpCopies(args[0])
				if err != nil {
					return err
				}
				return a.showDump(d, d)
			},
		},
		a.newDumpHistory(),
		a.dump("index", "", "The index of chunks by their hash, in short", "", func(dir, _ string) error {
			d, err := check.DumpIndex(dir)
			if err != nil {
				return err
			}
			return a.showDump(d, d)
		}),
		a.dump("page", "ID", "A region page or radix node of a map", "4711", func(dir, id string) error {
			n, err := dumpID(id)
			if err != nil {
				return err
			}
			d, err := check.DumpPage(dir, n)
			if err != nil {
				return err
			}
			return a.showDump(d, d)
		}),
		a.dump("volume", "NAME", "Volumes, their states and the counters of the store; with a name, one of them", "web1", func(dir, name string) error {
			d, err := check.DumpVolumes(dir, name)
			if err != nil {
				return err
			}
			return a.showDump(d, d)
		}),
	)
	return c
}

// dump makes the command for one kind of thing. which names the argument that chooses one of them; "" if there is none. Of pages there are too many to show all.
func (a *app) dump(kind, which, short, example string, f func(dir, id string) error) *cobra.Command {
	use, least, most := kind+" DATA_DIR", 1, 1
	switch {
	case kind == "page":
		use, least, most = use+" "+which, 2, 2
	case which != "":
		use, most = use+" ["+which+"]", 2
	}
	lines := "  hv-storage-fabric store dump " + kind + " /var/lib/hyper-nixos"
	if which != "" {
		lines += " " + example
	}
	return &cobra.Command{
		Use: use, Short: short, Example: lines + "\n" + lines + " -o json",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) < least || len(args) > most {
				return usagef("%s needs %s, got %s", c.CommandPath(), use[len(kind)+1:], counted(len(args), "argument"))
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error { return locked(f(args[0], append(args, "")[1])) },
	}
}

// newDumpLog is a dump that a key tells more: what control records of an encrypted store say.
func (a *app) newDumpLog() *cobra.Command {
	var keyFile string
	c := a.dump("log", "FILE", "The files of the log; with the id of one, as in its name, its records", "0000001a", func(dir, id string) error { return a.dumpLog(dir, id, keyFile) })
	c.Example += "\n  hv-storage-fabric store dump log /srv/hv 0000001a --key-file /etc/hyper-nixos/store.key"
	addKeyFile(c, &keyFile)
	return c
}

// newDumpHistory is another: what records did, and labels, are sealed in an encrypted store.
func (a *app) newDumpHistory() *cobra.Command {
	var keyFile, dir string
	c := &cobra.Command{
		Use: "history FILE", Short: "A file of a volume's history; it needs neither its store nor a key",
		Long: `Show a file of a volume's history: its frames, what their records did, and snapshots, marks, resizes and rollbacks. It needs neither its store nor a key; but of an encrypted store only --key-file opens what the records did.
The keys lie in the data directory of the store: the one that FILE lies in, unless --data-dir names it.`,
		Example: `  hv-storage-fabric store dump history /var/lib/hyper-nixos/history/0000000000000001/00000001.hist
  hv-storage-fabric store dump history FILE --key-file /etc/hyper-nixos/store.key
  hv-storage-fabric store dump history ./00000001.hist --key-file store.key --data-dir /srv/hv -o json | jq .points`,
		Args: exactly("FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			unwrap, err := unwrapWith(keyFile)
			if err != nil {
				return err
			}
			if dir != "" && unwrap == nil {
				return usagef("--data-dir names the store whose key --key-file has: give both")
			}
			d, err := check.DumpHistory(args[0], dir, unwrap)
			if err != nil {
				return err
			}
			return a.showDump(d, d)
		},
	}
	addKeyFile(c, &keyFile)
	c.Flags().StringVar(&dir, "data-dir", "", "data directory of the store, if FILE does not lie in it")
	_ = c.MarkFlagDirname("data-dir")
	return c
}

func (a *app) dumpLog(dir, id, keyFile string) error {
	unwrap, err := unwrapWith(keyFile)
	if err != nil {
		return err
	}
	n := uint32(0)
	if id != "" {
		if n, err = check.ParseLogID(id); err != nil {
			return err
		}
	}
	all, err := check.DumpLog(dir, n, unwrap)
	if err != nil {
		return err
	}
	return a.showDump(all, texts(all)...)
}

func (a *app) dumpSegment(dir, id string) error {
	n := uint64(0)
	if id != "" {
		var err error
		if n, err = dumpID(id); err != nil {
			return err
		}
	}
	all, err := check.DumpSegments(dir, n)
	if err != nil {
		return err
	}
	return a.showDump(all, texts(all)...)
}

func texts[T texter](all []T) (parts []texter) {
	for _, d := range all {
		parts = append(parts, d)
	}
	return parts
}

func dumpID(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 {
		return 0, usagef("%q is no id: want a number from 1 on", s)
	}
	return n, nil
}
