package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/crashtest"
)

var killSeed = flag.Uint64("kill.seed", 1, "seed of TestKill")

// TestKill kills hvd again and again while clients write over NBD and commands snapshot, clone, roll back, rename, resize, delete and settle. Whatever was replied to must
// be there afterwards, and nothing that was never asked for.
func TestKill(t *testing.T) {
	rounds := 9
	if testing.Short() {
		rounds = 3
	}
	k := newKiller(t, startDaemon(t))
	for i := range rounds {
		if err := k.round(i == rounds-1); err != nil {
			t.Fatalf("round %d: %v\nrepeat: go test ./e2e -run TestKill -kill.seed=%d", i, err, *killSeed)
		}
	}
	k.report()
	k.d.settle()
	if err := k.judge(); err != nil {
		t.Errorf("after the last settle: %v", err)
	}
	k.d.stop()
	k.d.check()
}

func newKiller(t *testing.T, d *daemon) *killer {
	k := &killer{t: t, d: d, rng: rand.New(rand.NewPCG(*killSeed, 0)), first: 1, lose: func() {}}
	for i := range recordedClients {
		k.streams = append(k.streams, newStream(i))
		k.d.disk(k.streams[i].volume, "16MiB")
		k.begin = append(k.begin, crashtest.NewState())
	}
	return k
}

// killer drives the rounds.
type killer struct {
	t        *testing.T
	d        *daemon
	rng      *rand.Rand
	streams  []*stream
	recorder *crashtest.Recorder
	begin    []*crashtest.State
	first    int // number of the recorder's first operation
	ops      int
	settles  atomic.Int64
	lose     func() // what else is lost with each kill
}

// round lets all work for a while, kills hvd, starts it and judges what it shows. The kill of the last round waits for a settle if none has ended so far: under constant
// writes it must end all the same.
func (k *killer) round(last bool) error {
	k.recorder = crashtest.NewRecorder(recordedConfig, k.rng.Uint64(), k.begin, k.first, nil)
	life := time.NewTimer(time.Duration(300+k.rng.IntN(2200)) * time.Millisecond)
	defer life.Stop()
	if err := k.workAndKill(life.C, last); err != nil {
		return err
	}
	k.lose()
	k.d.start()
	return k.judge()
}

// workAndKill returns an error of a worker from before the kill. What fails afterwards is what a kill is for.
func (k *killer) workAndKill(end <-chan time.Time, settled bool) error {
	var running sync.WaitGroup
	var killed atomic.Bool
	failed := make(chan error, 3*recordedClients+1)
	start := func(name string, work func(rng *rand.Rand) error) {
		rng := rand.New(rand.NewPCG(k.rng.Uint64(), 0))
		running.Go(func() {
			if err := work(rng); err != nil && !killed.Load() {
				failed <- fmt.Errorf("%s: %w", name, err)
			}
		})
	}
	for i, s := range k.streams {
		start(s.volume, func(rng *rand.Rand) error { return s.work(k.d.nbdSocket(), rng) })
		start(s.volume+"'s snapshots", func(rng *rand.Rand) error { return s.garden(k.d, rng) })
		start(fmt.Sprintf("recorded client %d", i), func(*rand.Rand) error { return k.record(i) })
	}
	start("settle", func(*rand.Rand) error { return k.settleOften() })
	err := k.await(failed, end)
	for patient := time.After(patience); settled && err == nil && k.settles.Load() == 0; {
		select {
		case <-patient:
			err = errors.New("no settle ends under constant writes")
		default:
			err = k.await(failed, time.After(20*time.Millisecond))
		}
	}
	killed.Store(true)
	k.d.kill()
	running.Wait()
	return err
}

// await returns the error of a worker, or nil when the time has come.
func (k *killer) await(failed <-chan error, end <-chan time.Time) error {
	select {
	case err := <-failed:
		return err
	case <-end:
		return nil
	}
}

// record runs a recorded client until an operation fails, which is what it returns.
func (k *killer) record(client int) error {
	target := newRecordedTarget(k.d)
	defer target.close()
	for {
		if err := k.recorder.Step(context.Background(), client, target); err != nil {
			return err
		}
	}
}

func (k *killer) settleOften() error {
	for {
		if got := k.d.try("store", "settle", "--wait"); got.code != 0 {
			return fmt.Errorf("settle: %s", got.stderr)
		}
		k.settles.Add(1)
	}
}

// judge compares what hvd shows with what the clients were told.
func (k *killer) judge() error {
	img, err := k.d.recordedImage()
	if err != nil {
		return err
	}
	if err := crashtest.NewVerifier(k.recorder, k.begin).ProcessDeath(img, k.recorder.Mark(), k.recorder.Mark()); err != nil {
		return err
	}
	k.ops += k.recorder.Ops()
	k.first, k.begin = k.recorder.Next(), img.Clients
	k.recorder = crashtest.NewRecorder(recordedConfig, 0, k.begin, k.first, nil) // for a judge that comes before the next work
	for _, s := range k.streams {
		if err := s.verify(k.d); err != nil {
			return err
		}
	}
	return nil
}

// report says how much was going on.
func (k *killer) report() {
	writes, snapshots := 0, 0
	for _, s := range k.streams {
		writes += s.writes
		snapshots += len(s.snaps)
	}
	k.t.Logf("%d writes of streams, %d recorded operations, %d settles, %d snapshots left", writes, k.ops, k.settles.Load(), snapshots)
	if writes == 0 || k.ops == 0 || k.settles.Load() == 0 {
		k.t.Error("a part of the work never happened")
	}
}

// check runs the second reader over the closed store.
func (d *daemon) check(disks ...string) {
	d.t.Helper()
	args := []string{"store", "check", d.dir}
	for _, disk := range disks {
		args = append(args, "--disk", disk)
	}
	if got := execute(d.t, nil, fabricPath, args...); got.code != 0 {
		d.t.Errorf("store check ended with %d\n%s%s", got.code, got.stdout, got.stderr)
	}
}
