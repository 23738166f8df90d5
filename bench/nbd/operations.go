package main

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/bench/wire"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/synth"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

const (
	largeSize    = units.Size(1 << 40)
	largeExtents = 64 // in each region: 4.2 million in all
	seedChunks   = 64 << 20 / block.Size
	eachTimes    = 200 // requests of each kind
	mostMS       = 10  // the aim for each of them
	loadIOPS     = 20000
)

// operations times snapshot, clone and rollback of a volume of 1 TiB with millions of extents, as a user has them: one request to the API after the other on one connection, and
// whole commands. First nothing else happens but 16 blocks that are rewritten before each, then a guest writes all the time.
func operations(ctx context.Context, b *bench) (s section, err error) {
	defer func() { err = errors.Join(err, b.leave()) }()
	d, err := b.alone(ctx, "o")
	if err != nil {
		return s, err
	}
	if err := b.largeVolume(ctx, d); err != nil {
		return s, err
	}
	s.Table = [][]string{{"what", "by", "meanwhile", "p50 ms", "p99 ms", "most ms", "of"}}
	for _, way := range []struct {
		name string
		do   caller
	}{{"API", d.byAPI}, {"command", d.byCommand}} {
		for _, loaded := range []bool{false, true} {
			state := "idle"
			if loaded {
				state = fmt.Sprintf("%d writes/s", loadIOPS)
			}
			fmt.Fprintf(b.say, "%s   by %s, %s\n", time.Now().Format("15:04:05"), way.name, state)
			took, err := b.timeOperations(ctx, d, way.do, loaded)
			if err != nil {
				return s, fmt.Errorf("%s, %s: %w", way.name, state, err)
			}
			for i, what := range []string{"snapshot", "clone of it", "rollback to it", "only ask for the volume"} {
				q := slices.Sorted(slices.Values(took[i]))
				p99 := q[(len(q)*99+99)/100-1]
				row := []string{what, way.name, state, fmt.Sprintf("%.2f", spreadOf(q).median), fmt.Sprintf("%.2f", p99), fmt.Sprintf("%.2f", q[len(q)-1]), fmt.Sprint(len(q))}
				fmt.Fprintf(b.say, "    %s\n", strings.Join(row, ", "))
				s.Table = append(s.Table, row)
				if way.name == "API" && i < 3 {
					s.Figures = append(s.Figures, own(fmt.Sprintf("%s by the API, %s: p99 / %d ms", what, state, mostMS), []float64{p99 / mostMS}, aim{most: true, ratio: 1}, b.report.Data))
				}
			}
		}
	}
	s.State = fmt.Sprintf("a volume of %s with %d extents; 16 random blocks of 4 KiB of it are rewritten before each snapshot and each rollback; *%d writes/s* are of 4 KiB at random over 2 GiB, at depth 32, "+
		"of the volume itself, but of another one for the rollbacks, which need a volume that is not attached. By the API: one request on a connection that is open. By command: a process of its own. What it takes only to ask for the volume, right after each rollback, says what is due to the machine", largeSize.Human(), uint64(largeSize)/block.RegionSize*largeExtents, loadIOPS)
	return s, nil
}

// caller does an operation: what is "snapshot", "clone", "rollback" or "ask", name that of the snapshot, which a clone adds a c to.
type caller func(ctx context.Context, what, name string) error

func (d *daemon) byAPI(ctx context.Context, what, name string) (err error) {
	switch what {
	case "snapshot":
		_, err = client.CreateSnapshot(ctx, d.api, disk, name)
	case "clone":
		_, err = client.CloneVolume(ctx, d.api, disk, &name, name+"c")
	case "rollback":
		_, err = client.Rollback(ctx, d.api, disk, name)
	case "ask":
		_, err = client.GetVolume(ctx, d.api, disk)
	}
	return err
}

func (d *daemon) byCommand(ctx context.Context, what, name string) error {
	args := map[string][]string{
		"snapshot": {"snapshot", "create", disk + "@" + name},
		"clone":    {"volume", "clone", disk + "@" + name, name + "c"},
		"rollback": {"snapshot", "rollback", disk + "@" + name},
		"ask":      {"volume", "show", disk},
	}[what]
	cmd := exec.CommandContext(ctx, filepath.Join(d.b.o.bin, "hv-storage-fabric"), append(args, "--endpoint", "unix:"+filepath.Join(d.dir, "hvd.sock"))...)
	cmd.Env = cleanEnvironment()
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", args, err, said)
	}
	return nil
}

