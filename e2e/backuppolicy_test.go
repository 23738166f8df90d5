package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// heard is what a webhook was told.
type heard struct {
	sync.Mutex
	events []string
}

func (h *heard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var notice struct{ Event, Policy, Host, Text string }
	if err := json.NewDecoder(r.Body).Decode(&notice); err != nil || notice.Policy != "nightly" || notice.Host == "" {
		http.Error(w, "what?", http.StatusBadRequest)
		return
	}
	h.Lock()
	defer h.Unlock()
	h.events = append(h.events, notice.Event)
}

func (h *heard) expect(t *testing.T, want ...string) {
	t.Helper()
	h.Lock()
	defer h.Unlock()
	if !slices.Equal(h.events, want) {
		t.Errorf("the webhook heard %v, want %v", h.events, want)
	}
	h.events = nil
}

// ranPolicy is what `policy run -o json` prints.
type ranPolicy struct {
	Policy string
	State  struct {
		LastDone      time.Time
		Backups       []string
		Error, Damage string
		Failures      int
		LastPrune     time.Time
	}
}

// A policy backs up when it is due, keeps what it says, looks after the repository, tells what goes wrong, once, and when it is well again.
func TestBackupPolicy(t *testing.T) {
	d, r := startDaemon(t), newRepo(t)
	d.run("volume", "create", "web1", "--size", "40M")
	h := new(heard)
	hook := httptest.NewServer(h)
	defer hook.Close()
	letters := filepath.Join(t.TempDir(), "letters")
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "sendmail"), []byte("#!/bin/sh\necho \"args $*\" >>"+letters+"\ncat >>"+letters+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("HV_BACKUP_POLICIES", filepath.Join(t.TempDir(), "policies"))
	other := newRepo(t)
	set := func(repo string) {
		t.Helper()
		got := execute(t, nil, backupPath, "policy", "set", "nightly", "web1", "--every", "1d", "--keep-last", "2", "--prune-every", "1d", "--verify-every", "1w", "--verify-data", "100", "--files", "web1.conf="+r.passwords,
			"--copy-to", other.dir, "--copy-password-file", other.passwords, "--webhook-file", writeFile(t, "hook", hook.URL+"/secret\n"), "--mail-to", "ops@example.org",
			"--repo", repo, "--password-file", r.passwords, "--endpoint", "unix:"+d.dir+"/hvd.sock")
		if got.code != 0 {
			t.Fatal(got.stderr)
		}
	}
	run := func(code int, args ...string) (ran []ranPolicy) {
		t.Helper()
		got := execute(t, nil, backupPath, append([]string{"policy", "run", "-o", "json"}, args...)...)
		if got.code != code || strings.Contains(got.stderr, "secret") {
			t.Fatalf("policy run %v: %d %s", args, got.code, got.stderr)
		}
		if err := json.Unmarshal([]byte(got.stdout), &ran); err != nil {
			t.Fatal(err)
		}
		return ran
	}
	set(r.dir)
	first := run(0, "--due")
	if len(first) != 1 || len(first[0].State.Backups) != 2 || first[0].State.LastPrune.IsZero() || first[0].State.Damage != "" {
		t.Errorf("the first run: %+v", first)
	}
	if again := run(0, "--due"); len(again) != 0 {
		t.Errorf("it ran again when it was not due: %+v", again)
	}
	h.expect(t)
	for range 2 {
		run(0, "nightly")
	}
	var left, copies []backedUp
	r.json(&left, "list", "web1", "--tag", "policy:nightly")
	other.json(&copies, "list", "web1")
	if len(left) != 2 || len(copies) != 3 {
		t.Errorf("%d backups are kept instead of 2, and there are %d copies instead of 3", len(left), len(copies))
	}

	if err := os.Rename(r.dir, r.dir+".away"); err != nil {
		t.Fatal(err)
	}
	for failures := 1; failures <= 2; failures++ {
		ran := run(3, "nightly")
		if len(ran) != 1 || ran[0].State.Failures != failures || ran[0].State.Error == "" || ran[0].State.LastDone.IsZero() {
			t.Errorf("without the repository: %+v", ran)
		}
	}
	h.expect(t, "failed")
	if got := execute(t, nil, backupPath, "policy", "list"); got.code != 5 || !strings.Contains(got.stdout, "nightly") {
		t.Errorf("policy list ends with %d: %s", got.code, got.stdout)
	}
	if err := os.Rename(r.dir+".away", r.dir); err != nil {
		t.Fatal(err)
	}
	run(0, "nightly")
	h.expect(t, "well")
	letter, err := os.ReadFile(letters)
	if err != nil || !strings.Contains(string(letter), "args -i -- ops@example.org") || strings.Count(string(letter), "Subject: backup policy nightly") != 2 {
		t.Errorf("the letters are %q, %v", letter, err)
	}
	if got := execute(t, nil, backupPath, "policy", "list"); got.code != 0 {
		t.Errorf("policy list ends with %d: %s", got.code, got.stdout)
	}
	if got := execute(t, nil, backupPath, "policy", "run"); got.code != 2 {
		t.Errorf("run which? %d %s", got.code, got.stderr)
	}
}

