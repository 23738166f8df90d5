package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/config"
	"github.com/hyper-nixos/hyper-nixos/control/replica"
)

// site is one of two hvd, with a store of its own, that comes and goes.
type site struct {
	t     *testing.T
	cfg   *config.Loaded
	other *site

	mu    sync.Mutex
	c     *Control // nil while it is down
	fault func() fault
	froms []uint64 // where the streams to this site began
	lags  string   // a volume whose streams are cut
}

// fault is what goes wrong with a stream to this site.
type fault struct {
	cutAfter   int  // bytes; 0: it is whole
	loseAnswer bool // the point is complete, and the source does not hear of it
}

func newSites(t *testing.T) (a, b *site) {
	a, b = &site{t: t, cfg: testConfig(t)}, &site{t: t, cfg: testConfig(t)}
	a.cfg.Listen, b.cfg.Listen = config.Off, config.Off
	a.cfg.Store.LogCap, b.cfg.Store.LogCap = 64<<20, 64<<20
	a.other, b.other = b, a
	a.up()
	b.up()
	t.Cleanup(func() { a.down(); b.down() })
	return a, b
}

// up opens the site as it was left.
func (s *site) up() {
	s.t.Helper()
	c, err := Open(context.Background(), Options{
		Config: s.cfg, Version: "test", OpenEngine: func(ctx context.Context, cfg config.Config, log *slog.Logger) (Engine, error) {
			return OpenStore(ctx, cfg, log)
		},
		DialReplica: func(t replica.Target) (ReplicaPeer, error) { return siteWire{s.other, t.Volume + t.Group}, nil },
	})
	if err != nil {
		s.t.Fatal(err)
	}
	c.keepReceived = 1 << 20
	s.mu.Lock()
	defer s.mu.Unlock()
	s.c = c
}

func (s *site) down() {
	s.mu.Lock()
	c := s.c
	s.c = nil
	s.mu.Unlock()
	if c != nil {
		if err := c.Close(context.Background()); err != nil {
			s.t.Error(err)
		}
	}
}

func (s *site) control() *Control {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.c
}

// siteWire is the way to a volume of a site, or to a group.
type siteWire struct {
	to     *site
	volume string
}

func (w siteWire) HelloGroup(ctx context.Context, h replica.GroupHello) (replica.GroupState, error) {
	c := w.to.control()
	if c == nil {
		return replica.GroupState{}, errDown
	}
	return c.ReplicaGroupHello(ctx, ReplicaSender{Local: true}, w.volume, h)
}

func (w siteWire) Commit(ctx context.Context, point string, m replica.Commit) error {
	w.to.mu.Lock()
	c, wrong := w.to.c, fault{}
	if w.to.fault != nil {
		wrong = w.to.fault()
	}
	w.to.mu.Unlock()
	switch {
	case c == nil:
		return errDown
	case wrong.cutAfter > 0:
		return errors.New("the line is cut")
	}
	if err := c.CommitReplicas(ctx, ReplicaSender{Local: true}, w.volume, point, m); err != nil || !wrong.loseAnswer {
		return err
	}
	return errors.New("the answer is lost")
}

var errDown = errors.New("nobody answers")

func (siteWire) Close() {}

func (w siteWire) Hello(ctx context.Context, h replica.Hello) (replica.State, error) {
	c := w.to.control()
	if c == nil {
		return replica.State{}, errDown
	}
	return c.ReplicaHello(ctx, ReplicaSender{Local: true}, w.volume, h)
}

func (w siteWire) Send(ctx context.Context, b replica.Begin, send func(context.Context, io.Writer) error) error {
	w.to.mu.Lock()
	c, wrong := w.to.c, fault{}
	if w.to.fault != nil {
		wrong = w.to.fault()
	}
	w.to.froms = append(w.to.froms, b.FromBytes)
	if w.volume == w.to.lags {
		wrong.cutAfter = 64
	}
	w.to.mu.Unlock()
	if c == nil {
		return errDown
	}
	body, out := io.Pipe()
	defer body.Close()
	sent := make(chan error, 1)
	go func() {
		err := send(ctx, &cutWriter{out, wrong.cutAfter})
		_ = out.CloseWithError(err)
		sent <- err
	}()
	err := c.ReceiveReplica(ctx, ReplicaSender{Local: true}, w.volume, b, body, func() { _ = body.CloseWithError(errors.New("cut")) })
	_ = body.Close()
	own := <-sent
	if wrong.loseAnswer && err == nil {
		return errors.New("the answer is lost")
	}
	return errors.Join(err, own)
}

