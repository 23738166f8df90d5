package blockstore

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/internal/crashtest"
)

// childEnv makes the test binary a child of TestKill that works on a store until it is killed.
const childEnv = "HV_CRASH_CHILD"

// childOrder is what a child of TestKill is told.
type childOrder struct {
	Dir   string
	Seed  uint64
	First int // number of its first operation
}

// childReport is what it tells: first an image of the store, or an error, then events.
type childReport struct {
	Image *crashtest.Image
	Event *crashtest.Event
	Err   string
}

// TestKill kills a process again and again that works on a store, at any moment, and judges what the next process finds.
func TestKill(t *testing.T) {
	if os.Getenv(childEnv) != "" {
		runChild()
	}
	seed := uint64(1)
	if *crashSeed != 0 {
		seed = *crashSeed
	}
	rounds := crashRounds(t, 20)
	k := &killer{t: t, dir: t.TempDir(), rng: rand.New(rand.NewPCG(seed, 80)), begin: emptyStates(), first: 1}
	for i := range rounds {
		if k.rng.IntN(3) == 0 && i > 0 {
			if err := loseMeta(vfs.Default, k.dir); err != nil {
				t.Fatal(err)
			}
		}
		if err := k.round(seed*1000 + uint64(i)); err != nil {
			t.Run("what is left", k.autopsy)
			t.Fatalf("round %d: %v\nrepeat: go test ./blockstore -run TestKill -crash.seed=%d", i, err, seed)
		}
	}
	if err := k.last(); err != nil {
		t.Fatalf("after %d rounds: %v\nrepeat: go test ./blockstore -run TestKill -crash.seed=%d", rounds, err, seed)
	}
	t.Logf("%d client operations in %d processes", k.ops, rounds)
}

// killer is the parent of all rounds.
type killer struct {
	t     *testing.T
	dir   string
	rng   *rand.Rand
	begin []*crashtest.State // what the last child began with
	r     *crashtest.Recorder
	first int
	ops   int
}

// round starts a child, judges the image that it finds, and kills it while it works.
func (k *killer) round(seed uint64) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "-test.run=^TestKill$")
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	if err := gob.NewEncoder(in).Encode(childOrder{Dir: k.dir, Seed: seed, First: k.first}); err != nil {
		return err
	}
	reports := gob.NewDecoder(out)
	var first childReport
	if err := reports.Decode(&first); err != nil {
		return fmt.Errorf("first report of the process: %w", err)
	}
	if first.Err != "" {
		return errors.New(first.Err)
	}
	if err := k.judge(first.Image); err != nil {
		return err
	}
	k.begin = first.Image.Clients
	k.r = crashtest.NewRecorder(crashConfig, seed, k.begin, k.first, nil)
	timer := time.AfterFunc(time.Duration(20+k.rng.IntN(400))*time.Millisecond, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	for {
		var report childReport
		if err := reports.Decode(&report); err != nil {
			break // the end of a process that was killed, perhaps in the middle of a report
		}
		if report.Err != "" {
			return errors.New(report.Err)
		}
		k.r.Note(*report.Event)
	}
	k.first = k.r.Next()
	k.ops += k.r.Ops()
	return nil
}

// judge compares what a store holds with what the last child did.
func (k *killer) judge(img *crashtest.Image) error {
	if k.r == nil {
		return nil
	}
	return crashtest.NewVerifier(k.r, k.begin).ProcessDeath(img, k.r.Mark(), k.r.Mark())
}

// autopsy tells what a store is like after a process that failed: what an audit finds now that nothing else goes on, and where a recount differs.
func (k *killer) autopsy(t *testing.T) {
	var problems crashProblems
	s, err := Open(context.Background(), crashOptions(vfs.Default, k.dir, &problems))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { t.Log("problems: ", errors.Join(s.Close(), problems.get())) }()
	r, err := s.Audit(context.Background(), nil)
	t.Logf("audit: %+v, %v", r, err)
	if err := crashSettle(s); err != nil {
		t.Error(err)
	}
	(&model{t: t, s: s}).audit()
}

// last opens the store once more in this process, recounts it, and deletes all.
func (k *killer) last() error {
	var problems crashProblems
	s, err := Open(context.Background(), crashOptions(vfs.Default, k.dir, &problems))
	if err != nil {
		return err
	}
	img, err := crashImage(s)
	if err == nil {
		err = k.judge(img)
	}
	if err == nil {
		err = crashSettle(s)
	}
	if err == nil {
		(&model{t: k.t, s: s}).audit()
		err = (&judge{t: k.t}).deleteAll(s)
	}
	return errors.Join(err, s.Close(), problems.get())
}

// runChild works on a store until the process is killed. It never returns.
func runChild() {
	var order childOrder
	if err := gob.NewDecoder(os.Stdin).Decode(&order); err != nil {
		os.Exit(2)
	}
	reports := gob.NewEncoder(os.Stdout)
	var mu sync.Mutex
	tell := func(r childReport) {
		mu.Lock()
		defer mu.Unlock()
		if reports.Encode(r) != nil {
			os.Exit(3) // nobody listens any more
		}
	}
	fail := func(err error) {
		tell(childReport{Err: err.Error()})
		os.Exit(4)
	}
	var problems crashProblems
	opts := crashOptions(vfs.Default, order.Dir, &problems)
	opts.Events.Corruption = fail
	opts.Events.BackgroundError = func(task string, err error) { fail(fmt.Errorf("background %s: %w", task, err)) }
	s, err := Open(context.Background(), opts)
	if err != nil {
		fail(err)
	}
	img, err := crashImage(s)
	if err != nil {
		fail(err)
	}
	tell(childReport{Image: img})
	r := crashtest.NewRecorder(crashConfig, order.Seed, img.Clients, order.First, func(e crashtest.Event) { tell(childReport{Event: &e}) })
	if err := crashWork(context.Background(), s, r, 1<<30); err != nil {
		fail(err)
	}
	os.Exit(5)
}
