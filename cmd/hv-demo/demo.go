package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/guest"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

const (
	firstVolume  = "guest-a"
	secondVolume = "guest-b"

	files   = 120 // that the guest writes and fsyncs
	killAt  = 40  // hvd is killed when the guest has reported this one
	minute  = time.Minute
	slowest = 20 * time.Minute // for what may download or emulate
)

// demo is one run. Its fields are set by the steps, in their order.
type demo struct {
	options
	dir     string // removed at the end
	fabric  fabric
	daemon  *daemon
	first   *guest.Image
	second  *guest.Image
	accel   guest.Accel
	uri     string
	machine *guest.Machine
	killed  time.Time
	began   time.Time  // the import of the second disk
	memory  units.Size // the most that any hvd had resident
	afterA  sizes
	afterB  sizes
}

// run does the whole demo and prints it. Whatever happens, no process and no folder of it is left.
func run(ctx context.Context, o options, out io.Writer) (err error) {
	begin := time.Now()
	if err := os.MkdirAll(o.cache, 0o755); err != nil {
		return err
	}
	// Beside the cache, not in the system's folder for temporary files, which is memory on many machines.
	dir, err := os.MkdirTemp(o.cache, "demo-")
	if err != nil {
		return err
	}
	d := &demo{options: o, dir: dir, fabric: fabric{bin: o.bin, endpoint: "unix:" + filepath.Join(dir, "store", "hvd.sock")}}
	defer func() { err = errors.Join(err, d.cleanUp(out)) }()

	fmt.Fprintf(out, "Hyper-NixOS: a guest on a deduplicated volume, with its storage daemon killed under it (%d CPUs)\n\n", runtime.NumCPU())
	if err := follow(ctx, out, d.steps(ctx)); err != nil {
		if ctx.Err() == nil {
			fmt.Fprintf(out, "\nlast messages of hvd:\n%s\n", tail(d.logPath()))
		}
		return err
	}
	reduction(out, d.afterA, d.afterB)
	fmt.Fprintf(out, "  hvd never had more than %s of resident memory. All of it took %.0f s.\n", d.memory.Human(), time.Since(begin).Seconds())
	return nil
}

// steps are what the demo does. The guest lives as long as ctx, not as its step.
func (d *demo) steps(ctx context.Context) []step {
	return []step{
		{"prepare guest disks", slowest, d.prepare},
		{"choose accelerator", minute, d.detect},
		{"start hvd", minute, d.start},
		{"import the disk", 10 * minute, d.importFirst},
		{"attach the volume", minute, d.attach},
		{"boot the guest from it", slowest, func(limited context.Context) (string, error) { return d.boot(ctx, limited) }},
		{"guest fsyncs files", 10 * minute, d.write},
		{"kill -9 hvd", minute, d.kill},
		{"start hvd again", minute, d.restart},
		{"guest goes on", minute, d.goOn},
		{"guest ends", slowest, d.finish},
		{"export the volume", 10 * minute, d.export},
		{"check the exported disk", 10 * minute, d.checkDisk},
		{"settle the store", 10 * minute, d.settleFirst},
		{"import a similar disk", 10 * minute, d.importSecond},
		{"settle the store again", 10 * minute, d.settleBoth},
		{"stop hvd", minute, d.stop},
		{"check the store", 10 * minute, d.checkStore},
	}
}

func (d *demo) dataDir() string { return filepath.Join(d.dir, "store") }
func (d *demo) logPath() string { return filepath.Join(d.dir, "hvd.log") }

// cleanUp ends what still runs and removes the folder.
func (d *demo) cleanUp(out io.Writer) error {
	var errs []error
	if d.machine != nil {
		errs = append(errs, d.machine.Kill())
	}
	if d.daemon != nil {
		errs = append(errs, d.daemon.kill())
	}
	if d.keep {
		fmt.Fprintf(out, "  The store is in %s\n", d.dataDir())
		return errors.Join(errs...)
	}
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}

func (d *demo) prepare(ctx context.Context) (string, error) {
	var err error
	if d.first, err = guest.PrepareSpec(ctx, d.cache, guest.Spec{Kind: d.guest}); err != nil {
		return "", err
	}
	if d.second, err = guest.PrepareSpec(ctx, d.cache, guest.Spec{Kind: d.guest, Variant: 1}); err != nil {
		return "", err
	}
	return fmt.Sprintf("two %s guests of %s, Linux %s", d.guest, units.Size(d.first.DiskSizeBytes).Human(), d.first.KernelRelease), nil
}

