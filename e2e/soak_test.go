package e2e

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	soakTime = flag.Duration("soak.time", 10*time.Second, "how long TestSoak keeps its load up; make soak: 30 minutes")
	soakSeed = flag.Uint64("soak.seed", 1, "seed of TestSoak; 0: from the clock")
	soakDir  = flag.String("soak.dir", "", "directory that keeps the store and hvd's log of a TestSoak that failed; none: they go with it")
)

// soakMemory is hvd's budget.
const soakMemory = 256 << 20

// TestSoak keeps guests working on several volumes while snapshots, clones, rollbacks, resizes, deletes, settles and restarts of both kinds come at random times. Everything
// is compared with a recorder in between and at the end; store check finds nothing; with all but the volumes deleted, the space in use is what the recorder says must be
// stored; memory stays in its budget; nothing leaks.
func TestSoak(t *testing.T) {
	if testing.Short() {
		t.Skip("a soak is not short")
	}
	s := newSoak(t)
	began := time.Now()
	s.director(began.Add(*soakTime), func() float64 { return float64(time.Since(began)) / float64(*soakTime) })
	s.watch.end()
	s.must("at the end", s.verifyAll())
	s.d.stop()
	s.d.check()
	s.d.start()
	s.report()
	s.space()
	s.verdict(time.Since(began))
}

// soak is a soak under way. The director's goroutine has it all but for what volumes and watch guard.
type soak struct {
	t       *testing.T
	seed    uint64
	rng     *rand.Rand
	d       *daemon
	volumes []*soakVolume
	clones  map[string]*soakState
	watch   *soakWatch
	failed  chan error     // of loads
	done    map[string]int // operations by name
	serial  int            // of snapshots and clones
}

func newSoak(t *testing.T) *soak {
	seed := *soakSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	s := &soak{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 0)), clones: map[string]*soakState{}, failed: make(chan error, len(soakProfiles)), done: map[string]int{}}
	flags := []string{"--store-destage-after", "5s", "--memory", bytesText(soakMemory)}
	if *soakDir == "" {
		s.d = newDaemon(t, flags...)
	} else {
		// What an earlier soak kept stays; this one's goes when it passes.
		dir := filepath.Join(*soakDir, fmt.Sprintf("seed-%d", seed))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		s.d = daemonIn(t, filepath.Join(dir, "store"), flags...)
		t.Cleanup(func() {
			if !t.Failed() {
				os.RemoveAll(dir)
			} else if err := os.WriteFile(filepath.Join(dir, "hvd.log"), []byte(s.d.log.String()), 0o600); err != nil {
				t.Error(err)
			}
		})
	}
	s.d.start()
	for i := range soakProfiles {
		p := &soakProfiles[i]
		v := &soakVolume{name: p.name, profile: p, rng: rand.New(rand.NewPCG(seed, uint64(i+1))), state: &soakState{doubt: map[int][]uint64{}}, snaps: map[string]*soakState{}}
		v.state.resize(p.blocks)
		s.d.disk(v.name, bytesText(uint64(p.blocks)*soakBlock), "--chunking", p.chunking)
		s.volumes = append(s.volumes, v)
	}
	s.watch = newSoakWatch(s.d)
	return s
}

// must ends the soak on an error, with the command that repeats it.
func (s *soak) must(what string, err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("%s: %v\nrepeat: go test ./e2e -run TestSoak -soak.time=%v -soak.seed=%d", what, err, *soakTime, s.seed)
	}
}

// begin starts the load of a volume.
func (s *soak) begin(v *soakVolume) {
	v.stop, v.ended = make(chan struct{}), make(chan struct{})
	v.mayBreak.Store(false)
	go func() {
		defer close(v.ended)
		err := v.run(s.d.nbdSocket())
		var wrong *soakError
		if err != nil && (!v.mayBreak.Load() || errors.As(err, &wrong)) {
			s.failed <- err
		}
	}()
}

// halt stops the load of a volume and settles what is in doubt.
func (s *soak) halt(v *soakVolume) {
	close(v.stop)
	<-v.ended
	s.must("after a stop of the load of "+v.name, v.state.verifyDoubts(s.d.nbdSocket(), v.name))
}

// command runs hv-storage-fabric; an error is what it says.
func (s *soak) command(args ...string) error {
	if got := s.d.try(args...); got.code != 0 {
		return fmt.Errorf("%s: exit code %d: %s", strings.Join(args, " "), got.code, got.stderr)
	}
	return nil
}

// verifyAll stops all loads and compares every volume, snapshot and clone.
func (s *soak) verifyAll() error {
	for _, v := range s.volumes {
		s.halt(v)
	}
	for _, v := range s.volumes {
		if err := v.state.verify(s.d.nbdSocket(), v.name); err != nil {
			return err
		}
		for name, snap := range v.snaps {
			if err := snap.verify(s.d.nbdSocket(), v.name+"@"+name); err != nil {
				return err
			}
		}
	}
	for name := range s.clones {
		if err := s.verifyClone(name); err != nil {
			return err
		}
	}
	select {
	case err := <-s.failed:
		return err
	default:
		return s.list()
	}
}

func (s *soak) verifyClone(name string) error {
	if err := s.command("volume", "attach", name); err != nil {
		return err
	}
	err := s.clones[name].verify(s.d.nbdSocket(), name)
	return errors.Join(err, s.command("volume", "detach", name, "--force"))
}

// list compares the names of what is there.
func (s *soak) list() error {
	var want []string
	for _, v := range s.volumes {
		want = append(want, v.name)
		var there []struct{ Name string }
		s.d.json(&there, "snapshot", "list", v.name)
		for _, snap := range there {
			if v.snaps[snap.Name] == nil {
				return fmt.Errorf("%s@%s is there and should not be", v.name, snap.Name)
			}
		}
		if len(there) != len(v.snaps) {
			return fmt.Errorf("%s has %d snapshots, want %d", v.name, len(there), len(v.snaps))
		}
	}
	for name := range s.clones {
		want = append(want, name)
	}
	slices.Sort(want)
	if got := s.d.volumes(); !slices.Equal(got, want) {
		return fmt.Errorf("volumes are %q, want %q", got, want)
	}
	return nil
}