// cutWriter fails after so many bytes, if that is not 0.
type cutWriter struct {
	w    io.Writer
	left int
}

func (c *cutWriter) Write(p []byte) (int, error) {
	if c.left == 0 {
		return c.w.Write(p)
	}
	if len(p) >= c.left {
		return 0, errors.New("the line is cut")
	}
	c.left -= len(p)
	return c.w.Write(p)
}

// content reads a state of a volume.
func (s *site) content(volume, snapshot string) []byte {
	s.t.Helper()
	d, err := s.control().engine.OpenDevice(volume, snapshot)
	if err != nil {
		s.t.Fatal(err)
	}
	defer d.Close()
	p := make([]byte, d.Size())
	if _, err := d.ReadAt(context.Background(), p, 0, nil); err != nil {
		s.t.Fatal(err)
	}
	return p
}

// newestPoint reads the newest point of a replica, which the source may replace meanwhile.
func (s *site) newestPoint(volume string) []byte {
	s.t.Helper()
	for {
		record, _ := s.control().replicationRecordOf(volume)
		d, err := s.control().engine.OpenDevice(volume, pointName(record.newest().ID))
		if errors.Is(err, block.ErrNotFound) {
			if now, _ := s.control().replicationRecordOf(volume); now.newest() != record.newest() {
				continue
			}
		}
		if err != nil {
			s.t.Fatal(err)
		}
		p := make([]byte, d.Size())
		_, err = d.ReadAt(context.Background(), p, 0, nil)
		if err := errors.Join(err, d.Close()); err != nil {
			s.t.Fatal(err)
		}
		return p
	}
}

// change does something to a volume and to the bytes that it should have, which it returns.
func (s *site) change(rng *rand.Rand, volume string, model []byte) []byte {
	s.t.Helper()
	model = bytes.Clone(model)
	release, err := s.control().names.hold(context.Background(), "test", volume) // no point is made in the midst of it
	if err != nil {
		s.t.Fatal(err)
	}
	defer release()
	e := s.control().engine
	if rng.IntN(12) == 0 {
		size := (4 + rng.IntN(12)) << 20
		if err := e.ResizeVolume(context.Background(), volume, uint64(size)); err != nil {
			s.t.Fatal(err)
		}
		model = append(model[:min(size, len(model)):min(size, len(model))], make([]byte, max(0, size-len(model)))...)
	}
	d, err := e.OpenDevice(volume, "")
	if err != nil {
		s.t.Fatal(err)
	}
	defer d.Close()
	for range 1 + rng.IntN(8) {
		off := rng.IntN(len(model)/512) * 512
		length := min((1+rng.IntN(4000))*512, len(model)-off)
		switch p := model[off : off+length]; rng.IntN(4) {
		case 0:
			clear(p)
			err = d.Zero(context.Background(), block.Range{Off: uint64(off), Len: uint64(length)}, false, false)
		case 1:
			off, length = off/4096*4096, (length+4095)/4096*4096
			length = min(length, len(model)-off)
			clear(model[off : off+length])
			err = d.Trim(context.Background(), block.Range{Off: uint64(off), Len: uint64(length)}, false)
		default:
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			err = d.Write(context.Background(), []block.Write{{Off: uint64(off), Data: p}}, false)
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	return model
}

// Two sites, lines that are cut anywhere, answers that are lost, either side closed and opened again, and roles that change: each point that the target has is the source as it was at one moment, and after a promotion both sides go on from there.
func TestReplicationModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	a, b := newSites(t)
	if _, err := a.control().CreateVolume(t.Context(), VolumeSpec{Name: "v", SizeBytes: 8 << 20}); err != nil {
		t.Fatal(err)
	}
	model := a.change(rng, "v", make([]byte, 8<<20))
	must(t, a.control().Replicate(t.Context(), "v", ReplicateSpec{Target: "hvd://b/v", Interval: MaxReplicaInterval}))
	must(t, a.control().SyncReplication(t.Context(), "v"))
	for turn := range 6 {
		states := [][]byte{model} // of which the target may have any
		for step := range 12 {
			model = a.change(rng, "v", model)
			states = append(states, model)
			b.mu.Lock()
			wrong := fault{}
			switch rng.IntN(4) {
			case 0:
				wrong.cutAfter = 1 + rng.IntN(4<<20)
			case 1:
				wrong.loseAnswer = true
			}
			b.fault = func() fault { return wrong }
			b.mu.Unlock()
			err := a.control().SyncReplication(t.Context(), "v")
			got := b.newestPoint("v")
			at := -1
			for i, s := range states {
				if bytes.Equal(s, got) {
					at = i
				}
			}
			if at < 0 || err == nil && at != len(states)-1 {
				t.Fatalf("turn %d, step %d, fault %+v, %v: the newest point is state %d of %d", turn, step, wrong, err, at, len(states))
			}
			if err == nil {
				states = states[at:]
			}
			if rng.IntN(3) == 0 {
				one := []*site{a, b}[rng.IntN(2)]
				one.down()
				one.up()
			}
		}
		must(t, b.control().PromoteReplica(t.Context(), "v"))
		if model = b.content("v", ""); !containsState(states, model) {
			t.Fatalf("turn %d: what was promoted is no state of the source", turn)
		}
		if err := a.control().SyncReplication(t.Context(), "v"); err == nil {
			t.Fatal("a source whose replica was promoted still sends")
		}
		if s, err := a.control().Replication(t.Context(), "v"); err != nil || s.FencedBy == 0 || s.State != "fenced" {
			t.Fatalf("it does not know: %+v, %v", s, err)
		}
		if rng.IntN(2) == 0 {
			a.down()
			a.up()
		}
		_, err := a.control().DemoteReplica(t.Context(), "v", false)
		must(t, err)
		model = b.change(rng, "v", model)
		a, b = b, a
		b.mu.Lock()
		b.fault = nil
		b.mu.Unlock()
		must(t, a.control().Replicate(t.Context(), "v", ReplicateSpec{Target: "hvd://b/v", Interval: MaxReplicaInterval}), a.control().SyncReplication(t.Context(), "v"))
	}
	for _, s := range []*site{a, b} { // a source deletes the point before when its target has said that it has the new one
		for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			infos, err := s.control().engine.Snapshots("v")
			if err == nil && len(infos) == 1 {
				break
			}
			if err != nil || time.Now().After(end) {
				t.Fatalf("there are snapshots left: %v, %v", infos, err)
			}
		}
	}
	must(t, a.control().StopReplication(t.Context(), "v"))
	if infos, _ := a.control().engine.Snapshots("v"); len(infos) != 0 {
		t.Errorf("a stopped replication leaves %v", infos)
	}
}

