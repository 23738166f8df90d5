package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/replica"
)

var shop = []string{"db", "files", "log"}

// newShop makes the volumes of a group and the group.
func newShop(t *testing.T, s *site) {
	t.Helper()
	for _, volume := range shop {
		_, err := s.control().CreateVolume(t.Context(), VolumeSpec{Name: volume, SizeBytes: 8 << 20})
		must(t, err)
	}
	_, err := s.control().SetGroup("shop", shop)
	must(t, err)
}

// moment is what all volumes of the group held at one time.
type moment [3][]byte

func (m moment) equal(o moment) bool {
	return slices.EqualFunc(m[:], o[:], bytes.Equal)
}

// newestMoment reads the newest points of all volumes, while no other becomes that.
func (s *site) newestMoment() (m moment) {
	s.t.Helper()
	release, err := s.control().names.hold(context.Background(), "test", shop...)
	must(s.t, err)
	defer release()
	for i, volume := range shop {
		m[i] = s.newestPoint(volume)
	}
	return m
}

// Volumes of a group, with lines that are cut in any of their streams, lost answers, restarts of either side and roles that change: what the target has of them is always of one moment.
func TestReplicationGroupModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	a, b := newSites(t)
	newShop(t, a)
	now := moment{}
	for i, volume := range shop {
		now[i] = a.change(rng, volume, make([]byte, 8<<20))
	}
	spec := ReplicateSpec{Target: "hvd://b/@shop", Interval: MaxReplicaInterval}
	must(t, a.control().Replicate(t.Context(), "@shop", spec), a.control().SyncReplication(t.Context(), "@shop"))
	for turn := range 4 {
		states := []moment{now} // of which the target may have any
		for step := range 12 {
			for i, volume := range shop {
				if rng.IntN(3) > 0 {
					now[i] = a.change(rng, volume, now[i])
					states = append(states, now) // what failed before is tried again meanwhile
				}
			}
			asked := shop[rng.IntN(3)]
			b.mu.Lock()
			b.fault = func() (wrong fault) { // with the lock of b
				switch rng.IntN(6) {
				case 0:
					wrong.cutAfter = 1 + rng.IntN(4<<20)
				case 1:
					wrong.loseAnswer = true
				}
				return wrong
			}
			b.mu.Unlock()
			err := a.control().SyncReplication(t.Context(), asked)
			b.mu.Lock() // rng is the test's again
			b.fault = nil
			b.mu.Unlock()
			got := b.newestMoment()
			at := slices.IndexFunc(states, got.equal)
			if at < 0 || err == nil && !got.equal(now) {
				t.Fatalf("turn %d, step %d, %v: what is newest of the three is no moment of theirs: %d of %d", turn, step, err, at, len(states))
			}
			if rng.IntN(3) == 0 {
				one := []*site{a, b}[rng.IntN(2)]
				one.down()
				one.up()
			}
		}
		must(t, b.control().PromoteReplica(t.Context(), "@shop"))
		for i, volume := range shop {
			now[i] = b.content(volume, "")
		}
		if !slices.ContainsFunc(states, now.equal) {
			t.Fatalf("turn %d: what was promoted is no moment of the source", turn)
		}
		if err := a.control().SyncReplication(t.Context(), "@shop"); err == nil {
			t.Fatal("a group whose replicas were promoted is still sent")
		}
		for _, volume := range shop {
			if s, err := a.control().Replication(t.Context(), volume); err != nil || s.State != "fenced" || s.Group != "shop" {
				t.Fatalf("volume %s does not know: %+v, %v", volume, s, err)
			}
		}
		must(t, last(a.control().DemoteReplica(t.Context(), "@shop", false)))
		a, b = b, a
		spec.Target = "hvd://b/@shop"
		must(t, a.control().Replicate(t.Context(), "@shop", spec), a.control().SyncReplication(t.Context(), "@shop"))
	}
	for _, s := range []*site{a, b} {
		for _, volume := range shop {
			for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
				infos, err := s.control().engine.Snapshots(volume)
				if err == nil && len(infos) == 1 {
					break
				}
				if err != nil || time.Now().After(end) {
					t.Fatalf("there are snapshots of %s left: %v, %v", volume, infos, err)
				}
			}
		}
	}
	must(t, a.control().StopReplication(t.Context(), "@shop"))
	if infos, _ := a.control().engine.Snapshots("db"); len(infos) != 0 || len(a.control().Replications(t.Context())) != 0 {
		t.Errorf("a stopped replication leaves %v", infos)
	}
}

