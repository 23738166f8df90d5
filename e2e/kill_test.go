package e2e

import (
	"context"
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
	k := &killer{t: t, d: startDaemon(t), rng: rand.New(rand.NewPCG(*killSeed, 0)), first: 1}
	for i := range recordedClients {
		k.streams = append(k.streams, newStream(i))
		k.d.disk(k.streams[i].volume, "16MiB")
		k.begin = append(k.begin, crashtest.NewState())
	}
	for i := range rounds {
		if err := k.round(); err != nil {
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
}

// round lets all work for a while, kills hvd, starts it and judges what it shows.
func (k *killer) round() error {
	k.recorder = crashtest.NewRecorder(recordedConfig, k.rng.Uint64(), k.begin, k.first, nil)
	if err := k.workAndKill(time.Duration(300+k.rng.IntN(2200)) * time.Millisecond); err != nil {
		return err
	}
	k.d.start()
	return k.judge()
}

// workAndKill returns an error of a worker from before the kill. What fails afterwards is what a kill is for.
func (k *killer) workAndKill(life time.Duration) error {
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
	var err error
	select {
	case err = <-failed:
	case <-time.After(life):
	}
	killed.Store(true)
	k.d.kill()
	running.Wait()
	return err
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
	// A settle hardly ends while clients write without a pause, so none of them may have: what it does is done all the same.
	if writes == 0 || k.ops == 0 {
		k.t.Error("a part of the work never happened")
	}
}

// check runs the second reader over the closed store.
func (d *daemon) check() {
	d.t.Helper()
	if got := execute(d.t, nil, fabricPath, "store", "check", d.dir); got.code != 0 {
		d.t.Errorf("store check ended with %d\n%s%s", got.code, got.stdout, got.stderr)
	}
}
