package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/control/transfer"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

func newVolumeExport(a *app) *cobra.Command {
	var progress bool
	c := &cobra.Command{
		Use:   "export NAME[@SNAPSHOT] FILE|-",
		Short: "Write a volume or a snapshot to a raw image, a device or standard output",
		Long: `Write a snapshot, or a volume as it is at this moment, to a raw image, a block device or, with -, to standard output. The volume may be
attached and written to meanwhile. An image is sparse; it gets its name, and replaces a file of that name, when it is complete.`,
		Example: `  hv-storage-fabric volume export web1@before-upgrade web1.raw
  hv-storage-fabric volume export web1 - | zstd > web1.raw.zst`,
		Args:              exactly("NAME[@SNAPSHOT]", "FILE|-"),
		ValidArgsFunction: a.completeVolumes,
		RunE: func(c *cobra.Command, args []string) error {
			volume, snapshot, err := splitSnapshot(args[0])
			if err != nil {
				return err
			}
			if args[1] == "-" && a.output == "json" {
				return usagef("the data and -o json cannot both go to standard output")
			}
			api, err := a.connect()
			if err != nil {
				return err
			}
			stream, body, err := api.Export(c.Context(), volume, snapshot)
			if err != nil {
				return err
			}
			meter := a.newMeter("exporting", stream.Size(), progress)
			err = a.exportTo(args[1], stream, meter)
			meter.End()
			if err = errors.Join(err, body.Close()); err != nil {
				return fmt.Errorf("export %s to %s: %w", args[0], args[1], err)
			}
			if args[1] == "-" {
				return nil
			}
			return a.show(map[string]any{"volume": volume, "snapshot": snapshot, "file": args[1], "sizeBytes": stream.Size()}, func() {
				a.say("exported %s to %s (%s)", args[0], args[1], units.Size(stream.Size()).Human())
			})
		},
	}
	c.Flags().BoolVar(&progress, "progress", false, "tell the progress even when standard error is no terminal")
	return c
}

func (a *app) exportTo(path string, stream *transfer.Reader, m *console.Meter) error {
	if path == "-" {
		out := bufio.NewWriterSize(a.out, 1<<20)
		return errors.Join(drain(stream, pipeOutput{out}, m), out.Flush())
	}
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return usagef("%s is a directory", path)
	case err == nil && !info.Mode().IsRegular():
		return toDevice(path, stream, m)
	}
	return toFile(path, stream, m)
}

// output takes content from front to back.
type output interface {
	data(p []byte, off uint64) error
	hole(off, length uint64) error
}

// drain writes a stream to its end.
func drain(stream *transfer.Reader, out output, m *console.Meter) error {
	var buffer []byte
	lend := func(n int) []byte {
		if cap(buffer) < n {
			buffer = make([]byte, n)
		}
		return buffer[:n]
	}
	for {
		piece, err := stream.Next(lend)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case piece.Data != nil:
			err = out.data(piece.Data, piece.Off)
		default:
			err = out.hole(piece.Off, piece.Length)
		}
		if err != nil {
			return err
		}
		m.At(piece.Off + piece.Length)
	}
}

// toFile writes a new sparse file next to path, and puts it in place when it is complete and on disk.
func toFile(path string, stream *transfer.Reader, m *console.Meter) error {
	return transfer.NewFile(path, stream.Size(), func(f *os.File) error { return drain(stream, fileOutput{f}, m) })
}

// toDevice overwrites a block device, or writes to a pipe that has a name.
func toDevice(path string, stream *transfer.Reader, m *console.Meter) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if end, err := f.Seek(0, io.SeekEnd); err == nil && uint64(end) < stream.Size() {
		return errors.Join(fmt.Errorf("it has %d bytes, the volume has %d", end, stream.Size()), f.Close())
	}
	_, seekErr := f.Seek(0, io.SeekStart)
	err = drain(stream, pipeOutput{f}, m)
	if seekErr == nil && err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// fileOutput leaves holes as they are: the file is new.
type fileOutput struct{ f *os.File }

func (o fileOutput) data(p []byte, off uint64) error {
	_, err := o.f.WriteAt(p, int64(off))
	return err
}

func (fileOutput) hole(uint64, uint64) error { return nil }

// pipeOutput writes holes as zeroes.
type pipeOutput struct{ w io.Writer }

func (o pipeOutput) data(p []byte, _ uint64) error {
	_, err := o.w.Write(p)
	return err
}

func (o pipeOutput) hole(_, length uint64) error {
	zeroes := make([]byte, min(length, 1<<20))
	for length > 0 {
		n, err := o.w.Write(zeroes[:min(length, uint64(len(zeroes)))])
		if err != nil {
			return err
		}
		length -= uint64(n)
	}
	return nil
}