// A stream that is cut goes on where the target has it durably, after restarts of both, and the state of the source from then on comes with the next point.
func TestReplicationResume(t *testing.T) {
	a, b := newSites(t)
	_, err := a.control().CreateVolume(t.Context(), VolumeSpec{Name: "v", SizeBytes: 16 << 20})
	must(t, err)
	rng := rand.New(rand.NewPCG(4, 4))
	write := func() []byte {
		p := make([]byte, 16<<20)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		d, err := a.control().engine.OpenDevice("v", "")
		must(t, err)
		must(t, d.Write(t.Context(), []block.Write{{Off: 0, Data: p}}, false), d.Close())
		return p
	}
	first := write()
	// The first stream may have been cut before anybody waits for it: no later one gets to the end either.
	streams := atomic.Int32{}
	b.fault = func() fault {
		if streams.Add(1) == 1 {
			return fault{cutAfter: 10 << 20}
		}
		return fault{cutAfter: 64 << 10}
	}
	must(t, a.control().Replicate(t.Context(), "v", ReplicateSpec{Target: "hvd://b/v", Interval: MaxReplicaInterval}))
	if err := a.control().SyncReplication(t.Context(), "v"); err == nil {
		t.Fatal("a cut stream was complete")
	}
	a.down()
	b.down()
	b.fault = nil
	b.up()
	a.up()
	second := write()
	must(t, a.control().SyncReplication(t.Context(), "v"))
	b.mu.Lock()
	froms, resumed := fmt.Sprint(b.froms), slices.Max(b.froms)
	b.mu.Unlock()
	if resumed < 4<<20 || !bytes.Equal(b.newestPoint("v"), second) || bytes.Equal(first, second) {
		t.Errorf("the streams began from %s", froms)
	}
}

