package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/blockstore/forecast"
	"github.com/hyper-nixos/hyper-nixos/control/transfer"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// predictionView is what one setting would come to, with -o json. Its fields are part of the interface.
type predictionView struct {
	Chunking      string  `json:"chunking"`
	NonZeroBytes  uint64  `json:"nonZeroBytes"`
	UniqueBytes   uint64  `json:"uniqueBytes"`
	UniqueError   float64 `json:"uniqueError"`
	StoredBytes   uint64  `json:"storedBytes"`
	StoredError   float64 `json:"storedError"`
	Chunks        uint64  `json:"chunks"`
	IndexMemory   uint64  `json:"indexMemoryBytes"`
	IndexDisk     uint64  `json:"indexDiskBytes"`
	SampledOneIn  uint64  `json:"sampledOneIn"`
	StoredPerByte float64 `json:"storedPerByte"` // with the index, per non-zero byte
}

func newStoreWhatIf(a *app) *cobra.Command {
	var chunks []string
	var volume, file string
	var progress bool
	c := &cobra.Command{
		Use:   "whatif --chunk SIZE[,SIZE…] [--volume NAME | --file IMAGE]",
		Short: "Predict what data would take if it were cut otherwise",
		Long: `Predict from real data what it would take, and what its index would, if it were cut otherwise: of one volume, of all, or of a raw image that is in no store yet (for which hvd need not run).
A size such as 8KiB cuts by content with that average, fixed:64KiB at fixed offsets. Snapshots are not looked at.

All of the data is read, cut and hashed, for each setting, in this process; volumes come from hvd as exports do. Of each setting at most 262,144 chunks are kept, those with the lowest hashes, and one frame
in four of these is compressed, so that memory is bounded; where that makes the result uncertain, the half of the interval that holds the truth in 19 of 20 cases is printed.`,
		Example: "  hv-storage-fabric store whatif --chunk 8KiB,16KiB,64KiB --volume web1\n  hv-storage-fabric store whatif --chunk 16KiB,fixed:4KiB --file debian.raw -o json",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			if volume != "" && file != "" {
				return usagef("--volume and --file exclude each other")
			}
			cuts, err := parseCuts(chunks)
			if err != nil {
				return err
			}
			f, err := forecast.New(cuts)
			if err != nil {
				return err
			}
			if file != "" {
				err = a.forecastFile(c.Context(), f, file, progress)
			} else {
				err = a.forecastVolumes(c.Context(), f, volume, progress)
			}
			if err != nil {
				return err
			}
			return a.showPredictions(f.Predict())
		},
	}
	c.Flags().StringSliceVar(&chunks, "chunk", []string{"8KiB", "16KiB", "64KiB"}, fmt.Sprintf("at most %d settings: an average size, or fixed:SIZE", forecast.MaxSettings))
	c.Flags().StringVar(&volume, "volume", "", "look at this volume (default: at all)")
	c.Flags().StringVar(&file, "file", "", "look at this raw image or block device")
	c.Flags().BoolVar(&progress, "progress", false, "tell the progress even when standard error is no terminal")
	_ = c.RegisterFlagCompletionFunc("chunk", cobra.FixedCompletions([]string{"8KiB", "16KiB", "64KiB", "fixed:"}, cobra.ShellCompDirectiveNoSpace|cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("volume", func(c *cobra.Command, _ []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return a.completeVolumes(c, nil, text)
	})
	return c
}

// parseCuts reads settings: sizes, or fixed:SIZE.
func parseCuts(texts []string) ([]cdc.Params, error) {
	cuts := make([]cdc.Params, 0, len(texts))
	for _, text := range texts {
		size, fixed := strings.CutPrefix(text, "fixed:")
		n, err := units.ParseSize(strings.TrimPrefix(size, "cdc:"))
		if err != nil {
			return nil, usagef("--chunk %q: %v", text, err)
		}
		cut := cdc.Default()
		if avg := uint32(min(uint64(n), 1<<30)); fixed {
			cut = cdc.FixedSize(avg)
		} else {
			cut.Min, cut.Avg, cut.Max = avg/4, avg, avg*4
		}
		if err := cut.Validate(); err != nil {
			return nil, usagef("--chunk %q: %v", text, err)
		}
		cuts = append(cuts, cut)
	}
	if len(cuts) == 0 || len(cuts) > forecast.MaxSettings {
		return nil, usagef("--chunk with %s: want 1 to %d", counted(len(cuts), "setting"), forecast.MaxSettings)
	}
	return cuts, nil
}

// runs gathers what comes of a volume into runs inside one region, as hvd would cut them.
type runs struct {
	f   *forecast.Forecast
	buf []byte
	off uint64 // of buf in the volume
}

func (r *runs) data(p []byte, off uint64) error {
	for len(p) > 0 {
		if end := r.off + uint64(len(r.buf)); len(r.buf) > 0 && (off != end || end%block.RegionSize == 0) {
			if err := r.flush(); err != nil {
				return err
			}
		}
		if len(r.buf) == 0 {
			r.off = off
		}
		n := min(uint64(len(p)), block.RegionSize-off%block.RegionSize)
		r.buf = append(r.buf, p[:n]...)
		p, off = p[n:], off+n
	}
	return nil
}

func (r *runs) hole(uint64, uint64) error { return r.flush() }

func (r *runs) flush() error {
	err := r.f.Add(r.buf, r.off)
	r.buf = r.buf[:0]
	return err
}

// forecastFile reads a raw image.
func (a *app) forecastFile(ctx context.Context, f *forecast.Forecast, path string, progress bool) error {
	in, err := a.openInput(path, 0, false)
	if err != nil {
		return err
	}
	defer in.close()
	if in.file == nil {
		return usagef("--file %s: give a raw image or a block device", path)
	}
	meter := a.newMeter("reading", in.size, progress)
	defer meter.End()
	source, to, buf := fileSource{in.file, in.size}, runs{f: f}, make([]byte, 1<<20)
	for off := uint64(0); off < in.size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		next, err := source.NextData(off)
		if err != nil {
			return err
		}
		if off = min(next, in.size); off == in.size {
			break
		}
		p := buf[:min(uint64(len(buf)), in.size-off)]
		if _, err := source.ReadAt(ctx, p, off, nil); err != nil {
			return err
		}
		if err := to.data(p, off); err != nil {
			return err
		}
		off += uint64(len(p))
		meter.At(off)
	}
	return to.flush()
}

