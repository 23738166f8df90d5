package e2e

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	soakSnapshots  = 3 // of a volume at most
	soakClones     = 2
	soakRestartEnd = 0.6 // part of the time after which hvd lives on to the end: what leaks must show
	soakHang       = 5 * time.Minute
)

// director does what administrators, crashes and upgrades do, one after the other at random times, while the loads run.
func (s *soak) director(end time.Time, progress func() float64) {
	for _, v := range s.volumes {
		s.begin(v)
	}
	operations := []struct {
		name  string
		share int
		run   func() error
	}{
		{"snapshot", 8, s.snapshot}, {"delete snapshot", 6, s.deleteSnapshot}, {"clone", 4, s.cloneSnapshot}, {"delete clone", 4, s.deleteClone},
		{"rollback", 2, s.rollback}, {"resize", 4, s.resize}, {"settle", 3, s.settle}, {"verify", 4, s.verifySomething},
		{"SIGTERM", 2, s.terminate}, {"SIGKILL", 4, s.kill},
	}
	said := time.Now()
	all := 0
	for _, o := range operations {
		all += o.share
	}
	for next := time.Now(); time.Now().Before(end); {
		select {
		case err := <-s.failed:
			s.must("load", err)
		case <-time.After(time.Until(next)):
		}
		if time.Since(said) > time.Minute {
			s.t.Logf("%3.0f %% of the time is over: %v", progress()*100, s.done)
			said = time.Now()
		}
		kind := s.rng.IntN(all)
		for _, o := range operations {
			if kind -= o.share; kind >= 0 {
				continue
			}
			if strings.HasPrefix(o.name, "SIG") && progress() > soakRestartEnd {
				break
			}
			s.must(o.name, o.run())
			s.done[o.name]++
			break
		}
		next = time.Now().Add(time.Duration(s.rng.IntN(int(2 * time.Second))))
	}
}

func (s *soak) someVolume() *soakVolume { return s.volumes[s.rng.IntN(len(s.volumes))] }

// some chooses a key of a map, by the seed alone.
func some[V any](rng *rand.Rand, m map[string]V) (key string, ok bool) {
	keys := slices.Sorted(maps.Keys(m))
	if len(keys) == 0 {
		return "", false
	}
	return keys[rng.IntN(len(keys))], true
}

func (s *soak) name(kind string) string {
	s.serial++
	return fmt.Sprintf("%s%d", kind, s.serial)
}

func (s *soak) snapshot() error {
	v := s.someVolume()
	if len(v.snaps) >= soakSnapshots {
		return nil
	}
	name := s.name("s")
	copied, err := v.capture(func() error { return s.command("snapshot", "create", v.name+"@"+name) })
	if err == nil {
		v.snaps[name] = copied
	}
	return err
}

func (s *soak) deleteSnapshot() error {
	v := s.someVolume()
	name, ok := some(s.rng, v.snaps)
	if !ok {
		return nil
	}
	delete(v.snaps, name)
	return s.command("snapshot", "delete", v.name+"@"+name)
}

// cloneSnapshot makes a volume of a snapshot, or of a volume as it is.
func (s *soak) cloneSnapshot() error {
	if len(s.clones) >= soakClones {
		return nil
	}
	v, clone := s.someVolume(), s.name("c")
	name, ok := some(s.rng, v.snaps)
	if ok && s.rng.IntN(2) == 0 {
		// What is in doubt is decided first: clone and snapshot are the same.
		if err := v.snaps[name].verifyDoubts(s.d.nbdSocket(), v.name+"@"+name); err != nil {
			return err
		}
		s.clones[clone] = v.snaps[name].clone()
		return s.command("volume", "clone", v.name+"@"+name, clone)
	}
	copied, err := v.capture(func() error { return s.command("volume", "clone", v.name, clone) })
	if err == nil {
		s.clones[clone] = copied
	}
	return err
}

// deleteClone looks at a clone for the last time.
func (s *soak) deleteClone() error {
	name, ok := some(s.rng, s.clones)
	if !ok {
		return nil
	}
	if err := s.verifyClone(name); err != nil {
		return err
	}
	delete(s.clones, name)
	return s.command("volume", "delete", name, "--yes")
}

