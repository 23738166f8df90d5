package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/backup/files"
	"github.com/hyper-nixos/hyper-nixos/backup/gauge"
	"github.com/hyper-nixos/hyper-nixos/backup/pack"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// benching is the command bench.
type benching struct {
	a            *app
	file, volume string
	backup       string
	sample, most units.Size
	object, read units.Size
	span         units.Span
	requests     []int
}

// benched is what was measured, with -o json.
type benched struct {
	Repository string           `json:"repository,omitempty"`
	Data       *benchedData     `json:"data,omitempty"`
	Storage    []benchedStorage `json:"storage,omitempty"`
	Restore    *benchedRestore  `json:"restore,omitempty"`
	First      *benchedFirst    `json:"firstBackup,omitempty"`
}

// benchedData is what was measured of sampled data. Rates are in bytes before compression, of all workers together.
type benchedData struct {
	Source          string  `json:"source"`
	SourceBytes     uint64  `json:"sourceBytes"`
	SampledBytes    uint64  `json:"sampledBytes"`
	NonZeroBytes    uint64  `json:"nonZeroBytes"`
	UniqueBytes     uint64  `json:"uniqueBytes"`
	CompressedBytes uint64  `json:"compressedBytes"`
	Ratio           float64 `json:"ratio"`
	Workers         int     `json:"workers"`
	Read            float64 `json:"readBytesPerSecond"`
	Cut             float64 `json:"cutAndHashBytesPerSecond"`
	Compress        float64 `json:"compressBytesPerSecond"`
	Seal            float64 `json:"sealBytesPerSecond"`
	Open            float64 `json:"openBytesPerSecond"`
}

// benchedStorage is what was measured with so many requests in flight.
type benchedStorage struct {
	Operation   string  `json:"operation"` // "put", "get" or "delete"
	InFlight    int     `json:"inFlight"`
	Count       int     `json:"count"`
	BytesEach   int     `json:"bytesEach"`
	Bytes       uint64  `json:"bytes"`
	Rate        float64 `json:"bytesPerSecond"`
	Requests    float64 `json:"requestsPerSecond"`
	Millisecond struct {
		P50     float64 `json:"p50"`
		P99     float64 `json:"p99"`
		Slowest float64 `json:"slowest"`
	} `json:"milliseconds"`
}

type benchedRestore struct {
	Backup  string  `json:"backup"`
	Bytes   uint64  `json:"bytes"`
	Seconds float64 `json:"seconds"`
	Rate    float64 `json:"bytesPerSecond"`
}

// benchedFirst is how fast a first backup of the data would be, at best.
type benchedFirst struct {
	Rate   float64 `json:"bytesPerSecond"`
	HeldBy string  `json:"heldBy"` // "source", "processor" or "storage"
}

