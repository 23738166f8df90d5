package main

import (
	"bufio"
	"encoding/json"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// mixedImage writes an image of text that repeats in part, noise and zeroes.
func mixedImage(t *testing.T, n int) string {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 9))
	p := make([]byte, n)
	words := strings.Fields("root daemon bin sys sync games man lp mail news uucp proxy backup list irc nobody systemd network resolve")
	for at := 0; at < n/2; {
		at += copy(p[at:n/2], words[rng.IntN(len(words))]+":")
	}
	for i := n / 2; i < n*3/4; i++ {
		p[i] = byte(rng.Uint32())
	}
	copy(p[n*3/4:], p[n/8:n/4]) // again; the rest is zeroes
	path := filepath.Join(t.TempDir(), "image.raw")
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// What whatif says of the cut that the store has is what the store takes, of a volume and of the same image.
func TestWhatIfIsTrueOfTheStoreItself(t *testing.T) {
	d := startDaemon(t)
	image := mixedImage(t, 24<<20)
	d.must("volume", "import", "v", image)
	d.must("store", "settle", "--wait")
	var stats struct{ UniqueBytes, StoredBytes uint64 }
	if err := json.Unmarshal([]byte(d.must("store", "stats", "-o", "json")), &stats); err != nil {
		t.Fatal(err)
	}
	for _, from := range [][]string{{"--volume", "v"}, {"--file", image}, nil} {
		var got []predictionView
		if err := json.Unmarshal([]byte(d.must(append([]string{"store", "whatif", "--chunk", "16KiB,fixed:4KiB", "-o", "json"}, from...)...)), &got); err != nil {
			t.Fatal(err)
		}
		if len(got) != 2 || got[0].Chunking != "16KiB" || got[1].Chunking != "fixed:4KiB" || got[0].SampledOneIn != 1 || got[1].Chunks < got[0].Chunks {
			t.Fatalf("%v: %+v", from, got)
		}
		near := func(what string, got, want uint64, within float64) {
			if off := float64(got)/float64(want) - 1; off > within || off < -within {
				t.Errorf("%v: %s of %d predicted, the store has %d", from, what, got, want)
			}
		}
		near("unique", got[0].UniqueBytes, stats.UniqueBytes, 0.02)
		near("stored", got[0].StoredBytes, stats.StoredBytes, 0.05+2*got[0].StoredError)
	}
	for _, wrong := range []string{"5KiB", "fixed:1KiB", "x", "16KiB,16KiB,16KiB,16KiB,16KiB,16KiB,16KiB,16KiB,16KiB"} {
		if r := d.run("", "store", "whatif", "--chunk", wrong); r.code != exitUsage {
			t.Errorf("--chunk %s: exit code %d, %s", wrong, r.code, r.err)
		}
	}
	text := d.must("store", "explain", "v")
	for _, says := range []string{"dedup inside", "needed", "unique", "surveyed in"} {
		if !strings.Contains(text, says) {
			t.Errorf("explain has no %q: %s", says, text)
		}
	}
	if r := d.run("", "store", "explain", "nobody"); r.code != exitNotFound {
		t.Errorf("no such volume: exit code %d, %s", r.code, r.err)
	}
}

// Alarms are followed while they change, and the error of a reservation that does not fit says how much is there.
func TestQuotaCommands(t *testing.T) {
	d := startDaemon(t)
	d.must("volume", "import", "v", mixedImage(t, 8<<20))
	d.must("store", "settle", "--wait")
	if r := d.run("", "volume", "quota", "set", "v", "--reserve", "7EiB"); r.code != exitFailed || !strings.Contains(r.err, "are free") {
		t.Errorf("exit code %d, %s", r.code, r.err)
	}
	if r := d.run("", "volume", "quota", "set", "v"); r.code != exitUsage {
		t.Errorf("nothing to set: exit code %d, %s", r.code, r.err)
	}
	lines, follower := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		a := newApp(strings.NewReader(""), follower, io.Discard, func(name string) string { return map[string]string{"HV_ENDPOINT": d.endpoint}[name] })
		ended <- run(t.Context(), a, []string{"store", "alarms", "--follow"})
		follower.Close()
	}()
	for text := ""; !strings.Contains(text, "nearly full"); time.Sleep(20 * time.Millisecond) {
		d.must("volume", "quota", "set", "v", "--referenced", "6MiB")
		text = d.must("store", "alarms")
		if t.Context().Err() != nil {
			t.Fatal(text)
		}
	}
	if text := d.run("", "status").err; !strings.Contains(text, "alarm: the quota of volume v is") {
		t.Errorf("status: %s", text)
	}
	first, err := bufio.NewReader(lines).ReadString('\n')
	if err != nil || !strings.Contains(first, "the quota of volume v is") {
		t.Errorf("followed: %q, %v", first, err)
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }()
	d.stop()
	<-ended
}

// An upgrade of a store of this version has nothing to do; a daemon's is left alone.
func TestStoreUpgradeCommand(t *testing.T) {
	dir := closedStore(t)
	code, out, errs := runLocal(t, "store", "upgrade", dir, "--dry-run", "-o", "json")
	var view upgradeView
	if err := json.Unmarshal([]byte(out), &view); err != nil || code != exitDone || !view.DryRun || len(view.Steps) != 0 || view.MetaFormat != view.MetaNewest {
		t.Errorf("exit code %d, %v, %s %s", code, err, out, errs)
	}
	if code, out, errs = runLocal(t, "store", "upgrade", dir); code != exitDone || !strings.Contains(out, "nothing to do") {
		t.Errorf("exit code %d, %s %s", code, out, errs)
	}
	d := startDaemon(t)
	if code, _, errs = runLocal(t, "store", "upgrade", d.dir); code != exitRefused || !strings.Contains(errs, "stop hvd first") {
		t.Errorf("a store in use: exit code %d, %s", code, errs)
	}
	if code, _, errs = runLocal(t, "store", "upgrade", t.TempDir()); code != exitNotFound {
		t.Errorf("no store: exit code %d, %s", code, errs)
	}
}

// Every command of this kind has help with an example.
func TestHelpHasExamples(t *testing.T) {
	for _, args := range []string{"store explain", "store whatif", "store upgrade", "store alarms", "volume quota set", "volume quota show", "volume quota clear"} {
		code, out, errs := runLocal(t, append(strings.Fields(args), "--help")...)
		if code != exitDone || !strings.Contains(out, "hv-storage-fabric "+args) || !strings.Contains(out, "Example") {
			t.Errorf("%s: exit code %d: %s%s", args, code, out, errs)
		}
	}
}

// A misspelled variable is named once, on the error stream.
func TestMisspelledEndpoint(t *testing.T) {
	d := startDaemon(t)
	var out, errs strings.Builder
	a := newApp(strings.NewReader(""), &out, &errs, func(name string) string { return map[string]string{"HV_ENDPOINT": d.endpoint}[name] })
	a.environ = []string{"HV_ENDPIONT=unix:/x", "HV_STORE_LOGCAP=1GiB"} // the second one is hvd's
	if code := run(t.Context(), a, []string{"volume", "list"}); code != exitDone || strings.Count(errs.String(), "did you mean HV_ENDPOINT?") != 1 || strings.Contains(errs.String(), "LOGCAP") {
		t.Errorf("exit code %d, %q", code, errs.String())
	}
}
