package crashtest

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// memory is a store that is right, and keeps what it was after every record.
type memory struct {
	state   *State
	records []*State // states after each record
	owners  []int    // operation of each
}

func newMemory() *memory { return &memory{state: NewState()} }

func (m *memory) Do(_ context.Context, op *Op) error {
	for _, f := range op.effects(m.state) {
		f(m.state)
		m.records = append(m.records, m.state.clone())
		m.owners = append(m.owners, op.N)
	}
	return nil
}

// source reads a state back as bytes.
type source struct {
	state *State
	spoil func(volume string, off uint64, p []byte)
}

func (s source) List() ([]Listing, error) {
	var all []Listing
	for _, name := range slices.Sorted(maps.Keys(s.state.Volumes)) {
		v := s.state.Volumes[name]
		l := Listing{Name: name, SizeBytes: v.Size, Snapshots: map[string]uint64{}}
		for snap, c := range v.Snapshots {
			l.Snapshots[snap] = c.Size
		}
		all = append(all, l)
	}
	return all, nil
}

func (s source) ReadAt(volume, snapshot string, p []byte, off uint64) error {
	c := s.state.Volumes[volume].Content
	if snapshot != "" {
		c = s.state.Volumes[volume].Snapshots[snapshot]
	}
	clear(p)
	for i := 0; i < len(p); i += sectorBytes {
		sector := (off + uint64(i)) / sectorBytes
		if pg := c.Pages[sector/pageSectors]; pg != nil {
			pg[sector%pageSectors].fill(p[i : i+sectorBytes])
		}
	}
	if s.spoil != nil {
		s.spoil(volume, off, p)
	}
	return nil
}

func readBack(t *testing.T, states ...*State) *Image {
	t.Helper()
	all := NewState()
	for _, s := range states {
		maps.Copy(all.Volumes, s.Volumes)
	}
	img, err := ReadImage(source{state: all}, len(states))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

var testConfig = Config{VolumeBytes: 2 << 20, RecordBytes: 16 << 10, Volumes: 3, Snapshots: 3}

// script runs operations of one client by hand.
type script struct {
	t *testing.T
	r *Recorder
	n []int
}

func newScript(t *testing.T, clients int) (*script, []*State) {
	begin := make([]*State, clients)
	for i := range begin {
		begin[i] = NewState()
	}
	return &script{t: t, r: NewRecorder(testConfig, 1, begin, 1, nil), n: make([]int, clients)}, begin
}

func (s *script) issue(c int, op Op) {
	s.n[c]++
	op.N = s.n[c]
	if op.Kind == Write {
		op.First = tokenOf(c, op.N)
	}
	s.r.Note(Event{Client: c, Op: &op})
}

func (s *script) run(c int, op Op) {
	s.issue(c, op)
	s.r.Note(Event{Client: c})
}

func writeAt(volume string, off, n uint64) Op {
	return Op{Kind: Write, Volume: volume, Ranges: []block.Range{{Off: off, Len: n}}}
}

func TestEveryRecordOfARunIsLegal(t *testing.T) {
	for seed := range uint64(3) {
		m := newMemory()
		begin := []*State{NewState()}
		r := NewRecorder(testConfig, seed, begin, 1, nil)
		for range 300 {
			if err := r.Step(context.Background(), 0, m); err != nil {
				t.Fatal(err)
			}
		}
		all := Mark{clients: []clientMark{{issued: 300}}}
		for i := 0; i < len(m.records); i += 41 {
			v := NewVerifier(r, begin)
			if err := v.PowerLoss(readBack(t, m.records[i]), all, all); err != nil {
				t.Fatalf("seed %d, record %d of operation %d: %v", seed, i, m.owners[i], err)
			}
		}
		v := NewVerifier(r, begin)
		if err := v.ProcessDeath(readBack(t, m.state), r.Mark(), r.Mark()); err != nil {
			t.Fatal(err)
		}
		if err := v.ProcessDeath(readBack(t, m.records[len(m.records)/2]), r.Mark(), r.Mark()); err == nil {
			t.Fatal("half of what was replied to may be lost")
		}
	}
}

func TestVerdicts(t *testing.T) {
	type verdicts struct{ death, power string } // a part of the error; "" is legal
	create := Op{Kind: Create, Volume: "c0-a", Size: 1 << 20}
	cases := []struct {
		name string
		run  func(s *script)
		img  func(s *State)
		want verdicts
	}{
		{"all", func(s *script) { s.run(0, writeAt("c0-a", 0, 8192)) }, func(s *State) { s.Volumes["c0-a"].set(0, 16, tokenOf(0, 2)) }, verdicts{}},
		{"unsynced is lost", func(s *script) { s.run(0, writeAt("c0-a", 0, 8192)) }, func(*State) {}, verdicts{death: "want client 0 op 2"}},
		{"torn", func(s *script) { s.issue(0, writeAt("c0-a", 0, 8192)) }, func(s *State) { s.Volumes["c0-a"].set(0, 8, tokenOf(0, 2)) }, verdicts{"no state", "no state"}},
		{"in flight, gone", func(s *script) { s.issue(0, writeAt("c0-a", 0, 8192)) }, func(*State) {}, verdicts{}},
		{"in flight, there", func(s *script) { s.issue(0, writeAt("c0-a", 0, 8192)) }, func(s *State) { s.Volumes["c0-a"].set(0, 16, tokenOf(0, 2)) }, verdicts{}},
		{"hole in the order", func(s *script) { s.run(0, writeAt("c0-a", 0, 4096)); s.run(0, writeAt("c0-a", 4096, 4096)) },
			func(s *State) { s.Volumes["c0-a"].set(8, 8, tokenOf(0, 3)) }, verdicts{"no state", "no state"}},
		{"flushed is lost", func(s *script) { s.run(0, writeAt("c0-a", 0, 4096)); s.run(0, Op{Kind: Flush}) }, func(*State) {}, verdicts{"no state", "no state"}},
		{"flush without reply", func(s *script) { s.run(0, writeAt("c0-a", 0, 4096)); s.issue(0, Op{Kind: Flush}) }, func(*State) {}, verdicts{death: "no state"}},
		{"FUA is lost", func(s *script) { op := writeAt("c0-a", 0, 4096); op.FUA = true; s.run(0, op) }, func(*State) {}, verdicts{"no state", "no state"}},
		{"snapshot with later data", func(s *script) {
			s.run(0, Op{Kind: Snapshot, Volume: "c0-a", Snapshot: "s"})
			s.run(0, writeAt("c0-a", 0, 4096))
		},
			func(s *State) {
				v := s.Volumes["c0-a"]
				v.set(0, 8, tokenOf(0, 3))
				v.Snapshots["s"] = v.clone()
			}, verdicts{`snapshot "s"`, `no state`}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s, begin := newScript(t, 1)
			s.run(0, create)
			s.run(0, Op{Kind: Flush}) // not counted: numbers of operations below start at 2
			s.n[0]--
			c.run(s)
			state := NewState()
			state.Volumes["c0-a"] = &Volume{Content: Content{Size: 1 << 20}, Snapshots: map[string]Content{}}
			c.img(state)
			img := readBack(t, state)
			expectError(t, "process death", NewVerifier(s.r, begin).ProcessDeath(img, s.r.Mark(), s.r.Mark()), c.want.death)
			expectError(t, "power loss", NewVerifier(s.r, begin).PowerLoss(img, s.r.Mark(), s.r.Mark()), c.want.power)
		})
	}
}

