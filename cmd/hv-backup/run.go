package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/control/transfer"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

func newRun(a *app) *cobra.Command {
	var tags []string
	var file bool
	c := &cobra.Command{
		Use:   "run VOLUME[@SNAPSHOT] | run --file IMAGE",
		Short: "Back up a volume of hvd, a raw image or a block device",
		Long: `Back up a volume of hvd as it is at this moment, attached or not, one of its snapshots, or, with --file, a raw image or a block device. Only what the repository does not have yet is
stored. An interrupt leaves the repository as it was; the next run does not store again what is there.`,
		Example: `  hv-backup run web1 --tag daily --repo /mnt/backup/vms
  hv-backup run --file old-disk.raw --repo /mnt/backup/vms`,
		Args: console.Exactly("VOLUME or IMAGE"),
		RunE: func(c *cobra.Command, args []string) error {
			ctx := c.Context()
			r, err := a.openIndexed(ctx)
			if err != nil {
				return err
			}
			if _, err := r.Adopt(ctx, a.warn); err != nil {
				return err
			}
			m := &repository.Manifest{Tags: tags}
			src, end, err := a.source(ctx, args[0], file, m)
			if err != nil {
				return err
			}
			began := time.Now()
			meter := a.newMeter("backing up", src.Size())
			err = backup.Run(ctx, r, src, m, func(p backup.Progress) {
				meter.Also = units.Size(p.NewBytes).Human() + " new"
				meter.At(p.DoneBytes)
			})
			meter.End()
			if err = errors.Join(err, end()); err != nil {
				return fmt.Errorf("back up %s: %w", args[0], err)
			}
			took := time.Since(began)
			return a.show(map[string]any{"backup": m.Name, "sizeBytes": m.SizeBytes, "nonZeroBytes": m.NonZero, "newBytes": m.NewBytes, "storedBytes": m.StoredBytes, "seconds": took.Seconds()}, func() {
				a.say("backed up %s as %s: %s of data, %s new, %s stored", args[0], m.Name, units.Size(m.NonZero).Human(), units.Size(m.NewBytes).Human(), units.Size(m.StoredBytes).Human())
			})
		},
	}
	c.Flags().StringArrayVar(&tags, "tag", nil, "a word to find the backup by; may be repeated")
	c.Flags().BoolVar(&file, "file", false, "the argument is a raw image or a block device")
	return c
}

// source opens what shall be backed up and says what it is in the manifest. end closes it.
func (a *app) source(ctx context.Context, name string, file bool, m *repository.Manifest) (src backup.Source, end func() error, err error) {
	m.Source.Host, _ = os.Hostname()
	if file {
		path, err := filepath.Abs(name)
		if err != nil {
			return nil, nil, err
		}
		f, err := backup.OpenFile(path)
		if err != nil {
			return nil, nil, err
		}
		m.Source.Kind, m.Source.Name, m.Consistency = "file", path, "offline"
		return f, f.Close, nil
	}
	volume, snapshot, _ := strings.Cut(name, "@")
	api, err := a.hvd()
	if err != nil {
		return nil, nil, err
	}
	stream, body, err := api.Export(ctx, volume, snapshot)
	if err != nil {
		return nil, nil, err
	}
	m.Source.Kind, m.Source.Name, m.Consistency = "volume", volume, "crash"
	return &volumeStream{stream: stream}, body.Close, nil
}

// volumeStream is a volume that hvd exports, as a source of regions in order.
type volumeStream struct {
	stream *transfer.Reader
	piece  transfer.Piece // what is left of the last one
}

// Size implements backup.Source.
func (v *volumeStream) Size() uint64 { return v.stream.Size() }

// Region implements backup.Source. Pieces come in order and cover the volume.
func (v *volumeStream) Region(_ context.Context, p []byte, off uint64) (zero bool, err error) {
	zero = true
	for done := 0; done < len(p); {
		if v.piece.Length == 0 {
			if v.piece, err = v.stream.Next(func(n int) []byte { return make([]byte, n) }); err != nil {
				if errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				return false, err
			}
		}
		if at := off + uint64(done); v.piece.Off != at {
			return false, fmt.Errorf("the stream goes on at %d instead of %d", v.piece.Off, at)
		}
		n := int(min(uint64(len(p)-done), v.piece.Length))
		if v.piece.Data != nil {
			if zero {
				clear(p[:done])
				zero = false
			}
			copy(p[done:done+n], v.piece.Data)
			v.piece.Data = v.piece.Data[n:]
		} else if !zero {
			clear(p[done : done+n])
		}
		v.piece.Off, v.piece.Length = v.piece.Off+uint64(n), v.piece.Length-uint64(n)
		done += n
	}
	if off+uint64(len(p)) == v.Size() {
		return zero, v.end()
	}
	return zero, nil
}

// end reads the end of the stream: without it the volume is not whole.
func (v *volumeStream) end() error {
	piece, err := v.stream.Next(func(n int) []byte { return make([]byte, n) })
	if err == nil {
		return fmt.Errorf("the stream goes on at %d, behind the end of the volume", piece.Off)
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}
