package blockstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/internal/crashtest"
)

// crashClients is how many clients the crash tests run at once.
const crashClients = 3

// crashRounds is a test's default number of rounds, or as many times that as HV_CRASH_ROUNDS says.
func crashRounds(t testing.TB, rounds int) int {
	text := os.Getenv("HV_CRASH_ROUNDS")
	if text == "" {
		if testing.Short() {
			return max(1, rounds/4)
		}
		return rounds
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("HV_CRASH_ROUNDS=%q is no positive number", text)
	}
	return n * rounds
}

// crashOptions make log files of which a few seconds of work fill many.
func crashOptions(fs vfs.FS, dir string, problems *crashProblems) Options {
	return Options{
		Keys: testKeys(),
		Dir:  dir, FS: fs, LogCapBytes: 64 << 20, LogFileBytes: 256 << 10, MemoryBytes: 32 << 20, ReserveBytes: 1,
		SyncEvery: 50 * time.Millisecond, DestageAfter: 10 * time.Millisecond, Workers: 2,
		StreamBytes: 16 << 20, streamWrite: 16 << 10, streamFrom: 64 << 10,
		fullAfterBytes: 32 << 10, metadataSegmentBytes: 64 << 10, checkpointPartBytes: 4 << 10,
		Events: Events{
			Corruption:      func(err error) { problems.add(fmt.Errorf("corruption event: %w", err)) },
			BackgroundError: func(task string, err error) { problems.add(fmt.Errorf("background %s: %w", task, err)) },
		},
	}
}

// crashConfig fits crashOptions: volumes of two regions, writes of more than one record.
var crashConfig = crashtest.Config{VolumeBytes: 18 << 20, RecordBytes: 64 << 10, Volumes: 3, Snapshots: 3, ChangeSnapshots: true}

// crashProblems gathers what a store complains about.
type crashProblems struct {
	mu  sync.Mutex
	err error
}

func (p *crashProblems) add(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = errors.Join(p.err, err)
}

func (p *crashProblems) get() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// crashTarget is a store as package crashtest sees it.
type crashTarget struct{ s *Store }

func (c crashTarget) Do(ctx context.Context, op *crashtest.Op) error {
	s := c.s
	var err error
	switch op.Kind {
	case crashtest.Create:
		_, err = s.CreateVolume(ctx, VolumeSpec{Name: op.Volume, SizeBytes: op.Size})
	case crashtest.Delete:
		err = s.DeleteVolume(ctx, op.Volume)
	case crashtest.Rename:
		err = s.RenameVolume(ctx, op.Volume, op.To)
	case crashtest.Resize:
		err = s.ResizeVolume(ctx, op.Volume, op.Size)
	case crashtest.Snapshot:
		_, err = s.CreateSnapshot(ctx, op.Volume, op.Snapshot)
	case crashtest.DeleteSnapshot:
		err = s.DeleteSnapshot(ctx, op.Volume, op.Snapshot)
	case crashtest.Rollback:
		err = s.Rollback(ctx, op.Volume, op.Snapshot)
	case crashtest.Clone:
		_, err = s.Clone(ctx, op.Volume, op.Snapshot, op.To)
	case crashtest.RenameSnapshot:
		err = s.RenameSnapshot(ctx, op.Volume, op.Snapshot, op.To)
	case crashtest.SnapshotAll:
		var names []StateName
		for _, v := range op.Volumes {
			names = append(names, StateName{v, op.Snapshot})
		}
		_, err = s.CreateSnapshots(ctx, names, op.N%2 == 0)
	case crashtest.Protect, crashtest.Unprotect:
		err = s.ProtectSnapshot(ctx, op.Volume, op.Snapshot, op.Kind == crashtest.Protect)
	default:
		return c.data(ctx, op)
	}
	return err
}

// data runs an operation that a guest asks for.
func (c crashTarget) data(ctx context.Context, op *crashtest.Op) error {
	d, err := c.s.OpenDevice(op.Volume, "")
	if err != nil {
		return err
	}
	switch op.Kind {
	case crashtest.Write:
		err = d.Write(ctx, op.Batch(), op.FUA)
	case crashtest.Trim:
		err = d.Trim(ctx, op.Ranges[0], op.FUA)
	case crashtest.Zero:
		err = d.Zero(ctx, op.Ranges[0], false, op.FUA)
	case crashtest.Flush:
		err = d.Flush(ctx)
	}
	return errors.Join(err, d.Close())
}

func (c crashTarget) List() ([]crashtest.Listing, error) {
	var all []crashtest.Listing
	for _, v := range c.s.Volumes() {
		snaps, err := c.s.Snapshots(v.Name)
		if err != nil {
			return nil, err
		}
		l := crashtest.Listing{Name: v.Name, SizeBytes: v.SizeBytes, Snapshots: map[string]uint64{}, Protected: map[string]bool{}}
		for _, snap := range snaps {
			l.Snapshots[snap.Name] = snap.SizeBytes
			l.Protected[snap.Name] = snap.Protected
		}
		all = append(all, l)
	}
	return all, nil
}

func (c crashTarget) ReadAt(volume, snapshot string, p []byte, off uint64) error {
	d, err := c.s.OpenDevice(volume, snapshot)
	if err != nil {
		return err
	}
	_, err = d.ReadAt(context.Background(), p, off, nil)
	return errors.Join(err, d.Close())
}

// loseMeta takes the metadata of a store away.
func loseMeta(fs vfs.FS, dir string) error { return fs.RemoveAll(fs.PathJoin(dir, metaDir)) }

// crashImage reads all that a store holds.
func crashImage(s *Store) (*crashtest.Image, error) {
	return crashtest.ReadImage(crashTarget{s}, crashClients)
}

// crashWork runs every client for some steps, and settles in between, every other time into cold segments, until all are done or ctx ends. It returns the first error that is not the end of ctx.
func crashWork(ctx context.Context, s *Store, r *crashtest.Recorder, steps int) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var clients, gardener sync.WaitGroup
	errs := make(chan error, crashClients+1)
	for i := range crashClients {
		clients.Go(func() {
			for range steps {
				if err := r.Step(ctx, i, crashTarget{s}); err != nil {
					errs <- err
					stop()
					return
				}
			}
		})
	}
	gardener.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			settle := s.Settle
			if n%2 == 1 {
				settle = s.SettleCold
			}
			if err := settle(ctx, nil); err != nil && ctx.Err() == nil {
				errs <- err
				stop()
				return
			}
			sleep(ctx, 20*time.Millisecond)
		}
	})
	clients.Wait()
	stop()
	gardener.Wait()
	close(errs)
	for err := range errs {
		if !errors.Is(err, context.Canceled) {
			return err
		}
	}
	return nil
}

func emptyStates() []*crashtest.State {
	var all []*crashtest.State
	for range crashClients {
		all = append(all, crashtest.NewState())
	}
	return all
}

// crashSettle settles a store, and says what is in its way when that does not come to an end.
func crashSettle(s *Store) error {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	err := s.Settle(ctx, nil)
	if err == nil {
		return nil
	}
	s.tree.RLock()
	defer s.tree.RUnlock()
	for id, n := range s.nodes {
		var parent nodeID
		if p := n.parent.Load(); p != nil {
			parent = p.id
		}
		if !n.layer.Empty() || n.flags != 0 {
			err = fmt.Errorf("%w\n\tnode %d of volume %d over %d: flags %05b, %d children, %d blocks in its layer, ready %v", err, id, n.volume.id, parent, n.flags, n.children, n.layer.Blocks(), n.readyLocked())
		}
	}
	return err
}