func newBench(a *app) *cobra.Command {
	b := &benching{a: a, sample: 512 << 20, most: 512 << 20, object: pack.TargetSize, read: 512 << 10, span: 5, requests: []int{1, 4, 16}}
	c := &cobra.Command{
		Use:   "bench [--file IMAGE | --volume VOLUME]",
		Short: "Measure how fast backups are here: your data, this machine, your repository",
		Long: `Measure how fast backups are here. With --file or --volume a sample from all over an image or a volume is read, cut, hashed, compressed, sealed, and opened again: how fast each of these is, by all workers together, and how much smaller the data becomes,
by dedup within the sample and compression. With a repository its place is measured: how fast it takes objects as large as packs and gives pieces as large as frames, and how long one request takes, with 1, 4 and 16 in flight. If there are backups, one is restored to nowhere.

What is measured by is what backups do, with the repository's own cut. Objects of random bytes go under bench/ in the repository, ` + units.Size(512<<20).Human() + ` at most at a time (--most), and are deleted in the end, also after an error or an interrupt; what a measurement
left that was killed is deleted by the next one after an hour. A volume is sampled by a snapshot, bench-TIME, which is deleted in the end. Nothing else is changed. Reads of a directory may come from this host's memory.`,
		Example: `  hv-backup bench --volume web1 --repo /mnt/backup/vms
  hv-backup bench --file disk.raw
  hv-backup bench --requests 1,8,32 --most 1GiB -o json --repo s3+https://minio.example.org/backups/vms`,
		Args: console.Exactly(),
		RunE: func(c *cobra.Command, _ []string) error { return b.run(c.Context()) },
	}
	f := c.Flags()
	f.StringVar(&b.file, "file", "", "a raw image or a block device to sample")
	f.StringVar(&b.volume, "volume", "", "a volume of hvd to sample, attached or not: a snapshot that goes in the end, or `VOLUME` with @SNAPSHOT")
	f.StringVar(&b.backup, "backup", "", "the backup to restore (default: the youngest of what is sampled, else the youngest)")
	f.Var(&b.sample, "sample", "how much to sample, and to restore")
	f.Var(&b.most, "most", "how much to store at a time, at most")
	f.Var(&b.object, "object", "size of what is stored")
	f.Var(&b.read, "read", "size of what is read at once")
	f.Var(&b.span, "time", "how long to store, and to read, with each number of requests")
	f.IntSliceVar(&b.requests, "requests", b.requests, "requests in flight, several numbers for several measurements")
	_ = c.RegisterFlagCompletionFunc("volume", func(c *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return a.volumesOf(c.Context()), cobra.ShellCompDirectiveNoFileComp
	})
	return c
}

func (b *benching) run(ctx context.Context) error {
	where, noRepository := b.a.location()
	sampled := b.file != "" || b.volume != ""
	switch {
	case b.file != "" && b.volume != "":
		return console.Usagef("--file, or --volume, not both")
	case noRepository != nil && !sampled:
		return console.Usagef("what shall be measured? give --repo, or --file or --volume")
	case b.sample < backup.RegionSize:
		return console.Usagef("a sample of %s: want %s at least", b.sample.Human(), units.Size(backup.RegionSize).Human())
	case b.object > math.MaxInt32 || b.read > math.MaxInt32:
		return console.Usagef("objects of %s, reads of %s: want less", b.object.Human(), b.read.Human())
	}
	out, cut := &benched{}, cdc.Default()
	var r *repository.Repository
	var err error
	if noRepository == nil {
		if r, err = b.a.openIndexed(ctx); err != nil {
			return err
		}
		out.Repository, cut = where, r.Config().Cut
	}
	if sampled {
		if out.Data, err = b.data(ctx, cut); err != nil {
			return err
		}
	}
	if r != nil {
		if err := b.storage(ctx, out); err != nil {
			return err
		}
		if out.Restore, err = b.restore(ctx, r); err != nil {
			return err
		}
	}
	out.first()
	return b.a.show(out, func() { b.tell(out) })
}

// frozenSource is a snapshot of a volume as a backup.Source.
type frozenSource struct {
	api *client.Client
	client.Snapshot
}

// Size implements backup.Source.
func (v *frozenSource) Size() uint64 { return v.SizeBytes }

// Region implements backup.Source.
func (v *frozenSource) Region(ctx context.Context, p []byte, off uint64) (bool, error) {
	return false, v.api.ReadRange(ctx, v.Volume, v.Name, p, off)
}

