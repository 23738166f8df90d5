package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var (
	metricComment = regexp.MustCompile(`^# (HELP|TYPE) (hv_[a-z_]+) (.+)$`)
	metricSample  = regexp.MustCompile(`^(hv_[a-z_]+)(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? (\S+)$`)
)

// scrape reads /metrics, checks its form, and returns the samples by name and labels.
func (d *daemon) scrape() map[string]string {
	d.t.Helper()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(d.dir, "hvd.sock"))
	}}}
	defer client.CloseIdleConnections()
	reply, err := client.Get("http://hvd/metrics")
	if err != nil {
		d.t.Fatal(err)
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(reply.Body)
	if err != nil || reply.StatusCode != http.StatusOK || !strings.HasPrefix(reply.Header.Get("Content-Type"), "text/plain; version=0.0.4") {
		d.t.Fatalf("%s, %v, %v", reply.Status, reply.Header, err)
	}
	samples, family, families := map[string]string{}, "", map[string]bool{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if m := metricComment.FindStringSubmatch(line); m != nil {
			if m[1] == "HELP" {
				if family = m[2]; families[family] {
					d.t.Errorf("family %s comes twice", family)
				}
				families[family] = true
			} else if m[2] != family || m[3] != "gauge" && m[3] != "counter" {
				d.t.Errorf("%q after the help of %s", line, family)
			}
			continue
		}
		m := metricSample.FindStringSubmatch(line)
		if m == nil || m[1] != family {
			d.t.Fatalf("%q in family %s is no sample of it", line, family)
		}
		if _, twice := samples[m[1]+m[2]]; twice {
			d.t.Errorf("%s comes twice", m[1]+m[2])
		}
		samples[m[1]+m[2]] = m[4]
	}
	return samples
}

// A quota on unique data is set, shown, enforced, an alarm with its next step and a metric, and survives a restart.
func TestUniqueQuotaFromOutside(t *testing.T) {
	d := startDaemon(t)
	d.must("volume", "import", "v", mixedImage(t, 24<<20)) // 6 MiB of it are noise
	if got := d.scrape(); got[`hv_alarm{name="unique-quota"}`] != "0" || got["hv_volumes"] != "1" || got[`hv_volume_size_bytes{volume="v"}`] == "" || got["hv_encrypted"] != "0" {
		t.Errorf("metrics: %v", got)
	}
	d.must("volume", "quota", "set", "v", "--unique", "7MiB")
	alarm := ""
	for t.Context().Err() == nil && !strings.Contains(alarm, "quota on unique data of volume v") {
		alarm = d.must("store", "alarms")
		time.Sleep(20 * time.Millisecond)
	}
	if !strings.Contains(alarm, "next: ") || !strings.Contains(alarm, "--unique SIZE") {
		t.Errorf("alarm: %s", alarm)
	}
	if text := d.run("", "status").err; !strings.Contains(text, "alarm: the quota on unique data of volume v is") {
		t.Errorf("status: %s", text)
	}
	if text := d.must("volume", "quota", "show", "v"); !strings.Contains(text, "at most 7.00 MiB that it alone holds") {
		t.Errorf("shown: %s", text)
	}
	got := d.scrape()
	if got[`hv_volume_quota_bytes{volume="v",kind="unique"}`] != "7.340032e+06" || got[`hv_volume_unique_bytes{volume="v"}`] == "" || got[`hv_alarm{name="unique-quota",volume="v"}`] == "" {
		t.Errorf("metrics: %v", got)
	}
	d.stop()
	d.start()
	if text := d.must("volume", "quota", "show", "v", "-o", "json"); !strings.Contains(text, `"uniqueBytes": 7340032`) {
		t.Errorf("after a restart: %s", text)
	}
	d.must("volume", "quota", "set", "v", "--unique", "0")
	if text := d.must("volume", "quota", "show", "v", "-o", "json"); strings.TrimSpace(text) != "null" {
		t.Errorf("taken away: %s", text)
	}
}
