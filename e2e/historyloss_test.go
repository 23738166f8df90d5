package e2e

import (
	"strings"
	"testing"
	"time"
)

// historyLoss is what --dry-run prints of what ends or shortens a history.
type historyLoss struct {
	Volume                  string
	DryRun, Ends            bool
	First, Until, WholeFrom *time.Time
	Bytes, Points, Labelled uint64
}

// A dry run says what history would go, by both commands alike, and nothing goes.
func TestHistoryDryRun(t *testing.T) {
	needs(t, "qemu-io")
	d := startDaemon(t)
	uri := d.disk("v", "16MiB")
	if got := d.cdp("policy", "clear", "v", "--dry-run"); got.code != 0 || !strings.Contains(got.stdout, "nothing of the history") {
		t.Errorf("without history: %+v", got)
	}
	began := time.Now()
	d.run("volume", "history", "set", "v", "--window", "1h")
	qemuIO(t, uri, "write -P 1 0 1M", "flush", "write -P 2 0 1M", "flush")
	d.cdpJSON(&struct{}{}, "mark", "v", "one")
	var points struct{ Points []struct{} }
	d.cdpJSON(&points, "points", "v")
	var ending, byFabric, same, shorter historyLoss
	d.cdpJSON(&ending, "policy", "clear", "v", "--dry-run")
	if l := ending; l.Volume != "v" || !l.DryRun || !l.Ends || l.First == nil || l.First.Before(began.Add(-time.Minute)) || l.Until == nil || l.Until.Before(*l.First) || l.Bytes == 0 || l.Points != uint64(len(points.Points)) || l.Points < 2 || l.Labelled != 1 {
		t.Errorf("of %d points, to be cleared: %+v", len(points.Points), l)
	}
	d.json(&byFabric, "volume", "history", "clear", "v", "--dry-run")
	if byFabric.Points != ending.Points || byFabric.Bytes < ending.Bytes || !byFabric.Ends || !byFabric.First.Equal(*ending.First) {
		t.Errorf("by the other command: %+v, want %+v", byFabric, ending)
	}
	d.json(&same, "volume", "history", "set", "v", "--window", "2h", "--dry-run")
	if same.Points != 0 || same.Bytes != 0 || same.Ends || !same.Until.Equal(*same.First) {
		t.Errorf("of a longer window: %+v", same)
	}
	d.cdpJSON(&shorter, "policy", "set", "v", "--every", "1m", "--hours", "1h", "--dry-run")
	if shorter.Ends || shorter.Points != 0 || shorter.WholeFrom != nil { // nothing is a minute old
		t.Errorf("to be thinned: %+v", shorter)
	}
	for _, c := range []struct {
		code int
		says string
		args []string
	}{
		{0, "all history of volume v would go", []string{"clear", "v", "--dry-run"}},
		{0, "nothing of the history of volume v would go", []string{"set", "v", "--every", "2h", "--dry-run"}},
		{0, "keeps every write of 1h", []string{"show", "v"}}, // as it was set
		{2, "", []string{"set", "v", "--every", "2h", "--budget", "1KiB", "--dry-run"}},
		{3, "", []string{"clear", "other", "--dry-run"}},
	} {
		if got := d.cdp(append([]string{"policy"}, c.args...)...); got.code != c.code || c.code == 0 && !strings.Contains(got.stdout, c.says) {
			t.Errorf("cdp policy %q: %+v, want %d and %q", c.args, got, c.code, c.says)
		}
	}
	var gone struct {
		Deleted, Attached bool
		Snapshots         int
		History           *historyLoss
	}
	d.run("snapshot", "create", "v@s")
	d.json(&gone, "volume", "delete", "v", "--dry-run")
	if gone.Deleted || !gone.Attached || gone.Snapshots != 1 || gone.History == nil || !gone.History.Ends || gone.History.Labelled != 2 {
		t.Errorf("with the volume would go %+v", gone)
	}
	if got := d.try("volume", "delete", "v", "--dry-run"); !strings.Contains(got.stdout, "1 snapshot") || !strings.Contains(got.stdout, "all history of volume v would go") || d.try("volume", "show", "v").code != 0 {
		t.Errorf("with the volume would go %+v", got)
	}
	var open moment
	d.cdpJSON(&open, "attach", "v", "--at", "one")
	if got := d.cdp("policy", "clear", "v", "--dry-run"); got.code != 4 || !strings.Contains(got.stderr, "detach") {
		t.Errorf("while a moment is attached: %+v", got)
	}
	readOnly(t, open.URI, "read -P 2 0 1M")
	d.cdp("detach", open.Volume)
	if got := d.cdp("policy", "clear", "v"); got.code != 0 {
		t.Errorf("clear: %+v", got)
	}
}