// freezeSource returns a snapshot of the volume: the one that was named, or a new one, which end deletes.
func (b *benching) freezeSource(ctx context.Context) (src *frozenSource, end func() error, err error) {
	api, err := b.a.hvd()
	if err != nil {
		return nil, nil, err
	}
	volume, name, named := strings.Cut(b.volume, "@")
	if !named {
		name = "bench-" + time.Now().UTC().Format("20060102t150405.000z")
		made, err := takeSnapshots(ctx, api, name, []string{volume}, "")
		if err != nil {
			return nil, nil, err
		}
		return &frozenSource{api, made[0]}, func() error {
			if err := deleteSnapshot(context.WithoutCancel(ctx), api, volume, name); err != nil {
				return fmt.Errorf("delete the snapshot that was measured, %s@%s, by hand: %w", volume, name, err)
			}
			return nil
		}, nil
	}
	reply, err := client.ListSnapshots(ctx, api, volume)
	if err != nil {
		return nil, nil, err
	}
	for _, s := range reply.Snapshots {
		if s.Name == name {
			return &frozenSource{api, s}, func() error { return nil }, nil
		}
	}
	return nil, nil, fmt.Errorf("snapshot %s: %w", b.volume, block.ErrNotFound)
}

func (b *benching) data(ctx context.Context, cut cdc.Params) (_ *benchedData, failed error) {
	var src backup.Source
	if b.file != "" {
		f, err := backup.OpenFile(b.file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		src = f
	} else {
		frozen, end, err := b.freezeSource(ctx)
		if err != nil {
			return nil, err
		}
		defer func() { failed = errors.Join(failed, end()) }()
		src = frozen
	}
	meter := b.a.newMeter("sampling", uint64(b.sample))
	d, err := gauge.Data(ctx, src, uint64(b.sample), cut, meter.At)
	meter.End()
	if err != nil {
		return nil, fmt.Errorf("sample %s%s: %w", b.file, b.volume, err)
	}
	return &benchedData{
		Source: b.file + b.volume, SourceBytes: d.SourceBytes, SampledBytes: d.SampledBytes, NonZeroBytes: d.DataBytes, UniqueBytes: d.UniqueBytes, CompressedBytes: d.CompressedBytes, Ratio: d.Ratio(), Workers: d.Workers,
		Read: d.Read.PerSecond(), Cut: d.Cut.PerSecond(), Compress: d.Compress.PerSecond(), Seal: d.Seal.PerSecond(), Open: d.Open.PerSecond(),
	}, nil
}

func (b *benching) storage(ctx context.Context, out *benched) (err error) {
	place, err := b.a.backend()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, place.Close()) }()
	b.a.note("hv-backup: measuring %s", place.Location())
	all, err := gauge.Storage(ctx, place, gauge.StorageOptions{
		Requests: b.requests, ObjectBytes: int(b.object), ReadBytes: int(min(b.read, b.object)), MostBytes: uint64(b.most), Time: time.Duration(b.span) * time.Second,
	})
	for _, one := range all {
		out.Storage = append(out.Storage, operation("put", one.Put, int(b.object)), operation("get", one.Get, int(min(b.read, b.object))), operation("delete", one.Delete, 0))
	}
	if err != nil {
		return fmt.Errorf("measure %s: %w", place.Location(), err)
	}
	return nil
}

func operation(name string, o gauge.Operation, each int) (s benchedStorage) {
	s = benchedStorage{Operation: name, InFlight: o.Requests, Count: o.Count, BytesEach: each, Bytes: o.Bytes, Rate: o.PerSecond()}
	if o.Seconds > 0 {
		s.Requests = float64(o.Count) / o.Seconds
	}
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	s.Millisecond.P50, s.Millisecond.P99, s.Millisecond.Slowest = ms(o.P50), ms(o.P99), ms(o.Slowest)
	return s
}