func (s *soak) rollback() error {
	v := s.someVolume()
	name, ok := some(s.rng, v.snaps)
	if !ok {
		return nil
	}
	s.halt(v)
	for _, args := range [][]string{{"volume", "detach", v.name, "--force"}, {"snapshot", "rollback", v.name + "@" + name}, {"volume", "attach", v.name}} {
		if err := s.command(args...); err != nil {
			return err
		}
	}
	// The snapshot may be in doubt; the volume is now the same, so one answer holds for both.
	if err := v.snaps[name].verifyDoubts(s.d.nbdSocket(), v.name+"@"+name); err != nil {
		return err
	}
	v.state = v.snaps[name].clone()
	if err := v.state.verify(s.d.nbdSocket(), v.name); err != nil {
		return err
	}
	s.begin(v)
	return nil
}

// resize grows a volume under its guest, whose connection ends and which comes back, or shrinks it while the guest stands still.
func (s *soak) resize() error {
	v := s.someVolume()
	blocks := v.profile.blocks + (s.rng.IntN(5)-2)*v.profile.blocks/16
	args := []string{"volume", "resize", v.name, "--size", bytesText(uint64(blocks) * soakBlock)}
	if blocks > len(v.state.tokens) {
		v.mayBreak.Store(true)
		if err := s.command(args...); err != nil {
			return err
		}
		select {
		case <-v.ended:
		case <-time.After(patience):
			return fmt.Errorf("the connections to %s outlive a resize", v.name)
		}
	} else {
		s.halt(v)
		if err := s.command(append(args, "--shrink", "--force")...); err != nil {
			return err
		}
	}
	v.state.resize(blocks)
	if err := v.state.verifyDoubts(s.d.nbdSocket(), v.name); err != nil {
		return err
	}
	s.begin(v)
	return nil
}

func (s *soak) settle() error {
	ctx, cancel := context.WithTimeout(context.Background(), soakHang)
	defer cancel()
	text, err := exec.CommandContext(ctx, fabricPath, "--endpoint", "unix:"+s.d.dir+"/hvd.sock", "store", "settle", "--wait").CombinedOutput()
	if err != nil {
		var state strings.Builder
		for _, what := range [][]string{{"store", "stats"}, {"store", "index"}, {"store", "gc", "status"}} {
			state.WriteString(s.d.try(what...).stdout)
		}
		return fmt.Errorf("settle: %w: %s\n%s", err, text, &state)
	}
	return nil
}

// verifySomething compares a volume, a snapshot or a clone in whole.
func (s *soak) verifySomething() error {
	v := s.someVolume()
	name, ok := some(s.rng, v.snaps)
	if ok && s.rng.IntN(2) == 0 {
		return v.snaps[name].verify(s.d.nbdSocket(), v.name+"@"+name)
	}
	if clone, ok := some(s.rng, s.clones); ok && s.rng.IntN(2) == 0 {
		return s.verifyClone(clone)
	}
	s.halt(v)
	if err := v.state.verify(s.d.nbdSocket(), v.name); err != nil {
		return err
	}
	s.begin(v)
	return nil
}

func (s *soak) terminate() error { return s.restart(s.d.stop) }

// kill sends SIGKILL, in two of three cases in the middle of a command.
func (s *soak) kill() error {
	var under sync.WaitGroup
	v := s.someVolume()
	name, ok := some(s.rng, v.snaps)
	decided := func() error { return nil }
	switch kind := s.rng.IntN(3); {
	case kind == 0:
		under.Go(func() { s.d.try("store", "settle", "--wait") })
	case kind == 1 && ok:
		under.Go(func() { s.d.try("snapshot", "delete", v.name+"@"+name) })
		decided = func() error {
			var there []struct{ Name string }
			s.d.json(&there, "snapshot", "list", v.name)
			if !slices.ContainsFunc(there, func(snap struct{ Name string }) bool { return snap.Name == name }) {
				delete(v.snaps, name)
			}
			return nil
		}
	}
	time.Sleep(time.Duration(s.rng.IntN(200)) * time.Millisecond) // the moment of the kill
	return s.restart(func() {
		s.d.kill()
		under.Wait()
	}, decided)
}

// restart ends hvd under the loads, starts it, and has the loads go on once what was in flight is decided.
func (s *soak) restart(end func(), decided ...func() error) error {
	s.restarted(end)
	for _, f := range decided {
		if err := f(); err != nil {
			return err
		}
	}
	for _, v := range s.volumes {
		if err := v.state.verifyDoubts(s.d.nbdSocket(), v.name); err != nil {
			return err
		}
		s.begin(v)
	}
	return s.list()
}

// restarted has hvd end and start again while the watch looks away.
func (s *soak) restarted(end func()) {
	s.watch.pause()
	defer s.watch.resume()
	for _, v := range s.volumes {
		v.mayBreak.Store(true) // most loads have requests in flight
	}
	end()
	for _, v := range s.volumes {
		<-v.ended
	}
	s.d.start()
}
