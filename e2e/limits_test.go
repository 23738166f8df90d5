package e2e

import (
	"encoding/json"
	"math"
	"os"
	"strings"
	"sync"
	"testing"
)

// fioFor runs a job over NBD for a time and returns the bytes a second that it read and wrote. What it says of
// requests a second is less exact in short runs.
func fioFor(t *testing.T, uri, seconds string, args ...string) float64 {
	t.Helper()
	out := tool(t, "fio", append([]string{"--name=job", "--ioengine=nbd", "--uri=" + uri, "--size=32M", "--time_based", "--runtime=" + seconds,
		"--ramp_time=1", "--randrepeat=1", "--output-format=json", "--aux-path=" + t.TempDir()}, args...)...)
	var report struct {
		Jobs []struct {
			Read, Write struct {
				BWBytes float64 `json:"bw_bytes"`
			}
		}
	}
	if err := json.Unmarshal([]byte(out[strings.Index(out, "{"):]), &report); err != nil || len(report.Jobs) != 1 {
		t.Fatalf("fio's report: %v\n%s", err, out)
	}
	return report.Jobs[0].Read.BWBytes + report.Jobs[0].Write.BWBytes
}

// limitTries is how often a rate is measured before it is called wrong. A machine that does something else for a moment shifts one measurement, a limit that is wrong all.
const limitTries = 5

// TestVolumeLimits measures with fio that limits hold within 10 %, and that they do not slow another volume.
func TestVolumeLimits(t *testing.T) {
	needs(t, "fio")
	l := &limitLab{daemon: startDaemon(t), seconds: "2"}
	l.limited, l.free = l.disk("limited", "64MiB"), l.disk("free", "64MiB")
	if testing.Short() {
		l.seconds = "1"
	}
	for _, c := range []struct {
		limit, job string
		want       float64 // bytes a second that must come of it
	}{
		{"--write-iops 500", "--rw=randwrite --bs=4k --iodepth=32", 500 << 12},
		{"--write-bytes 16MiB/s", "--rw=write --bs=256k --iodepth=4", 16 << 20},
		{"--write-bytes 64MiB/s", "--rw=write --bs=1M --iodepth=64", 64 << 20}, // most of what waits holds memory
		{"--read-iops 400", "--rw=randread --bs=4k --iodepth=16", 400 << 12},
		{"--read-bytes 20MB/s", "--rw=read --bs=64k --iodepth=8", 20e6},
		{"--read-iops 200 --write-iops 300", "--rw=randrw --rwmixread=40 --bs=4k --iodepth=32", 500 << 12},
	} {
		l.run("volume", "qos", "clear", "limited")
		l.run(append([]string{"volume", "qos", "set", "limited"}, strings.Fields(c.limit)...)...)
		l.mustHold(c.limit, c.job, c.want)
	}
	l.run("volume", "qos", "clear", "limited")
	l.run("volume", "qos", "set", "limited", "--write-iops", "300")
	l.kill()
	l.start()
	const job, want = "--rw=randwrite --bs=4k --iodepth=32", 300 << 12
	l.mustHold("--write-iops 300, after a kill", job, want)
	l.run("volume", "qos", "clear", "limited")
	if got := fioFor(t, l.limited, "1", strings.Fields(job)...); got < 2*want {
		t.Errorf("cleared: %.0f IOPS", got/4096)
	}
	if text, err := os.ReadFile(l.dir + "/control/limits.json"); err != nil || strings.Contains(string(text), "limited\"") {
		t.Errorf("cleared limits are kept: %s, %v", text, err)
	}
}

// limitLab is a daemon with a volume that has limits and one that has none.
type limitLab struct {
	*daemon
	limited, free string // URIs
	seconds       string // of a measurement
}

// measure runs a job on the limited volume and one beside it, and returns the bytes a second of both.
func (l *limitLab) measure(job string) (got, beside float64) {
	l.t.Helper()
	var running sync.WaitGroup
	running.Go(func() {
		beside = fioFor(l.t, l.free, l.seconds, "--rw=randwrite", "--bs=4k", "--iodepth=16", "--rate_iops=10000") // leave some of the machine to others
	})
	got = fioFor(l.t, l.limited, l.seconds, strings.Fields(job)...)
	running.Wait()
	return got, beside
}

// mustHold wants a job to get what its limit gives, within 10 %, and 2,000 requests a second beside it. Where the machine has too little to give for that, which the same
// jobs without a limit tell, the limit must not be exceeded all the same, nor take from the other volume what no limit leaves to it.
func (l *limitLab) mustHold(limit, job string, want float64) {
	l.t.Helper()
	least, most, besideMost := math.Inf(1), 0.0, 0.0
	for range limitTries {
		got, beside := l.measure(job)
		l.t.Logf("%s: %.2f MB/s of %.2f; beside it %.0f IOPS", limit, got/1e6, want/1e6, beside/4096)
		least, most, besideMost = min(least, got), max(most, got), max(besideMost, beside)
		if math.Abs(got-want) <= want/10 && beside >= 2000*4096 {
			return
		}
	}
	l.run("volume", "qos", "clear", "limited")
	unlimited, besideUnlimited := l.measure(job)
	l.t.Logf("without a limit: %.2f MB/s; beside it %.0f IOPS", unlimited/1e6, besideUnlimited/4096)
	if least > want*1.1 {
		l.t.Errorf("%s: got %.0f B/s at least, allowed are %.0f", limit, least, want)
	}
	if most < want*0.9 && most < unlimited/2 {
		l.t.Errorf("%s: got %.0f B/s at most, want %.0f; without a limit there are %.0f", limit, most, want, unlimited)
	}
	if besideMost < 2000*4096 && besideMost < besideUnlimited/2 {
		l.t.Errorf("%s: another volume got %.0f IOPS at most, and %.0f beside one without a limit", limit, besideMost/4096, besideUnlimited/4096)
	}
}