// Two sides that both were promoted from one epoch refuse each other until one is demoted; that one then goes back to what both had.
func TestReplicationSplit(t *testing.T) {
	a, b := newSites(t)
	_, err := a.control().CreateVolume(t.Context(), VolumeSpec{Name: "v", SizeBytes: 8 << 20})
	must(t, err)
	rng := rand.New(rand.NewPCG(5, 5))
	model := a.change(rng, "v", make([]byte, 8<<20))
	must(t, a.control().Replicate(t.Context(), "v", ReplicateSpec{Target: "hvd://b/v", Interval: MaxReplicaInterval}), a.control().SyncReplication(t.Context(), "v"))
	must(t, last(a.control().DemoteReplica(t.Context(), "v", false)))
	must(t, a.control().PromoteReplica(t.Context(), "v"), b.control().PromoteReplica(t.Context(), "v"))
	model = a.change(rng, "v", model)
	b.change(rng, "v", b.content("v", ""))
	must(t, a.control().Replicate(t.Context(), "v", ReplicateSpec{Target: "hvd://b/v", Interval: MaxReplicaInterval}), b.control().Replicate(t.Context(), "v", ReplicateSpec{Target: "hvd://a/v", Interval: MaxReplicaInterval}))
	for _, s := range []*site{a, b} {
		if err := s.control().SyncReplication(t.Context(), "v"); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "no replica") {
			t.Errorf("of two primaries one sends: %v", err)
		}
	}
	lost, err := b.control().DemoteReplica(t.Context(), "v", false)
	must(t, err)
	if lost.LostBytes == 0 {
		t.Error("what was written at the side that is demoted is not told as lost")
	}
	must(t, a.control().SyncReplication(t.Context(), "v"))
	if !bytes.Equal(b.newestPoint("v"), model) {
		t.Error("the side that was demoted has other content than the other one")
	}
}

func containsState(states [][]byte, p []byte) bool {
	for _, s := range states {
		if bytes.Equal(s, p) {
			return true
		}
	}
	return false
}

// A source that is attached loses the right to write at the moment at which it hears of the promotion, and keeps it lost across a restart; a replica is nobody's to change.
func TestReplicationFencing(t *testing.T) {
	a, b := newSites(t)
	_, err := a.control().CreateVolume(t.Context(), VolumeSpec{Name: "v", SizeBytes: 8 << 20})
	must(t, err)
	_, _, err = a.control().Attach(t.Context(), AttachSpec{Volume: "v"})
	must(t, err, a.control().Replicate(t.Context(), "v", ReplicateSpec{Target: "hvd://b/v"}), a.control().SyncReplication(t.Context(), "v"))
	for what, err := range map[string]error{
		"attach":    second(b.control().Attach(t.Context(), AttachSpec{Volume: "v"})),
		"snapshot":  last(b.control().CreateSnapshot(t.Context(), "v", "s")),
		"rename":    last(b.control().RenameVolume(t.Context(), "v", "w")),
		"resize":    last(b.control().ResizeVolume(t.Context(), "v", ResizeSpec{SizeBytes: 16 << 20})),
		"demote":    last(b.control().DemoteReplica(t.Context(), "v", false)),
		"stop":      b.control().StopReplication(t.Context(), "v"),
		"replicate": b.control().Replicate(t.Context(), "v", ReplicateSpec{Target: "hvd://b/w"}),
		"delete":    a.control().DeleteVolume(t.Context(), "v"),
		"promote":   a.control().PromoteReplica(t.Context(), "v"),
	} {
		if !errors.Is(err, ErrRefused) && !errors.Is(err, block.ErrInUse) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := b.control().CloneVolume(t.Context(), "v", "", "look"); err != nil {
		t.Errorf("a replica cannot be looked at: %v", err)
	}
	view, release, err := sharedExports{a.control()}.Acquire("v")
	must(t, err, view.Device.Write(t.Context(), []block.Write{{Off: 0, Data: make([]byte, 4096)}}, false))
	must(t, b.control().PromoteReplica(t.Context(), "v"))
	if err := a.control().SyncReplication(t.Context(), "v"); err == nil {
		t.Error("the old source sends")
	}
	if err := view.Device.Write(t.Context(), []block.Write{{Off: 0, Data: make([]byte, 4096)}}, false); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("a client of the old source writes: %v", err)
	}
	release()
	a.down()
	a.up()
	view, release, err = sharedExports{a.control()}.Acquire("v")
	must(t, err)
	if err := view.Device.TryWrite([]block.Write{{Off: 0, Data: make([]byte, 4096)}}, false); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("after a restart a client of the old source writes: %v", err)
	}
	release()
	if _, err := a.control().DemoteReplica(t.Context(), "v", false); !errors.Is(err, block.ErrInUse) {
		t.Errorf("demoted while it is attached: %v", err)
	}
	if text := strings.Join(a.control().Status().Problems, " "); !strings.Contains(text, "promoted") {
		t.Errorf("status says %q", text)
	}
	// Both go their own ways: an old point from an old epoch gets nowhere.
	err = b.control().ReceiveReplica(t.Context(), ReplicaSender{Local: true}, "v", replica.Begin{
		Pair: b.control().recordIn(b.control().replicationOf("v")).Pair, Epoch: 1, Point: newID(), Base: replica.Empty,
	}, strings.NewReader(""), func() {})
	if !errors.Is(err, ErrRefused) {
		t.Errorf("a stream of an old epoch: %v", err)
	}
}

