package e2e

import "time"

// soakWorkers is by how many goroutines hvd may differ from itself: one for each request that waits for a device, of which it keeps 64 when these have ended, and some of the
// background's. How many there are at a time is a matter of how fast the machine is; what leaks exceeds any bound.
const soakWorkers = 64 + int64(len(soakProfiles))*soakDepth + 16

// report prints what was done and judges what hvd used.
func (s *soak) report() {
	t := s.t
	for _, v := range s.volumes {
		t.Logf("%-11s %8d requests that change it, %6d MiB, %8d reads compared", v.name, v.writes, v.bytes>>20, v.reads)
		if v.writes == 0 {
			t.Errorf("nothing was written to %s", v.name)
		}
	}
	t.Logf("operations  %v", s.done)
	w := s.watch
	if w.err != nil || len(w.samples) < 3 {
		t.Errorf("samples: %d, %v", len(w.samples), w.err)
		return
	}
	t.Logf("%-11s %12s %12s %12s", "", "first third", "last third", "most")
	for _, figure := range []struct {
		name  string
		of    func(soakSample) int64
		grows int64 // how much more it may be in the last third
		most  int64 // 0: no bound
	}{
		{"RssAnon MiB", func(s soakSample) int64 { return s.anonymous >> 20 }, soakMemory >> 20, soakMemory >> 20},
		{"store files", func(s soakSample) int64 { return int64(s.ofStore) }, 32, 0}, // open; there are more of them as the store fills
		{"other files", func(s soakSample) int64 { return int64(s.others) }, 8, 0},
		{"goroutines", func(s soakSample) int64 { return int64(s.goroutines) }, soakWorkers, 0},
	} {
		first, last, most := w.thirds(figure.of)
		t.Logf("%-11s %12d %12d %12d", figure.name, first, last, most)
		if last > first+figure.grows {
			t.Errorf("%s grew from %d in the first third to %d in the last", figure.name, first, last)
		}
		if figure.most > 0 && most > figure.most {
			t.Errorf("%s was %d, allowed are %d", figure.name, most, figure.most)
		}
	}
}

// verdict is the last line.
func (s *soak) verdict(took time.Duration) {
	verdict := "PASSED"
	if s.t.Failed() {
		verdict = "FAILED"
	}
	s.t.Logf("soak of %v, seed %d: %s", took.Round(time.Second), s.seed, verdict)
}
