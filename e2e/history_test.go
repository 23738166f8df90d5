package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// moment is what `hv-backup cdp attach -o json` prints.
type moment struct {
	URI, Volume string
	At          time.Time
	Seq         uint64
}

// cdp runs a command of hv-backup cdp on the daemon.
func (d *daemon) cdp(args ...string) result {
	d.t.Helper()
	return execute(d.t, nil, backupPath, append([]string{"cdp", "--endpoint", "unix:" + d.dir + "/hvd.sock"}, args...)...)
}

// cdpJSON is cdp for what must be done, and decodes its document.
func (d *daemon) cdpJSON(into any, args ...string) {
	d.t.Helper()
	got := d.cdp(append([]string{"-o", "json"}, args...)...)
	if got.code != 0 {
		d.t.Fatalf("hv-backup cdp %s ended with %d: %s", strings.Join(args, " "), got.code, got.stderr)
	}
	if err := json.Unmarshal([]byte(got.stdout), into); err != nil {
		d.t.Fatalf("hv-backup cdp %s: %v in %q", strings.Join(args, " "), err, got.stdout)
	}
}

// TestHistory goes back to moments by label, by time and by number, over kill -9, destage, reclaim and a restart, through hvd, both commands and a real NBD client.
func TestHistory(t *testing.T) {
	t.Parallel() // it waits for the disk
	needs(t, "qemu-io")
	d := startDaemon(t)
	uri := d.disk("v", "96MiB")
	qemuIO(t, uri, "write -P 9 0 8M")
	d.run("volume", "history", "set", "v", "--window", "1h", "--budget", "1GiB")
	qemuIO(t, uri, "write -P 1 0 32M", "flush")
	var mark struct{ Seq uint64 }
	d.cdpJSON(&mark, "mark", "v", "one")
	time.Sleep(2 * time.Millisecond) // the moment lies behind the mark, and before the next write
	at := time.Now().UTC()
	time.Sleep(2 * time.Millisecond)
	qemuIO(t, uri, "write -P 2 16M 32M", "discard 0 4M")
	d.run("snapshot", "create", "v@s1")
	d.run("volume", "resize", "v", "--size", "128MiB")
	qemuIO(t, uri, "write -P 3 0 128M")
	one := []string{"read -P 1 0 32M", "read -P 0 32M 64M"}
	var byLabel, byTime, bySeq, bySnapshot moment
	d.cdpJSON(&byLabel, "attach", "v", "--at", "one")
	d.cdpJSON(&byTime, "attach", "v", "--at", at.Format(time.RFC3339Nano))
	d.cdpJSON(&bySeq, "attach", "v", "--at", fmt.Sprint(mark.Seq))
	d.cdpJSON(&bySnapshot, "attach", "v", "--at", "s1")
	if byLabel.Seq != mark.Seq || byTime.Seq != mark.Seq || bySeq != byLabel || bySnapshot.Seq <= mark.Seq || byLabel.Volume != fmt.Sprintf("v@seq:%d", mark.Seq) {
		t.Errorf("by label %+v, by time %+v, by number %+v, snapshot %+v", byLabel, byTime, bySeq, bySnapshot)
	}
	for round := range 3 {
		readOnly(t, byLabel.URI, one...)
		readOnly(t, bySnapshot.URI, "read -P 0 0 4M", "read -P 1 4M 12M", "read -P 2 16M 32M", "read -P 0 48M 48M")
		switch round {
		case 0:
			d.kill()
			d.start()
		case 1:
			d.settle()
			d.stop()
			d.start()
		}
	}
	var points struct {
		History struct{ FirstSeq uint64 }
		Points  []struct {
			Seq         uint64
			Kind, Label string
		}
	}
	d.cdpJSON(&points, "points", "v", "--labelled")
	if p := points.Points; len(p) != 3 || p[0].Label != "one" || p[1].Label != "s1" || p[1].Kind != "snapshot" || p[2].Kind != "resize" {
		t.Errorf("labelled points: %+v", p)
	}
	for flags, want := range map[string]string{"--limit 1": points.Points[2].Kind, "--limit 2": "snapshot", "--limit 1 --after 0": "mark"} {
		few := points
		few.Points = nil
		d.cdpJSON(&few, append([]string{"points", "v", "--labelled"}, strings.Fields(flags)...)...)
		if len(few.Points) == 0 || few.Points[0].Kind != want {
			t.Errorf("points %s begin with %+v, want a %s", flags, few.Points, want)
		}
	}
	if got := d.cdp("points", "v", "--limit", "0"); got.code != 2 {
		t.Errorf("no points: %+v", got)
	}
	var restored moment
	d.cdpJSON(&restored, "restore", "v", "--at", "one", "--to-volume", "r")
	if restored.Volume != "r" || restored.Seq != mark.Seq || restored.URI != "" {
		t.Errorf("restored: %+v", restored)
	}
	qemuIO(t, d.attach("r"), append(one, "write -P 8 0 1M")...)
	var writable moment
	d.cdpJSON(&writable, "attach", "v", "--at", "s1", "--writable", "--as", "w")
	qemuIO(t, writable.URI, "read -P 2 16M 32M", "write -P 5 0 1M", "read -P 5 0 1M")
	d.historyRefuses(points.History.FirstSeq)
	var exports []struct{ Export, Volume, URI string }
	d.cdpJSON(&exports, "exports", "v")
	for _, m := range []moment{byLabel, bySnapshot} {
		if !slices.ContainsFunc(exports, func(e struct{ Export, Volume, URI string }) bool {
			return e.Export == m.Volume && e.Volume == "v" && e.URI == m.URI
		}) {
			t.Errorf("exports %+v lack %+v", exports, m)
		}
	}
	if d.cdpJSON(&exports, "exports", "r"); len(exports) > 0 {
		t.Errorf("exports of another volume: %+v", exports)
	}
	if got := d.try("volume", "show", "v"); !strings.Contains(got.stdout, "history ") {
		t.Errorf("volume show says nothing of history: %s", got.stdout)
	}
	for _, m := range []moment{byLabel, bySnapshot} {
		if got := d.cdp("detach", m.Volume); got.code != 0 {
			t.Errorf("detach %s: %s", m.Volume, got.stderr)
		}
	}
	d.stop()
	d.check()
}