func last[T any](_ T, err error) error           { return err }
func second[T, U any](_ T, _ U, err error) error { return err }

// A replica takes nothing from a stranger, and a stranger makes none: neither by another certificate nor by another pair.
func TestReplicationStrangers(t *testing.T) {
	a, b := newSites(t)
	_, err := b.control().CreateVolume(t.Context(), VolumeSpec{Name: "mine", SizeBytes: 8 << 20})
	must(t, err)
	hello := replica.Hello{Pair: newID(), Epoch: 1, Source: "v", SizeBytes: 8 << 20, Chunking: "cdc", Mode: "writeback", Create: true}
	c := b.control()
	site1, site2 := ReplicaSender{Names: []string{"site1"}}, ReplicaSender{Names: []string{"site2"}}
	if _, err := c.ReplicaHello(t.Context(), site1, "mine", hello); !errors.Is(err, block.ErrExists) {
		t.Errorf("over a volume: %v", err)
	}
	if _, err := c.ReplicaHello(t.Context(), site1, "v", hello); err != nil {
		t.Fatal(err)
	}
	other := hello
	other.Pair = newID()
	if _, err := c.ReplicaHello(t.Context(), site1, "v", other); !errors.Is(err, ErrRefused) {
		t.Errorf("another pair: %v", err)
	}
	if _, err := c.ReplicaHello(t.Context(), site2, "v", hello); !errors.Is(err, ErrRefused) {
		t.Errorf("another certificate: %v", err)
	}
	if err := c.PromoteReplica(t.Context(), "v"); !errors.Is(err, ErrRefused) {
		t.Errorf("promoted before anything came: %v", err)
	}
	b.cfg.Replication.Peers = "site2, site3"
	if _, err := c.ReplicaHello(t.Context(), site1, "w", hello); !errors.Is(err, ErrRefused) {
		t.Errorf("one that is not named: %v", err)
	}
	for _, bad := range []replica.Hello{
		{Pair: "x", Epoch: 1, SizeBytes: 1 << 20, Create: true}, {Pair: newID(), SizeBytes: 1 << 20, Create: true}, {Pair: newID(), Epoch: 1, SizeBytes: 1<<63 + 512, Create: true},
		{Pair: newID(), Epoch: 1, SizeBytes: 1 << 20, Chunking: "fixed:1", Create: true}, {Pair: newID(), Epoch: 1 << 60, SizeBytes: 1 << 20, Create: true},
	} {
		if _, err := c.ReplicaHello(t.Context(), site2, "w", bad); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if err := c.DeleteVolume(t.Context(), "v"); err != nil {
		t.Error(err)
	}
	if got := c.Replications(t.Context()); len(got) != 0 {
		t.Errorf("left: %+v", got)
	}
	_ = a
}

// The file is the one that docs/format/control.md describes.
func TestReplicationsGolden(t *testing.T) {
	file := replicationsFile{}
	if err := readState("testdata/replications-1.json", replicationsHeader, &file); err != nil || len(file.Replications) != 2 || file.Replications[1].Sending == nil || file.Replications[0].Receiving.ReachedBytes != 32<<20 {
		t.Fatalf("%+v, %v", file, err)
	}
	if fmt.Sprint(file.Replications[1].Interval) != "1m0s" {
		t.Errorf("interval %v", file.Replications[1].Interval)
	}
	group := replicationsFile{}
	if err := readState("testdata/replications-1-group.json", replicationsHeader, &group); err != nil || !group.Replications[0].holds("pointabcdefghijklmnopqrst3") || group.Replications[1].name() != "@shop" || group.Replications[1].LimitBytes != 50e6 {
		t.Fatalf("%+v, %v", group, err)
	}
	for name, file := range map[string]replicationsFile{"replications-1.json": file, "replications-1-group.json": group} {
		path := t.TempDir() + "/replications.json"
		must(t, writeState(path, file))
		got, err := os.ReadFile(path)
		must(t, err)
		if want, _ := os.ReadFile("testdata/" + name); !bytes.Equal(got, want) {
			t.Errorf("%s is written again as\n%s", name, got)
		}
	}
}
