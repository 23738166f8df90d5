package e2e

import (
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

const (
	// soakSlack is how much more than what the recorder counts the segments of data may take at the end, in percent.
	soakSlack = 5
	// What a store takes whatever is in it, in bytes: the log up to its cap; checkpoints, which are written anew when 64 MiB of changes have come together, behind at most a
	// segment that began before; Pebble's logs and tables.
	soakLog         = 64 << 20
	soakCheckpoints = 128 << 20
	soakPebble      = 64 << 20
	// The index's tables, those that a compaction replaces included, and the second copies: 16 MiB as long as 1 % of what is stored is less, and their table.
	soakIndex  = 32 << 20
	soakCopies = 17 << 20
	// A settle leaves 3 % of full segments unused, and whatever is in the open one.
	soakUnused      = 3 // percent
	soakOpenSegment = 64 << 20
	// soakCut is what it costs that a run of duplicates is cut by content: at either end a chunk, 16 KiB on average, is cut in another place than in the run's other copies.
	soakCut = 32 << 10
)

// soakSpace is what a store takes at a moment, in bytes.
type soakSpace struct {
	model                                                    int64 // what the recorder says must be stored
	segments, log, meta, index, copies, other                int64 // on disk, by folder; copies is a file
	UniqueBytes, StoredBytes, HeldUnusedBytes, MetadataBytes int64
}

// space deletes all but the volumes, settles, and compares what is used with what the recorder says must be stored; then the volumes, one after the other.
func (s *soak) space() {
	for _, v := range s.volumes {
		for name := range v.snaps {
			s.must("delete", s.command("snapshot", "delete", v.name+"@"+name))
		}
	}
	for name := range s.clones {
		s.must("delete", s.command("volume", "delete", name, "--yes"))
	}
	s.t.Logf("space, MiB             must be  unique  stored  unused | segments    log   meta   (checkpoints and meta)")
	for what := "all volumes"; ; {
		s.must("settle", s.settle())
		s.judge(what, s.measure())
		if len(s.volumes) == 0 {
			return
		}
		gone := s.volumes[0].name
		s.must("detach", s.command("volume", "detach", gone, "--force"))
		s.must("delete", s.command("volume", "delete", gone, "--yes"))
		s.volumes = s.volumes[1:]
		what = "without " + gone
	}
}

func (s *soak) measure() (now soakSpace) {
	s.d.json(&now, "store", "stats")
	now.model = s.unique()
	used := s.d.diskUsage()
	now.segments, now.log, now.meta, now.index, now.copies, now.other = used["segments"], used["log"], used["meta"], used["index"], used["copies"], used["other"]
	return now
}

// judge prints a line of the table and objects to what takes more than it may.
func (s *soak) judge(what string, now soakSpace) {
	const mib = 1 << 20
	s.t.Logf("%-20s %9.1f %7.1f %7.1f %7.1f | %8d %6d %6d %6d", what, float64(now.model)/mib, float64(now.UniqueBytes)/mib, float64(now.StoredBytes)/mib,
		float64(now.HeldUnusedBytes)/mib, now.segments/mib, now.log/mib, now.meta/mib, now.MetadataBytes/mib)
	data := now.model + now.model*soakSlack/100
	unused := now.StoredBytes*soakUnused/100 + soakOpenSegment
	for _, part := range []struct {
		name       string
		used, most int64
	}{
		{"data", now.StoredBytes, data},
		{"what is unused in segments", now.HeldUnusedBytes, unused},
		{"segments on disk", now.segments, data + unused + soakCheckpoints},
		{"log", now.log, soakLog},
		{"metadata", now.meta, soakPebble},
		{"index", now.index, soakIndex},
		{"second copies", now.copies, soakCopies},
		{"the rest", now.other, 1 * mib},
	} {
		if part.used > part.most {
			s.t.Errorf("%s: %s takes %.1f MiB, at most %.1f were expected", what, part.name, float64(part.used)/mib, float64(part.most)/mib)
		}
	}
}

// unique counts what must be stored: the bytes of different blocks that the volumes hold, and for each run of known duplicates in a volume that is cut by content what its
// ends cost.
func (s *soak) unique() int64 {
	different, runs := map[uint64]bool{}, 0
	for _, v := range s.volumes {
		for at, token := range v.state.tokens {
			if token == 0 {
				continue
			}
			different[token] = true
			if v.profile.chunking == "cdc" && token >= soakPoolFirst && (at == 0 || v.state.tokens[at-1] != token-1) {
				runs++
			}
		}
	}
	return int64(len(different))*soakBlock + int64(runs)*soakCut
}

// diskUsage is what the data directory takes on disk, by its folders.
func (d *daemon) diskUsage() map[string]int64 {
	d.t.Helper()
	used := map[string]int64{}
	err := filepath.WalkDir(d.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var info syscall.Stat_t
		if err := syscall.Lstat(path, &info); err != nil {
			return nil // removed meanwhile
		}
		below, _ := filepath.Rel(d.dir, path)
		folder, _, _ := strings.Cut(below, "/")
		if !slices.Contains([]string{"segments", "log", "meta", "index", "copies"}, folder) {
			folder = "other"
		}
		used[folder] += info.Blocks * 512
		return nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return used
}