// One volume of a group lags: its stream is cut, those of the others are complete. What is promoted then is the moment before, of all of them, and what came is given up.
func TestReplicationGroupLagging(t *testing.T) {
	a, b := newSites(t)
	newShop(t, a)
	rng := rand.New(rand.NewPCG(7, 7))
	now := moment{}
	for i, volume := range shop {
		now[i] = a.change(rng, volume, make([]byte, 8<<20))
	}
	must(t, a.control().Replicate(t.Context(), "@shop", ReplicateSpec{Target: "hvd://b/@shop", Interval: MaxReplicaInterval}), a.control().SyncReplication(t.Context(), "@shop"))
	b.mu.Lock()
	b.lags = "log"
	b.mu.Unlock()
	next := now
	for i, volume := range shop {
		next[i] = bytes.Clone(now[i])
		p := bytes.Repeat([]byte{byte(0xa0 + i)}, 4<<20)
		copy(next[i], p)
		d, err := a.control().engine.OpenDevice(volume, "")
		must(t, err)
		must(t, d.Write(t.Context(), []block.Write{{Off: 0, Data: p}}, false), d.Close())
	}
	if err := a.control().SyncReplication(t.Context(), "@shop"); err == nil || !strings.Contains(err.Error(), `volume "log"`) {
		t.Fatalf("a cut stream was complete: %v", err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) { // each try goes on with what is missing
		db, _, err := b.control().replicationNow("db")
		must(t, err)
		files, _, err := b.control().replicationNow("files")
		must(t, err)
		if db.State == "ready" && files.State == "ready" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("db is %s, files is %s", db.State, files.State)
		}
	}
	if !b.newestMoment().equal(now) {
		t.Fatal("parts of a point are newest before all are there")
	}
	if err := b.control().PromoteReplica(t.Context(), "db"); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "@shop") {
		t.Errorf("one of a group is promoted alone: %v", err)
	}
	b.down() // and what was ready is so after a start
	b.up()
	if s, _, err := b.control().replicationNow("db"); err != nil || s.State != "ready" {
		t.Errorf("after a restart it is %+v, %v", s, err)
	}
	must(t, b.control().PromoteReplica(t.Context(), "@shop"))
	for i, volume := range shop {
		if !bytes.Equal(b.content(volume, ""), now[i]) {
			t.Errorf("volume %s was promoted as of another moment", volume)
		}
	}
	if _, _, err := b.control().Attach(t.Context(), AttachSpec{Volume: "db"}); err != nil {
		t.Error(err)
	}
}

// Volumes that come to a group, leave it, or were replicated by themselves before, keep what the target has of them.
func TestReplicationGroupMembers(t *testing.T) {
	a, b := newSites(t)
	newShop(t, a)
	rng := rand.New(rand.NewPCG(8, 8))
	now := moment{}
	for i, volume := range shop {
		now[i] = a.change(rng, volume, make([]byte, 8<<20))
	}
	c := a.control()
	spec := ReplicateSpec{Target: "hvd://b/@shop", Interval: MaxReplicaInterval}
	must(t, c.Replicate(t.Context(), "db", ReplicateSpec{Target: "hvd://b/db", Interval: MaxReplicaInterval}), c.SyncReplication(t.Context(), "db"))
	must(t, c.Replicate(t.Context(), "log", ReplicateSpec{Target: "hvd://b/other", Interval: MaxReplicaInterval}))
	if err := c.Replicate(t.Context(), "@shop", spec); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "keep their names") {
		t.Fatalf("a replica of another name joins: %v", err)
	}
	must(t, c.StopReplication(t.Context(), "log"))
	_, err := c.SetGroup("shop", shop[:2])
	must(t, err)
	must(t, c.Replicate(t.Context(), "@shop", spec))
	must(t, c.SyncReplication(t.Context(), "@shop"))
	if s, err := c.Replication(t.Context(), "db"); err != nil || s.Epoch != 1 || s.Failures > 0 {
		t.Errorf("what was there before is not gone on with: %+v, %v", s, err)
	}
	if err := c.Replicate(t.Context(), "db", ReplicateSpec{Target: "hvd://b/db"}); !errors.Is(err, ErrRefused) {
		t.Errorf("one of a group is replicated alone: %v", err)
	}
	_, err = c.SetGroup("shop", []string{"files", "log"})
	must(t, err)
	if text := strings.Join(c.Status().Problems, " "); !strings.Contains(text, "volume replicate @shop hvd://b:8082/@shop") {
		t.Errorf("status says %q", text)
	}
	limit := uint64(1 << 30)
	spec.LimitBytes = &limit
	must(t, c.Replicate(t.Context(), "@shop", spec), c.SyncReplication(t.Context(), "@shop"))
	all, err := c.Replication(t.Context(), "@shop")
	must(t, err)
	var names []string
	for _, m := range all.Members {
		names = append(names, m.Volume)
	}
	if fmt.Sprint(names) != "[files log]" || all.LimitBytes != limit || all.PointAt == nil || all.BehindBytes == nil || *all.BehindBytes != 0 {
		t.Errorf("the group is %+v", all)
	}
	if _, found := c.replicationRecordOf("db"); found {
		t.Error("what left the group is replicated")
	}
	if s, err := b.control().Replication(t.Context(), "db"); err != nil || s.Group != "" || s.Role != roleReplica {
		t.Errorf("the replica of what left is %+v, %v", s, err)
	}
	must(t, b.control().PromoteReplica(t.Context(), "db"), b.control().PromoteReplica(t.Context(), "@shop"))
	for i, volume := range shop {
		if !bytes.Equal(b.content(volume, ""), now[i]) {
			t.Errorf("volume %s has other content", volume)
		}
	}
}