// restore measures a restore, if there is something to restore and the keys can read it.
func (b *benching) restore(ctx context.Context, r *repository.Repository) (*benchedRestore, error) {
	all, err := r.Manifests(ctx, b.a.warn)
	if errors.Is(err, seal.ErrReadKey) {
		b.a.note("hv-backup: these keys can only write, so no restore is measured")
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var m *repository.Manifest
	for _, one := range all {
		if one.Source.Kind != files.Kind && (m == nil || one.Source.Name == b.volume+b.file || m.Source.Name != b.volume+b.file) {
			m = one
		}
	}
	if b.backup != "" {
		if m, err = chooseOrLatest(all, b.backup); err != nil {
			return nil, err
		}
	}
	if m == nil {
		b.a.note("hv-backup: there is no backup yet, so no restore is measured")
		return nil, nil
	}
	b.a.note("hv-backup: restoring %s to nowhere", m.Name)
	rate, err := gauge.Restore(ctx, r, m, uint64(b.sample))
	if err != nil {
		return nil, fmt.Errorf("restore %s: %w", m.Name, err)
	}
	return &benchedRestore{m.Name, rate.Bytes, rate.Seconds, rate.PerSecond()}, nil
}

// first reckons how fast a first backup of the data would be: as fast as the slowest of what reads, works and stores, which go on beside each other.
func (o *benched) first() {
	d := o.Data
	if d == nil || d.NonZeroBytes == 0 || d.Read == 0 {
		return
	}
	unique := float64(d.UniqueBytes) / float64(d.NonZeroBytes)
	processor := 1 / (1/d.Cut + unique/d.Compress + unique/d.Seal)
	o.First = &benchedFirst{d.Read, "source"}
	if processor < o.First.Rate {
		*o.First = benchedFirst{processor, "processor"}
	}
	put := 0.0
	for _, s := range o.Storage {
		if s.Operation == "put" {
			put = max(put, s.Rate)
		}
	}
	if storage := put * d.Ratio; put > 0 && storage < o.First.Rate {
		*o.First = benchedFirst{storage, "storage"}
	}
}

// tell prints what was measured.
func (b *benching) tell(o *benched) {
	per := func(rate float64) string { return units.Size(rate).Human() + "/s" }
	if d := o.Data; d != nil {
		list := [][2]string{
			{"data", fmt.Sprintf("%s, %s", d.Source, units.Size(d.SourceBytes).Human())},
			{"sampled", fmt.Sprintf("%s, of it %s not zero, %s unique", units.Size(d.SampledBytes).Human(), units.Size(d.NonZeroBytes).Human(), units.Size(d.UniqueBytes).Human())},
			{"ratio", fmt.Sprintf("%.2f : 1, %s as it would be stored", d.Ratio, units.Size(d.CompressedBytes).Human())},
			{"read", per(d.Read)},
			{"cut and hash", fmt.Sprintf("%s with %s", per(d.Cut), console.Counted(d.Workers, "worker"))},
			{"compress", per(d.Compress)}, {"seal", per(d.Seal)}, {"open and verify", per(d.Open)},
		}
		console.Pairs(b.a.out, list)
	}
	if len(o.Storage) > 0 {
		rows := [][]string{}
		for _, s := range o.Storage {
			rate, each := "", ""
			if s.Bytes > 0 {
				rate, each = per(s.Rate), units.Size(s.BytesEach).Human()
			}
			rows = append(rows, []string{s.Operation, fmt.Sprint(s.InFlight), each, fmt.Sprint(s.Count), rate, fmt.Sprintf("%.1f", s.Requests), fmt.Sprintf("%.1f", s.Millisecond.P50), fmt.Sprintf("%.1f", s.Millisecond.P99), fmt.Sprintf("%.1f", s.Millisecond.Slowest)})
		}
		if o.Data != nil {
			b.a.say("")
		}
		console.Table(b.a.out, b.a.getenv, []string{"STORAGE", "IN FLIGHT", "EACH", "COUNT", "RATE", "A SECOND", "P50 MS", "P99 MS", "SLOWEST MS"}, rows)
	}
	if o.Restore != nil || o.First != nil {
		b.a.say("")
	}
	if o.Restore != nil {
		b.a.say("restore of %s: %s of data, %s", o.Restore.Backup, units.Size(o.Restore.Bytes).Human(), per(o.Restore.Rate))
	}
	if o.First != nil {
		b.a.say("a first backup of such data is held up by the %s: %s at best", o.First.HeldBy, per(o.First.Rate))
	}
}