// readOnly reads an export that takes no writes.
func readOnly(t *testing.T, uri string, commands ...string) {
	t.Helper()
	args := []string{"-r", "-f", "raw"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	if got := tryTool(t, "qemu-io", append(args, uri)...); got.code != 0 || strings.Contains(got.stdout+got.stderr, "failed") {
		t.Fatalf("qemu-io on %s ended with %d\n%s", uri, got.code, got.stdout+got.stderr)
	}
}

// historyRefuses asks for what cannot be had.
func (d *daemon) historyRefuses(first uint64) {
	d.t.Helper()
	for _, c := range []struct {
		code int
		says string
		args []string
	}{
		{3, "history begins with record", []string{"attach", "v", "--at", "3h ago"}},
		{3, "history begins with record", []string{"attach", "v", "--at", fmt.Sprint(first - 1)}},
		{3, "not written yet", []string{"attach", "v", "--at", "99999999999"}},
		{3, "no mark or snapshot", []string{"attach", "v", "--at", "never"}},
		{2, "in the future", []string{"attach", "v", "--at", "2999-01-01T00:00:00Z"}},
		{2, "no span of time", []string{"attach", "v", "--at", "soon ago"}},
		{3, "keeps no history", []string{"attach", "r", "--at", "now"}},
		{3, "keeps no history", []string{"points", "r"}},
		{2, "taken for a time", []string{"mark", "v", "12"}},
		{4, "", []string{"restore", "v", "--at", "one", "--to-volume", "v"}},
		{3, "not attached", []string{"detach", "v@seq:1"}},
	} {
		if got := d.cdp(c.args...); got.code != c.code || !strings.Contains(got.stderr, c.says) {
			d.t.Errorf("cdp %q ended with %d, want %d: %s", c.args, got.code, c.code, got.stderr)
		}
	}
	for _, args := range [][]string{{"volume", "history", "clear", "v"}, {"volume", "delete", "v"}, {"volume", "rename", "v", "u"}} {
		if got := d.try(args...); got.code != 4 {
			d.t.Errorf("%q while a moment is attached ended with %d: %s", args, got.code, got.stderr)
		}
	}
}

// TestHistoryPolicy sets how dense a history is by both commands, over a restart, and is told of ages that do not fit.
func TestHistoryPolicy(t *testing.T) {
	d := startDaemon(t)
	d.disk("v", "16MiB")
	type policy struct{ EverySeconds, FlushesSeconds, MinutesSeconds, HoursSeconds, BudgetBytes uint64 }
	want := policy{3600, 24 * 3600, 7 * 24 * 3600, 30 * 24 * 3600, 1 << 30}
	var got policy
	d.cdpJSON(&got, "policy", "set", "v", "--every", "1h", "--flushes", "24h", "--minutes", "7d", "--hours", "30d", "--budget", "1GiB")
	if got != want {
		t.Errorf("set: %+v, want %+v", got, want)
	}
	d.kill()
	d.start()
	d.cdpJSON(&got, "policy", "show", "v")
	if got != want {
		t.Errorf("after kill -9: %+v, want %+v", got, want)
	}
	if show := d.try("volume", "history", "show", "v"); !strings.Contains(show.stdout, "keeps every write of 1h, flushes of 1d, a point each minute of 1w, a point each hour of 30d") {
		t.Errorf("show: %s", show.stdout)
	}
	d.run("volume", "history", "set", "v", "--every", "2h", "--hours", "7d")
	d.cdpJSON(&got, "policy", "show", "v")
	if got.EverySeconds != 7200 || got.FlushesSeconds != 0 || got.MinutesSeconds != 0 || got.HoursSeconds != 7*24*3600 {
		t.Errorf("by the other command: %+v", got)
	}
	for _, bad := range [][]string{{"--hours", "30d"}, {"--every", "1h", "--flushes", "30m"}, {"--every", "10s", "--hours", "1h"}, {}} {
		if r := d.cdp(append([]string{"policy", "set", "v"}, bad...)...); r.code == 0 || r.stderr == "" {
			t.Errorf("%q ended with %d: %s", bad, r.code, r.stderr)
		}
	}
	d.cdpJSON(&got, "policy", "show", "v")
	var none any = 1
	d.cdpJSON(&none, "policy", "clear", "v")
	if got.EverySeconds != 7200 || none != nil {
		t.Errorf("%+v, %v", got, none)
	}
}