// Nobody gets a point of a group made that is not whole, or into another's group.
func TestReplicationGroupStrangers(t *testing.T) {
	a, b := newSites(t)
	newShop(t, a)
	must(t, a.control().Replicate(t.Context(), "@shop", ReplicateSpec{Target: "hvd://b/@shop", Interval: MaxReplicaInterval}), a.control().SyncReplication(t.Context(), "@shop"))
	c, local := b.control(), ReplicaSender{Local: true}
	records := c.recordsIn(c.groupOf(c.replicationOf("db")))
	if len(records) != 3 {
		t.Fatalf("%d members", len(records))
	}
	commit := func(change func(*replica.Commit)) error {
		m := replica.Commit{Group: records[0].Group.ID, At: time.Now()}
		for _, r := range records {
			m.Members = append(m.Members, replica.CommitMember{Volume: r.Volume, Pair: r.Pair, Epoch: r.Epoch})
		}
		change(&m)
		return c.CommitReplicas(t.Context(), local, "shop", records[0].newest().ID, m)
	}
	must(t, commit(func(*replica.Commit) {})) // again: it does no harm
	for what, change := range map[string]func(*replica.Commit){
		"another group":   func(m *replica.Commit) { m.Group = newID() },
		"another pair":    func(m *replica.Commit) { m.Members[1].Pair = newID() },
		"an old epoch":    func(m *replica.Commit) { m.Members[1].Epoch = 0 },
		"twice":           func(m *replica.Commit) { m.Members[1] = m.Members[0] },
		"none":            func(m *replica.Commit) { m.Members = nil },
		"one that is not": func(m *replica.Commit) { m.Members[2].Volume = "nope" },
	} {
		if commit(change) == nil {
			t.Errorf("%s: it is taken", what)
		}
	}
	m := replica.Commit{Group: records[0].Group.ID, At: time.Now()}
	for _, r := range records {
		m.Members = append(m.Members, replica.CommitMember{Volume: r.Volume, Pair: r.Pair, Epoch: r.Epoch})
	}
	if err := c.CommitReplicas(t.Context(), local, "shop", newID(), m); err == nil {
		t.Error("a point that never came is taken")
	}
	stranger := ReplicaSender{Names: []string{"site9"}}
	if _, err := c.ReplicaGroupHello(t.Context(), stranger, "shop", replica.GroupHello{Group: newID(), Members: []replica.MemberHello{{Volume: "x", Hello: replica.Hello{Pair: newID(), Epoch: 1, SizeBytes: 1 << 20, Chunking: "cdc", Mode: "writeback", Create: true}}}}); !errors.Is(err, block.ErrExists) {
		t.Errorf("another group of that name: %v", err)
	}
	err := c.ReceiveReplica(t.Context(), local, "db", replica.Begin{Pair: records[0].Pair, Epoch: 1, Point: newID(), Base: records[0].newest().ID}, strings.NewReader(""), func() {})
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "@shop") {
		t.Errorf("one of a group comes alone: %v", err)
	}
	for _, m := range c.Replications(t.Context()) {
		if m.Group != "shop" || m.Role != roleReplica {
			t.Errorf("it was changed: %+v", m)
		}
	}
}
