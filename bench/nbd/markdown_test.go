package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMarkdownNamesEverything(t *testing.T) {
	run := func(name string, pair int, iops float64) runResult {
		return runResult{
			Server: name, Pair: pair, Command: "fio --rw=randwrite", Load: "0.31", fioResult: fioResult{IOPS: iops, Bytes: 1 << 30, P50: 120, P99: 900, ClientCPU: 83},
			CPUPerGiB: 4.5, CPUPerGiBAfter: 6.25, AnonBytes: 300e6, FileBytes: 700e6, DiskBytesPerByte: 1.75, DiskKnown: true,
		}
	}
	s := section{Name: "randwrite", Title: "4 KiB random write", Metric: "IOPS", State: "as it was", Placed: "nothing", Accounting: "cgroup v9"}
	for pair := range 4 {
		peer, ours := run("qemu-nbd", pair, 100), run("hvd", pair, float64(200+100*pair))
		ours.DestagedShare, ours.DestagedAfterSeconds, ours.Reduction = 0.97, 3.2, 1.86
		s.Runs = append(s.Runs, peer, ours)
	}
	s.Runs[7].Void = []string{"too late"}
	s.judge(against(iops, 3, 0), dataCheck{UniqueShare: 0.999})
	r := report{
		Machine: machine{Date: "today", CPU: "a CPU", CPUs: 2, Kernel: "Linux 9", Versions: []string{"fio-9", "hvd version 9"}},
		Data:    dataCheck{UniqueShare: 0.999, CompressedShare: 0.5}, Settings: []string{"a setting"}, Notes: []string{"a note"}, Sections: []section{s},
	}
	var out strings.Builder
	r.markdown(&out)
	for _, want := range []string{
		"today", "a CPU", "Linux 9", "fio-9; hvd version 9", "MB = 10^6 B", "- a setting", "- a note", "99.9 % of blocks", "State: as it was. Found: nothing.", "`fio --rw=randwrite`", "cgroup v9",
		"| server | IOPS: median | least to most | each run | p50 / p99 µs | CPU s per GiB | with work after | anon MB, most | file MB, most | disk B per guest B | client, % of a core | load | destaged |",
		"| 4 KiB random write | hvd / qemu-nbd, IOPS | **4.00** | 3.00 to 5.00 | at least 3.00 × | VOID |",
		"| hvd | 400 | 300 to 500 | 300, 400, 500 | 120 / 900 | 4.50 | 6.25 | 300 | 700 | 1.75 | 83 | 0.31, 0.31, 0.31 | 97 % after 3.2 s, 1.86 : 1",
		"of 3.00, 4.00, 5.00; aim: at least 3.00 ×; **VOID** because too late",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	cells := -1 // all rows of a table have as many cells as its heads
	for line := range strings.Lines(out.String()) {
		if !strings.HasPrefix(line, "|") {
			cells = -1
			continue
		}
		if n := strings.Count(line, "|"); cells >= 0 && n != cells {
			t.Errorf("%d cells instead of %d: %s", n, cells, line)
		} else {
			cells = n
		}
	}
}

// TestMemoryColumns: anonymous memory and page cache are two columns, each the most of the measured runs, and the warm-up counts for nothing; the curves have both, too.
func TestMemoryColumns(t *testing.T) {
	s := section{Metric: "IOPS", metric: iops}
	for pair, bytes := range [][2]int64{{999e6, 999e6}, {120e6, 40e6}, {110e6, 80e6}} {
		s.Runs = append(s.Runs, runResult{Server: "hvd", Pair: pair, AnonBytes: bytes[0], FileBytes: bytes[1]})
	}
	var out strings.Builder
	s.runTable(&out)
	lines := strings.Split(out.String(), "\n")
	heads, cells := strings.Split(lines[0], " | "), strings.Split(lines[2], " | ")
	for head, want := range map[string]string{"anon MB, most": "120", "file MB, most": "80"} {
		if i := slices.Index(heads, head); i < 0 || cells[i] != want {
			t.Errorf("%s is not %s in\n%s", head, want, out.String())
		}
	}
	var r row
	if r.memory(usage{anon: 3 << 20, file: 5 << 20}); !slices.Equal(r.cells, []string{"3", "5"}) {
		t.Errorf("a row of a curve has %q", r.cells)
	}
}

// TestGroupUsage reads what both versions of cgroups say, with anonymous bytes and file bytes apart.
func TestGroupUsage(t *testing.T) {
	for version, files := range map[int]map[string]string{
		1: {"memory.stat": "cache 1\nrss 2\ntotal_cache 700\ntotal_rss 300\n", "cpuacct.usage": "5000000000\n"},
		2: {"memory.stat": "anon 300\nfile 700\nfile_mapped 1\n", "cpu.stat": "nr_periods 0\nusage_usec 5000000\n"},
	} {
		dir := t.TempDir()
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := (&group{memory: dir, cpu: dir, version: version}).usage()
		if want := (usage{cpu: 5 * time.Second, anon: 300, file: 700}); err != nil || got != want {
			t.Errorf("version %d: %+v, %v, want %+v", version, got, err, want)
		}
	}
}

func TestParseFio(t *testing.T) {
	text, err := os.ReadFile("testdata/fio.json")
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseFio(append([]byte("nbd: something before it\n"), text...))
	if err != nil {
		t.Fatal(err)
	}
	if want := (fioResult{IOPS: 61035.5, BytesPerSecond: 250001408, Bytes: 250019840, P50: 276.48, P99: 3522.56, ClientCPU: 97.5}); len(got) != 1 || got[0] != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	for _, bad := range []string{"", "fio: error", "{", `{"jobs":[]}`, `{"jobs":[{"jobname":"x","error":5,"write":{"io_bytes":1}}]}`, `{"jobs":[{"jobname":"x","error":0}]}`} {
		if got, err := parseFio([]byte(bad)); err == nil {
			t.Errorf("%q gives %+v", bad, got)
		}
	}
}

func TestOptions(t *testing.T) {
	o, err := parse([]string{"--job", "read-log,randwrite", "--peers", "qemu-nbd", "--log-cap", "2GiB", "--hvd-arg", "--store-workers=1"})
	if err != nil {
		t.Fatal(err)
	}
	if len(o.jobs) != 2 || o.jobs[0].name != "randwrite" || o.jobs[1].name != "read-log" || len(o.peers) != 1 || o.logCap != 2<<30 || len(o.hvdArgs) != 1 {
		t.Errorf("%+v", o)
	}
	for _, bad := range []string{"--job nonsense", "--peers tgtd", "--pairs 0", "--set 8GiB", "--set 1000001", "--fit-set 4GiB", "--seconds -1", "word"} {
		if _, err := parse(strings.Fields(bad)); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
	seen := map[string]bool{}
	for _, j := range append(tableJobs(), apartJobs()...) {
		if seen[j.name] {
			t.Errorf("two jobs are called %s", j.name)
		}
		seen[j.name] = true
	}
}

func contains(s string, parts ...string) bool {
	for _, part := range parts {
		if !strings.Contains(s, part) {
			return false
		}
	}
	return true
}
