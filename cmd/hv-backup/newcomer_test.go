package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What somebody new gets wrong is refused with what to do instead.
func TestWhatNext(t *testing.T) {
	p := newPlace(t)
	missing := filepath.Join(t.TempDir(), "missing")
	p.ends(exitNotFound, "there is no backup yet; `hv-backup run VOLUME`", "show", "latest")
	name := p.backUp(1)
	there := filepath.Join(t.TempDir(), "there.raw")
	if err := os.WriteFile(there, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p.ends(exitRefused, "give another name, or remove it first", "restore", name, "--to-file", there)
	p.ends(exitUsage, "which backup?", "show", "")
	p.ends(exitUsage, "which backup?", "show", "latest:")
	p.ends(exitNotFound, "no backup of that source; `hv-backup list`", "show", "latest:web1")
	p.ends(exitRefused, "holds a repository already", "repo", "init", "--recipient", "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p")
	p.ends(exitUsage, "want at least 16KiB", "list", "--limit-rate", "1")
	p.ends(exitUsage, "did you mean stats?", "repo", "stat")
	p.ends(exitUsage, "want a whole number", "forget", "--keep-last", "x")
	p.ends(exitUsage, "policy name", "policy", "set", "../x", "web1", "--every", "1d", "--policies", t.TempDir())
	if out := p.ends(exitDone, "", "--version"); out != "hv-backup "+version+"\n" {
		t.Errorf("--version prints %q", out)
	}
	if err := os.Chmod(p.identity, 0o644); err != nil {
		t.Fatal(err)
	}
	p.ends(exitDone, "every user of this host can read", "list")
	p.dir = missing
	p.ends(exitNotFound, "see that --repo is right", "list")
}

// Completion offers backups where the repository opens without a question, and none, at once, where it would ask.
func TestCompleteBackups(t *testing.T) {
	p := newPlace(t)
	first, second := p.backUp(1), p.backUp(2)
	complete := func(args ...string) (offers string) {
		var out bytes.Buffer
		a := newApp(strings.NewReader(""), &out, io.Discard, func(string) string { return "" })
		if code := run(context.Background(), a, append([]string{"__complete", "--repo", p.dir}, args...)); code != exitDone {
			t.Errorf("completing %q ends with %d", args, code)
		}
		return out.String()
	}
	for _, words := range [][]string{{"show"}, {"restore"}, {"attach"}, {"mount"}, {"diff"}, {"forget"}, {"test-restore"}} {
		with := append([]string{"--identity", p.identity}, words...)
		if offers := complete(append(with, "")...); !strings.Contains(offers, "latest:/") || strings.Index(offers, second) > strings.Index(offers, first) || !strings.Contains(offers, first+"\t") {
			t.Errorf("%q offers %q, want the sources, and backups, the youngest first", words, offers)
		}
		if offers := complete(append(words, "")...); strings.Contains(offers, first) {
			t.Errorf("%q without keys offers %q", words, offers)
		}
	}
	if offers := complete("--identity", p.identity, "diff", first, ""); strings.Contains(offers, first) || !strings.Contains(offers, second) {
		t.Errorf("diff %s offers %q", first, offers)
	}
	if offers := complete("--identity", p.identity, "list", ""); !strings.HasPrefix(offers, "/") {
		t.Errorf("list offers %q, want sources", offers)
	}
}

// Who waits for a place that does not answer is told after some tries, and not for each of many requests.
func TestAgain(t *testing.T) {
	var told bytes.Buffer
	a := newApp(strings.NewReader(""), io.Discard, &told, func(string) string { return "" })
	for try := range 8 {
		a.again(try+1, errors.New("object config: refused"))
	}
	if got := told.String(); got != "hv-backup: object config: refused; it is tried again, up to 8 times\n" {
		t.Errorf("told: %q", got)
	}
}

// A time without a zone is one of this host's clock; all else goes to hvd as it is.
func TestAskedMoment(t *testing.T) {
	zone := time.FixedZone("here", 2*3600)
	for text, want := range map[string]string{
		"2026-11-30 15:59:13":            "2026-11-30T13:59:13Z",
		"2026-11-30T15:59:13.25":         "2026-11-30T13:59:13.25Z",
		"2026-11-30 15:59":               "2026-11-30T13:59:00Z",
		"2026-11-30 15:59:13Z":           "2026-11-30T15:59:13Z",
		"2026-11-30T15:59:13.000000001Z": "2026-11-30T15:59:13.000000001Z",
		"2026-11-30T15:59:13+05:00":      "2026-11-30T10:59:13Z",
		"2026-11-30":                     "2026-11-30",
		"5m ago":                         "5m ago",
		"now":                            "now",
		"1234":                           "1234",
		"before-upgrade":                 "before-upgrade",
	} {
		if got := askedMoment(text, zone); got != want {
			t.Errorf("%q is asked for as %q, want %q", text, got, want)
		}
	}
}