// forecastVolumes reads one volume, or all.
func (a *app) forecastVolumes(ctx context.Context, f *forecast.Forecast, volume string, progress bool) error {
	api, err := a.connect()
	if err != nil {
		return err
	}
	names := []string{volume}
	if volume == "" {
		reply, err := client.ListVolumes(ctx, api)
		if err != nil {
			return err
		}
		names = names[:0]
		for _, v := range reply.Volumes {
			names = append(names, v.Name)
		}
	}
	for _, name := range names {
		stream, body, err := api.Export(ctx, name, "")
		if err != nil {
			return err
		}
		meter := a.newMeter("reading "+name, knownSize(stream), progress)
		to := &runs{f: f}
		err = drain(stream, to, meter)
		meter.End()
		if err = errors.Join(err, to.flush(), body.Close()); err != nil {
			return fmt.Errorf("read volume %s: %w", name, err)
		}
	}
	return nil
}

func knownSize(r *transfer.Reader) uint64 {
	if n := r.Size(); n != transfer.UnknownSize {
		return n
	}
	return 0
}

func (a *app) showPredictions(all []forecast.Prediction) error {
	views := make([]predictionView, 0, len(all))
	rows := make([][]string, 0, len(all))
	off := func(n uint64, by float64) string {
		text := units.Size(n).Human()
		if by > 0 && n > 0 {
			text += fmt.Sprintf(" ± %.1f %%", 100*by)
		}
		return text
	}
	for _, p := range all {
		memory, disk := blockstore.IndexBytes(p.Chunks, p.Mentions)
		v := predictionView{
			Chunking: cutText(p.Cut), NonZeroBytes: p.NonZeroBytes, UniqueBytes: p.UniqueBytes, UniqueError: p.UniqueError, StoredBytes: p.StoredBytes, StoredError: p.StoredError,
			Chunks: p.Chunks, IndexMemory: memory, IndexDisk: disk, SampledOneIn: p.KeptOneIn,
		}
		perByte := "-"
		if p.NonZeroBytes > 0 {
			v.StoredPerByte = float64(p.StoredBytes+disk) / float64(p.NonZeroBytes)
			perByte = fmt.Sprintf("%.3f", v.StoredPerByte)
		}
		views = append(views, v)
		rows = append(rows, []string{v.Chunking, off(p.UniqueBytes, p.UniqueError), off(p.StoredBytes, p.StoredError), units.Size(disk).Human(), perByte, fmt.Sprint(p.Chunks), units.Size(memory).Human()})
	}
	return a.show(views, func() {
		a.say("non-zero data: %s", units.Size(all[0].NonZeroBytes).Human())
		a.say("")
		a.table([]string{"CHUNKING", "UNIQUE", "STORED", "INDEX", "PER BYTE", "CHUNKS", "INDEX RAM"}, rows)
	})
}

// cutText is a setting as --chunk takes it.
func cutText(p cdc.Params) string {
	if p.Kind == cdc.Fixed {
		return "fixed:" + units.Size(p.Avg).String()
	}
	return units.Size(p.Avg).String()
}
