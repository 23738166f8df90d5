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

// TestVolumeLimits measures with fio that limits hold within 10 %, and that they do not slow another volume.
func TestVolumeLimits(t *testing.T) {
	needs(t, "fio")
	d := startDaemon(t)
	limited, free := d.disk("limited", "64MiB"), d.disk("free", "64MiB")
	seconds := "2"
	if testing.Short() {
		seconds = "1"
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
		d.run("volume", "qos", "clear", "limited")
		d.run(append([]string{"volume", "qos", "set", "limited"}, strings.Fields(c.limit)...)...)
		var beside float64
		var running sync.WaitGroup
		running.Go(func() {
			beside = fioFor(t, free, seconds, "--rw=randwrite", "--bs=4k", "--iodepth=16", "--rate_iops=10000") // leave some of the machine to others
		})
		got := fioFor(t, limited, seconds, strings.Fields(c.job)...)
		running.Wait()
		t.Logf("%s: %.2f MB/s of %.2f; beside it %.0f IOPS", c.limit, got/1e6, c.want/1e6, beside/4096)
		if math.Abs(got-c.want) > c.want/10 {
			t.Errorf("%s: got %.0f B/s, want %.0f within 10 %%", c.limit, got, c.want)
		}
		if beside < 2000*4096 {
			t.Errorf("%s: another volume got %.0f IOPS", c.limit, beside/4096)
		}
	}
	d.kill()
	d.start()
	if got := fioFor(t, limited, seconds, "--rw=randwrite", "--bs=4k", "--iodepth=32"); math.Abs(got-300*4096) > 30*4096 {
		t.Errorf("after a kill: %.0f IOPS, want 300", got/4096)
	}
	d.run("volume", "qos", "clear", "limited")
	if got := fioFor(t, limited, "1", "--rw=randwrite", "--bs=4k", "--iodepth=32"); got < 2000*4096 {
		t.Errorf("cleared: %.0f IOPS", got/4096)
	}
	if text, err := os.ReadFile(d.dir + "/control/limits.json"); err != nil || strings.Contains(string(text), "limited\"") {
		t.Errorf("cleared limits are kept: %s, %v", text, err)
	}
}