func expectError(t *testing.T, what string, err error, part string) {
	t.Helper()
	if part == "" && err != nil || part != "" && (err == nil || !strings.Contains(err.Error(), part)) {
		t.Errorf("%s: %v, want %q", what, err, part)
	}
}

// TestPrefixAcrossClients: an operation is there, another client's, which was replied to before it was issued, is not.
func TestPrefixAcrossClients(t *testing.T) {
	s, begin := newScript(t, 2)
	s.run(0, Op{Kind: Create, Volume: "c0-a", Size: 4096})
	s.run(1, Op{Kind: Create, Volume: "c1-a", Size: 4096})
	one := NewState()
	one.Volumes["c0-a"] = &Volume{Content: Content{Size: 4096}, Snapshots: map[string]Content{}}
	two := NewState()
	two.Volumes["c1-a"] = &Volume{Content: Content{Size: 4096}, Snapshots: map[string]Content{}}
	m := s.r.Mark()
	expectError(t, "first alone", NewVerifier(s.r, begin).PowerLoss(readBack(t, one, NewState()), m, m), "")
	expectError(t, "second alone", NewVerifier(s.r, begin).PowerLoss(readBack(t, NewState(), two), m, m), "is there, but client 0")
}

// TestTornSector: a sector of which only a part was written is no content at all.
func TestTornSector(t *testing.T) {
	s := NewState()
	s.Volumes["c0-a"] = &Volume{Content: Content{Size: 1 << 20}}
	s.Volumes["c0-a"].set(0, 8, tokenOf(0, 1))
	src := source{state: s, spoil: func(_ string, _ uint64, p []byte) { clear(p[300:512]) }}
	if _, err := ReadImage(src, 1); err == nil || !strings.Contains(err.Error(), "holds other bytes") {
		t.Fatal(err)
	}
}
