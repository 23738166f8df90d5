package history

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// hourly makes a stream of hours in each of which some pages are changed, with a root before each, and thins it, without the roots that go. It returns the payload of each record that should be left.
func hourly(t *testing.T, s *Set, st *Stream, hours int) (want map[uint64][]byte, roots []Root) {
	t.Helper()
	rng := rand.New(rand.NewPCG(32, 31))
	pages := make([][]byte, 60)
	for i := range pages {
		pages[i] = page(rng)
	}
	want = map[uint64][]byte{}
	seq := uint64(0)
	for hour := range int64(hours) {
		now := (1000 + hour) * int64(time.Hour)
		seq++
		roots = append(roots, Root{Seq: seq, Time: now})
		for i := range pages {
			if rng.IntN(3) > 0 {
				continue
			}
			pages[i] = touch(rng, pages[i])
			seq++
			must(t, st.Append(&Record{Kind: Write, Seq: seq, Time: now + int64(time.Minute), Off: uint64(i) * sectorSize, Len: sectorSize, Payload: pages[i]}))
			want[seq] = pages[i]
		}
		must(t, st.Append(&Record{Kind: Barrier, Seq: seq, Time: now + int64(2*time.Minute)}))
		must(t, st.Roll())
	}
	roots = append(roots, Root{Seq: seq + 1, Time: (1000 + int64(hours)) * int64(time.Hour)})
	return want, roots
}

func hoursAll(roots []Root) *Thinning {
	return &Thinning{Roots: roots, Level: func(int64) Level { return Hours }, Pace: func(int) error { return nil }}
}

// What is thinned to an hour and will not be thinned any more becomes a file a day, in which the versions of all hours lie beside one another.
func TestJoinDays(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := openSet(t, fs, nil)
	st, err := s.Create(testVolume)
	must(t, err)
	want, roots := hourly(t, s, st, 60)
	s.joinSpan = 0 // nothing is joined
	thinAll(t, st, hoursAll(roots))
	apart := st.Bytes()
	if len(st.files) != 60 {
		t.Fatalf("%d files", len(st.files))
	}
	s.joinSpan = joinSpan
	done, err := st.join(hoursAll(roots))
	must(t, err)
	t.Logf("60 hours: %d B as files of an hour, %d B in %d files", apart, st.Bytes(), len(st.files))
	// 60 hours are two days and a rest, which may get more
	if len(st.files) != 2+60-48 || done.Files != 2 {
		t.Fatalf("%d files, %+v", len(st.files), done)
	}
	if joined := st.files[0].end + st.files[1].end; joined*3 > apart*48/60 {
		t.Errorf("two days take %d B, and took about %d B", joined, apart*48/60)
	}
	if again, err := st.join(hoursAll(roots)); err != nil || again.Files != 0 {
		t.Errorf("joined once more: %+v, %v", again, err)
	}
	for range 2 {
		left := maps.Clone(want)
		points := 0
		must(t, st.Each(0, ^uint64(0), func(r *Record) error {
			if r.Kind == Barrier {
				points++
			}
			if r.Kind != Write {
				return nil
			}
			p := make([]byte, r.Len)
			if err := s.ReadAt(p, r.Pos, r.Sums); err != nil {
				return err
			}
			if string(p) != string(left[r.Seq]) {
				return fmt.Errorf("record %d is another", r.Seq)
			}
			delete(left, r.Seq)
			return nil
		}))
		if points != 60 || len(left) > 0 {
			t.Errorf("%d points, %d records are missing", points, len(left))
		}
		must(t, s.Close())
		s = openSet(t, fs, nil)
		st = s.Stream(testVolume)
	}
	for i := range len(roots) - 2 {
		if st.Idle(roots[i].Seq, roots[i+1].Seq) {
			t.Errorf("root %d has a point", i)
		}
	}
	must(t, s.Close())
}

// Files are not joined over a root that nothing stands on, while somebody reads one, or where one is damaged, which is told of once.
func TestJoinNot(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := openSet(t, fs, nil)
	st, err := s.Create(testVolume)
	must(t, err)
	_, roots := hourly(t, s, st, 30)
	s.joinSpan = 0
	thinAll(t, st, hoursAll(roots))
	s.joinSpan = joinSpan
	f := st.files[4]
	was := f.header
	f.header.FirstPoint, f.header.LastPoint = 0, 0 // as if nothing were left between the roots
	if done, err := st.join(hoursAll(roots)); err != nil || done.Files != 0 {
		t.Errorf("joined over a root that may go: %+v, %v", done, err)
	}
	f.header = was
	release := st.Pin(roots[3].Seq, roots[3].Seq+5)
	if done, err := st.join(hoursAll(roots)); err != nil || done.Files != 0 {
		t.Errorf("joined what somebody reads: %+v, %v", done, err)
	}
	release()
	x, err := st.files[7].index()
	must(t, err)
	h, err := vfs.OpenUpdate(fs, st.files[7].path)
	must(t, err)
	_, err = h.WriteAt([]byte("damage"), x.frames[0].payloadAt()+10)
	must(t, errors.Join(err, h.Close()))
	if done, err := st.join(hoursAll(roots)); !errors.Is(err, block.ErrCorrupt) || done.Files != 0 || len(st.files) != 30 {
		t.Errorf("joined what is damaged: %+v, %v", done, err)
	}
	if done, err := st.join(hoursAll(roots)); err != nil || done.Files != 0 {
		t.Errorf("told of twice: %+v, %v", done, err)
	}
	must(t, s.Close())
}
