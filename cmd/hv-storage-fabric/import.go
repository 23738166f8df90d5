package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/transfer"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

func newVolumeImport(a *app) *cobra.Command {
	opts := client.ImportOptions{}
	var size volumeSize
	var progress bool
	c := &cobra.Command{
		Use:   "import NAME FILE|-",
		Short: "Make a volume from a raw image, a device or standard input",
		Long: `Make a volume from a raw image, a block device or, with -, from standard input. Holes and zeroes are not sent. The volume is as large
as the input, rounded up to 512 bytes, and appears when all of it is in the store.

An import that fails, is interrupted, or whose pipe ends before --size leaves no volume, unless --keep-partial is given. A pipe without
--size is read to its end: what comes before that is taken for the whole.`,
		Example: `  hv-storage-fabric volume import debian debian-12.raw
  qemu-img convert -O raw disk.qcow2 disk.raw && hv-storage-fabric volume import disk disk.raw
  xzcat disk.raw.xz | hv-storage-fabric volume import disk - --size 20GiB`,
		Args: exactly("NAME", "FILE|-"),
		RunE: func(c *cobra.Command, args []string) error {
			opts.Name = args[0]
			if _, err := parseMode(opts.Mode); err != nil {
				return err
			}
			api, err := a.connect()
			if err != nil {
				return err
			}
			in, err := a.openInput(args[1], size.Size, c.Flags().Changed("size"))
			if err != nil {
				return err
			}
			defer in.close()
			volume, err := a.importFrom(c.Context(), api, opts, in, progress)
			if err != nil {
				return err
			}
			return a.show(volume, func() { a.say("imported volume %s (%s)", volume.Name, units.Size(volume.SizeBytes).Human()) })
		},
	}
	c.Flags().Var(&size, "size", "of what comes from a pipe; less or more is an error (default: until its end)")
	c.Flags().BoolVar(&opts.KeepPartial, "keep-partial", false, "keep what came when the import fails")
	c.Flags().BoolVar(&progress, "progress", false, "tell the progress even when standard error is no terminal")
	chunkingFlag(c, &opts.Chunking)
	modeFlag(c, &opts.Mode)
	return c
}

// input is what an import reads.
type input struct {
	file   *os.File  // with a size and holes; nil for a pipe
	stream io.Reader // a pipe; nil for a file
	size   uint64    // bytes, or transfer.UnknownSize
}

func (in *input) close() {
	if in.file != nil {
		_ = in.file.Close() // it was only read
	}
}

// openInput opens a file or device, or takes standard input.
func (a *app) openInput(path string, size units.Size, hasSize bool) (*input, error) {
	in := &input{size: transfer.UnknownSize}
	if hasSize {
		in.size = uint64(size)
	}
	if path == "-" {
		in.stream = a.in
		return in, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = usagef("%s is a directory; give a raw image, a block device or -", path)
	}
	if err != nil {
		return nil, fmt.Errorf("image: %w", errors.Join(err, f.Close()))
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		in.file = f
		if hasSize && uint64(end) != in.size {
			return nil, errors.Join(usagef("%s has %d bytes, not the %d of --size", path, end, in.size), f.Close())
		}
		in.size = uint64(end)
		return in, nil
	}
	in.stream = f // a named pipe
	return in, nil
}

// importFrom sends the input. An interrupt cuts the stream, which undoes the import.
func (a *app) importFrom(ctx context.Context, api *client.Client, opts client.ImportOptions, in *input, progress bool) (client.Imported, error) {
	total := in.size
	if total == transfer.UnknownSize {
		total = 0
	}
	meter := a.newMeter("importing", total, progress)
	defer meter.End()
	volume, err := api.Import(ctx, opts, func(ctx context.Context, w io.Writer) error {
		stream, err := transfer.NewWriter(w, in.size)
		if err != nil {
			return err
		}
		if in.file != nil {
			err = transfer.Send(ctx, stream, fileSource{in.file, in.size}, in.size, meter.At)
		} else {
			err = transfer.SendStream(ctx, stream, in.stream, in.size, meter.At)
		}
		if err != nil {
			return errors.Join(err, stream.Fail("the import was stopped: "+err.Error()))
		}
		return nil
	})
	return volume, err
}

// fileSource reads a file or device, and knows its holes.
type fileSource struct {
	file *os.File
	size uint64
}

var _ transfer.Sparse = fileSource{}

// ReadAt implements transfer.Source.
func (s fileSource) ReadAt(_ context.Context, p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	n, err := s.file.ReadAt(p, int64(off))
	if err != nil && n < len(p) {
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("it became shorter: %w", io.ErrUnexpectedEOF)
		}
		return holes, fmt.Errorf("read %s at %d: %w", s.file.Name(), off+uint64(n), err)
	}
	return holes, nil
}

// NextData implements transfer.Sparse.
func (s fileSource) NextData(off uint64) (uint64, error) {
	next, err := unix.Seek(int(s.file.Fd()), int64(off), unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return s.size, nil // only a hole is left
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ESPIPE):
		return off, nil // a file system or device that does not tell
	case err != nil:
		return 0, fmt.Errorf("look for data in %s at %d: %w", s.file.Name(), off, err)
	}
	return uint64(next), nil
}