func (d *demo) detect(ctx context.Context) (string, error) {
	var err error
	if d.accel, err = guest.DetectAccel(ctx, d.first); err != nil {
		return "", err
	}
	if d.accel == guest.KVM {
		return "KVM", nil
	}
	return "TCG, emulation: KVM is missing here, or no guest boots under it", nil
}

func (d *demo) start(ctx context.Context) (string, error) {
	daemon, err := startDaemon(d.bin, d.dataDir(), d.logPath())
	if err != nil {
		return "", err
	}
	d.daemon = daemon
	if err := d.waitReady(ctx); err != nil {
		return "", err
	}
	version, err := d.fabric.run(ctx, "version")
	return strings.TrimPrefix(version, "hv-storage-fabric "), err
}

// waitReady waits until hvd answers, or has ended, which it should not.
func (d *demo) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-d.daemon.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	_, err := d.fabric.run(ctx, "status", "--wait", "30s")
	select {
	case <-d.daemon.done:
		return fmt.Errorf("hvd ended at once: %w", d.daemon.err)
	default:
		return err
	}
}

func (d *demo) importFirst(ctx context.Context) (string, error) {
	return d.importDisk(ctx, firstVolume, d.first)
}

func (d *demo) importSecond(ctx context.Context) (string, error) {
	return d.importDisk(ctx, secondVolume, d.second)
}

// importDisk imports an image, and says how fast its data that is not zero went in.
func (d *demo) importDisk(ctx context.Context, name string, image *guest.Image) (string, error) {
	data, err := nonZero(ctx, image.Disk)
	if err != nil {
		return "", err
	}
	d.began = time.Now()
	if _, err := d.fabric.run(ctx, "volume", "import", name, image.Disk); err != nil {
		return "", err
	}
	took := time.Since(d.began).Seconds()
	return fmt.Sprintf("%s: %s not zero, durable after %.2f s, %.0f MB/s", name, units.Size(data).Human(), took, float64(data)/took/1e6), nil
}

func (d *demo) attach(ctx context.Context) (string, error) {
	var err error
	d.uri, err = d.fabric.run(ctx, "volume", "attach", firstVolume)
	return d.uri, err
}

func (d *demo) export(ctx context.Context) (string, error) {
	if _, err := d.fabric.run(ctx, "volume", "export", firstVolume, d.exported()); err != nil {
		return "", err
	}
	data, err := nonZero(ctx, d.exported())
	return fmt.Sprintf("%s not zero", units.Size(data).Human()), err
}

func (d *demo) exported() string { return filepath.Join(d.dir, "exported.raw") }

func (d *demo) checkDisk(ctx context.Context) (string, error) {
	if err := guest.CheckFiles(ctx, d.exported(), files); err != nil {
		return "", err
	}
	return fmt.Sprintf("e2fsck -fn is clean, the %d fsynced files are there byte for byte", files), nil
}

func (d *demo) settleFirst(ctx context.Context) (string, error) {
	return "all data is in segments, deletions are worked off", d.settle(ctx, &d.afterA)
}

func (d *demo) settleBoth(ctx context.Context) (string, error) {
	if err := d.settle(ctx, &d.afterB); err != nil {
		return "", err
	}
	data, took := d.afterB.NonZeroBytes-min(d.afterB.NonZeroBytes, d.afterA.NonZeroBytes), time.Since(d.began).Seconds()
	return fmt.Sprintf("import and reduction together %.2f s, %.0f MB/s", took, float64(data)/took/1e6), nil
}

// settle waits until everything lies in segments, and reads the sizes.
func (d *demo) settle(ctx context.Context, into *sizes) error {
	if _, err := d.fabric.run(ctx, "store", "settle", "--wait"); err != nil {
		return err
	}
	text, err := d.fabric.run(ctx, "store", "stats", "-o", "json")
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(text), into); err != nil {
		return fmt.Errorf("read store stats: %w", err)
	}
	return nil
}

func (d *demo) stop(ctx context.Context) (string, error) {
	if err := d.daemon.stop(ctx); err != nil {
		return "", err
	}
	d.memory = max(d.memory, d.daemon.mostMemory())
	return "SIGTERM, closed clean", nil
}

// checkStore lets the second reader look at all of the store.
func (d *demo) checkStore(ctx context.Context) (string, error) {
	if _, err := d.fabric.run(ctx, "store", "check", d.dataDir()); err != nil {
		return "", err
	}
	return "the second reader finds nothing wrong", nil
}