// A host that is gone comes back from its repository: files first, then volumes under their names; what is there stays.
func TestRecover(t *testing.T) {
	gone, r := startDaemon(t), newRepo(t)
	config := writeFile(t, "hvd.yaml", "memory: 1GiB\n")
	endpoint := func(d *daemon) []string { return []string{"--endpoint", "unix:" + d.dir + "/hvd.sock"} }
	for pattern, name := range []string{"web1", "db1"} {
		qemuIO(t, gone.disk(name, "20M"), fmt.Sprintf("write -P %d 1M 5M", pattern+1), "flush")
	}
	r.run(append([]string{"run", "web1", "db1"}, endpoint(gone)...)...)
	r.run("run", "--files", "host1.conf", config)
	r.run("run", "--file", config)
	gone.stop()

	d := startDaemon(t)
	d.run("volume", "create", "db1", "--size", "1M") // somebody was quicker
	var plan []struct{ Source, Kind, State string }
	r.json(&plan, append([]string{"recover", "--dry-run"}, endpoint(d)...)...)
	if len(plan) != 4 {
		t.Errorf("the plan is %+v", plan)
	}
	to := t.TempDir()
	r.json(&plan, append([]string{"recover", "--files-to", to}, endpoint(d)...)...)
	states := make(map[string]string)
	for _, one := range plan {
		states[one.Kind+" "+filepath.Base(one.Source)] = one.State
	}
	if states["volume web1"] != "restored" || states["volume db1"] != "there" || states["files host1.conf"] != "restored" || states["file hvd.yaml"] != "left" {
		t.Errorf("recovered %v", states)
	}
	readOnly(t, d.attach("web1"), "read -P 0 0 1M", "read -P 1 1M 5M", "read -P 0 6M 14M")
	if text, err := os.ReadFile(filepath.Join(to, "host1.conf", config)); err != nil || string(text) != "memory: 1GiB\n" {
		t.Errorf("%q, %v", text, err)
	}
	if got := r.try(append([]string{"recover", "missing"}, endpoint(d)...)...); got.code != 3 {
		t.Errorf("what has no backup: %d %s", got.code, got.stderr)
	}
	if got := r.try(append([]string{"recover", "web1", "--at", "2020-01-01T00:00:00Z"}, endpoint(d)...)...); got.code != 3 {
		t.Errorf("before there was a backup: %d %s", got.code, got.stderr)
	}
}

// A run that is under way is not begun twice, and a policy that makes no sense is not set.
func TestBackupPolicyRefusals(t *testing.T) {
	r := newRepo(t)
	folder := filepath.Join(t.TempDir(), "policies")
	for _, c := range []struct {
		code int
		args string
	}{
		{2, "set nightly web1"},
		{2, "set nightly web1 --every 1s"},
		{2, "set nightly web1 --every 1d --at 2"},
		{2, "set nightly web1 --every 1h --at 02:00"},
		{2, "set nightly web1 @shop --every 1h"},
		{2, "set ../nightly web1 --every 1h"},
		{3, "set nightly web1 --every 1h --webhook-file /does/not/exist"},
		{3, "run nightly"},
		{3, "delete nightly"},
		{2, "run --due nightly"},
	} {
		if got := r.try(append(append([]string{"policy"}, strings.Fields(c.args)...), "--policies", folder)...); got.code != c.code {
			t.Errorf("policy %s ends with %d: %s", c.args, got.code, got.stderr)
		}
	}
	if got := execute(t, nil, backupPath, "policy", "set", "nightly", "web1", "--every", "1h", "--repo", r.dir, "--policies", folder); got.code != 2 {
		t.Errorf("without keys: %d %s", got.code, got.stderr)
	}
	if _, err := os.Stat(filepath.Join(folder, "nightly.json")); err == nil {
		t.Error("a policy is there that was refused")
	}
}

// The shell is offered volumes and policies.
func TestBackupCompletion(t *testing.T) {
	d := startDaemon(t)
	d.run("volume", "create", "web1", "--size", "1M")
	t.Setenv("HV_ENDPOINT", "unix:"+d.dir+"/hvd.sock")
	t.Setenv("HV_BACKUP_POLICIES", t.TempDir())
	for _, c := range []struct{ args, want string }{
		{"run ", "web1"}, {"cdp attach ", "web1"}, {"cdp find-onset ", "web1"}, {"policy set nightly ", "web1"}, {"test-restore ", "web1"}, {"bench --volume ", "web1"}, {"run web1 ", ""}, {"policy run ", ""},
	} {
		args := append([]string{"__complete"}, strings.Split(c.args, " ")...)
		if got := execute(t, nil, backupPath, args...); strings.Contains(got.stdout, "web1") != (c.want != "") {
			t.Errorf("%q is completed with %q", c.args, got.stdout)
		}
	}
}