// largeVolume makes the volume and another one, both attached. The extents of the large one are rows of a map that refer to some chunks that exist, many times each.
func (b *bench) largeVolume(ctx context.Context, d *daemon) error {
	input := client.CreateVolumeInput{Name: "seed", SizeBytes: seedChunks * block.Size, Chunking: "fixed:4KiB", Mode: client.WriteModeWriteback}
	_, err := client.CreateVolume(ctx, d.api, input)
	if err == nil {
		err = d.attach(ctx, "seed")
	}
	if err == nil {
		_, err = b.fio(ctx, append(fioArgs(d.uri("seed"), b.nextSeed(), fields(sequential1M+"--rw=write")...), fmt.Sprintf("--size=%d", seedChunks*block.Size)))
	}
	if err == nil {
		err = d.settle(ctx)
	}
	if err == nil {
		err = d.volume(ctx, disk, largeSize)
	}
	if err == nil {
		err = d.volume(ctx, "other", 4<<30)
	}
	if err != nil {
		return err
	}
	args := d.args[5:] // behind what start gives to every hvd
	if err := d.stop(); err != nil {
		return err
	}
	regions := uint64(largeSize) / block.RegionSize
	spec := synth.Spec{Kind: synth.Shared, Volume: disk, Regions: regions, ExtentsPerRegion: largeExtents}
	spec.RegionsAlike = (regions*largeExtents + seedChunks - 1) / seedChunks
	if err := synth.Write(ctx, d.dir, spec); err != nil {
		return err
	}
	if err := d.start(ctx, args...); err != nil {
		return err
	}
	return b.rested(ctx, d)
}

// timeOperations does each operation many times in one way, and returns how long each took, in milliseconds. The clones and snapshots are removed again.
func (b *bench) timeOperations(ctx context.Context, d *daemon, do caller, loaded bool) (took [4][]float64, err error) {
	stop := func() error { return nil }
	if loaded {
		if stop, err = b.load(ctx, d, disk); err != nil {
			return took, err
		}
	}
	for k := range eachTimes {
		name := fmt.Sprintf("s%d", k)
		err := d.rewrite(ctx, uint64(b.nextSeed()))
		for i, what := range []string{"snapshot", "clone"} {
			var ms float64
			if err == nil {
				ms, err = timed(func() error { return do(ctx, what, name) })
			}
			took[i] = append(took[i], ms)
		}
		if err != nil {
			return took, errors.Join(err, stop())
		}
	}
	if err := stop(); err != nil {
		return took, err
	}
	if loaded {
		if stop, err = b.load(ctx, d, "other"); err != nil {
			return took, err
		}
	}
	for k := range eachTimes {
		err := d.rewrite(ctx, uint64(b.nextSeed()))
		if err == nil {
			_, err = client.DetachVolume(ctx, d.api, disk, true)
		}
		for i, what := range []string{"rollback", "ask"} {
			var ms float64
			if err == nil {
				ms, err = timed(func() error { return do(ctx, what, fmt.Sprintf("s%d", k)) })
			}
			took[2+i] = append(took[2+i], ms)
		}
		if err == nil {
			err = d.attach(ctx, disk)
		}
		if err != nil {
			return took, errors.Join(err, stop())
		}
	}
	if err := stop(); err != nil {
		return took, err
	}
	for k := range eachTimes {
		name := fmt.Sprintf("s%d", k)
		if _, err := client.DeleteVolume(ctx, d.api, name+"c"); err != nil {
			return took, err
		}
		if _, err := client.DeleteSnapshot(ctx, d.api, disk, name); err != nil {
			return took, err
		}
	}
	return took, b.rested(ctx, d)
}

// rewrite overwrites some blocks anywhere in the large volume.
func (d *daemon) rewrite(ctx context.Context, seed uint64) error {
	w, err := wire.Open(ctx, filepath.Join(d.dir, "nbd.sock"), disk)
	if err != nil {
		return err
	}
	random, data := rand.New(rand.NewPCG(seed, 2)), make([]byte, block.Size)
	for range writesBetween {
		_, _ = crand.Read(data[:len(data)/2]) // it never fails; the other half stays zero
		if err := w.Do(wire.Write, random.Uint64N(uint64(largeSize)/block.Size)*block.Size, block.Size, data); err != nil {
			return errors.Join(err, w.Close())
		}
	}
	return w.Close()
}

// load writes to a volume at a constant rate until stop is called.
func (b *bench) load(ctx context.Context, d *daemon, volume string) (stop func() error, err error) {
	ctx, cancel := context.WithCancel(ctx)
	args := append(fioArgs(d.uri(volume), b.nextSeed(), fields(random4K+"--rw=randwrite --iodepth=32 --time_based --runtime=3600")...), fmt.Sprint("--size=", 2<<30), fmt.Sprint("--rate_iops=", loadIOPS))
	done := make(chan error, 1)
	go func() {
		_, err := b.fio(ctx, args)
		done <- err
	}()
	stop = func() error {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			return fmt.Errorf("the load ended before it was ended: %w", err)
		}
		return nil
	}
	select {
	case err := <-done:
		cancel()
		return nil, fmt.Errorf("the load does not run: %w", err)
	case <-time.After(3 * time.Second): // until it runs evenly
		return stop, nil
	}
}
