package policy

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/retention"
)

func nightly() *Policy {
	return &Policy{Name: "nightly", Volumes: []string{"web1"}, Repository: "/mnt/r", Every: day, At: "02:00", Keep: retention.Rules{Daily: 7}}
}

// When a policy is due: at its time of day across a change of the clocks, soon again after a failure, and not never if the clock was wrong.
func TestNext(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip(err) // no zones on this machine
	}
	at := func(text string) time.Time {
		when, err := time.ParseInLocation("2006-01-02 15:04", text, berlin)
		if err != nil {
			t.Fatal(err)
		}
		return when
	}
	weekly, hourly := nightly(), nightly()
	weekly.Every = 7 * day
	hourly.Every, hourly.At = 3600, ""
	for _, c := range []struct {
		name   string
		policy *Policy
		state  State
		want   string
	}{
		{"new, in the afternoon", nightly(), State{Created: at("2026-11-29 15:00")}, "2026-11-30 02:00"},
		{"new, shortly before", nightly(), State{Created: at("2026-11-29 01:00")}, "2026-11-29 02:00"},
		{"new, weekly", weekly, State{Created: at("2026-11-29 15:00")}, "2026-11-30 02:00"},
		{"new, hourly", hourly, State{Created: at("2026-11-29 15:00")}, "2026-11-29 15:00"},
		{"it ran", nightly(), State{LastStart: at("2026-11-29 02:03")}, "2026-11-30 02:00"},
		{"it ran by hand", nightly(), State{LastStart: at("2026-11-29 01:30")}, "2026-11-29 02:00"},
		{"it ran, weekly", weekly, State{LastStart: at("2026-11-29 02:03")}, "2026-12-06 02:00"},
		{"the clocks change", nightly(), State{LastStart: at("2026-10-24 02:00")}, "2026-10-25 02:00"},
		{"it ran, hourly", hourly, State{LastStart: at("2026-11-29 15:10")}, "2026-11-29 16:10"},
		{"it failed", nightly(), State{LastStart: at("2026-11-29 02:00"), Failures: 1}, "2026-11-29 02:05"},
		{"it failed thrice", nightly(), State{LastStart: at("2026-11-29 02:00"), Failures: 3}, "2026-11-29 02:20"},
		{"it failed often", nightly(), State{LastStart: at("2026-11-29 02:00"), Failures: 99}, "2026-11-29 03:00"},
		{"it failed, hourly", hourly, State{LastStart: at("2026-11-29 02:00"), Failures: 99}, "2026-11-29 03:00"},
	} {
		got := c.policy.Next(c.state, berlin)
		if !got.Equal(at(c.want)) {
			t.Errorf("%s: %v, want %s", c.name, got, c.want)
		}
		if !c.policy.Due(c.state, got, berlin) || c.policy.Due(c.state, got.Add(-time.Second), berlin) {
			t.Errorf("%s: it is due at another moment than it says", c.name)
		}
	}
	if !nightly().Due(State{LastStart: at("2030-01-01 00:00")}, at("2026-11-29 15:00"), berlin) {
		t.Error("it ran in what is the future now, and waits for that")
	}
}

func TestMissing(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		state State
		want  bool
	}{
		{State{Created: now.Add(-35 * time.Hour)}, false},
		{State{Created: now.Add(-37 * time.Hour)}, true},
		{State{Created: now.Add(-1000 * time.Hour), LastDone: now.Add(-35 * time.Hour)}, false},
		{State{Created: now.Add(-1000 * time.Hour), LastDone: now.Add(-37 * time.Hour), LastStart: now}, true},
	} {
		if got := nightly().Missing(c.state, now); got != c.want {
			t.Errorf("%+v: missing %v", c.state, got)
		}
	}
	p := nightly()
	if p.NeedsPrune(State{}, now) || p.NeedsVerify(State{}, now) {
		t.Error("what was not asked for is to be done")
	}
	p.PruneEvery, p.VerifyEvery = day, 7*day
	s := State{LastPrune: now.Add(-23 * time.Hour), LastVerify: now.Add(-6 * 24 * time.Hour)}
	if !p.NeedsPrune(s, now) || p.NeedsVerify(s, now) || !p.NeedsVerify(State{LastVerify: now.Add(time.Hour)}, now) {
		t.Error("prune or verify at another time than asked for")
	}
}

// What has failed is done again a day later, and is not well before.
func TestNeedsTest(t *testing.T) {
	now := time.Now()
	p := nightly()
	if p.NeedsTest(State{}, now) {
		t.Error("a test is due that was not asked for")
	}
	p.TestEvery, p.VerifyEvery = 7*day, 7*day
	passed, failed := []Test{{Backups: []string{"a"}}}, []Test{{Backups: []string{"a"}}, {Backups: []string{"b"}, Error: "no answer"}, {Error: "no boot"}}
	for _, c := range []struct {
		name         string
		state        State
		test, verify bool
	}{
		{"never yet", State{}, true, true},
		{"two days ago", State{LastTest: now.Add(-48 * time.Hour), Tests: passed, LastVerify: now.Add(-48 * time.Hour)}, false, false},
		{"two days ago, in vain", State{LastTest: now.Add(-48 * time.Hour), Tests: failed, LastVerify: now.Add(-48 * time.Hour), BadVerify: "damage"}, true, true},
		{"an hour ago, in vain", State{LastTest: now.Add(-time.Hour), Tests: failed, LastVerify: now.Add(-time.Hour), BadVerify: "damage"}, false, false},
		{"a week ago", State{LastTest: now.Add(-7 * 24 * time.Hour), Tests: passed, LastVerify: now.Add(-7 * 24 * time.Hour)}, true, true},
	} {
		if test, verify := p.NeedsTest(c.state, now), p.NeedsVerify(c.state, now); test != c.test || verify != c.verify {
			t.Errorf("%s: test %v, verify %v", c.name, test, verify)
		}
	}
	if s := (State{Tests: failed}); s.BadTests() != "no answer; no boot" || (&State{Tests: passed}).BadTests() != "" {
		t.Errorf("%q", s.BadTests())
	}
}

func TestFolder(t *testing.T) {
	f := Folder(filepath.Join(t.TempDir(), "deep", "policies"))
	if names, err := f.Names(); err != nil || len(names) != 0 {
		t.Error(names, err)
	}
	p := nightly()
	p.TestEvery, p.TestGuests, p.TestExpect, p.TestQEMU = 7*day, []string{"web1"}, "login", []string{"-cpu", "host"}
	s := State{Created: time.Now().UTC().Truncate(time.Second), Error: "no", Failures: 2, LastTest: time.Now().UTC().Truncate(time.Second), Tests: []Test{{Backups: []string{"a"}, Seconds: 1.5, Answer: "login:"}}}
	if err := f.Save(p); err != nil {
		t.Fatal(err)
	}
	if err := f.SaveState(p.Name, s); err != nil {
		t.Fatal(err)
	}
	got, state, err := f.Load("nightly")
	if err != nil || !reflect.DeepEqual(got, p) || !reflect.DeepEqual(state, s) {
		t.Errorf("%+v %+v %v", got, state, err)
	}
	if names, err := f.Names(); err != nil || len(names) != 1 || names[0] != "nightly" {
		t.Error(names, err)
	}
	info, err := os.Stat(f.path("nightly.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info, err)
	}
	if err := os.Remove(f.path("nightly.state")); err != nil {
		t.Fatal(err)
	}
	if _, lost, err := f.Load("nightly"); err != nil || time.Since(lost.Created) > time.Hour {
		t.Errorf("without its state: %+v, %v", lost, err)
	}
	unlock, err := f.Lock("nightly")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Lock("nightly"); !errors.Is(err, block.ErrInUse) {
		t.Errorf("locked twice: %v", err)
	}
	if err := unlock(); err != nil {
		t.Error(err)
	}
	if unlock, err = f.Lock("nightly"); err != nil || unlock() != nil {
		t.Error(err)
	}
	if err := f.Delete("nightly"); err != nil {
		t.Error(err)
	}
	if _, _, err := f.Load("nightly"); !errors.Is(err, block.ErrNotFound) || !errors.Is(f.Delete("nightly"), block.ErrNotFound) {
		t.Error(err)
	}
}

// What is no policy is refused, with a reason.
func TestBadFiles(t *testing.T) {
	f := Folder(t.TempDir())
	for name, text := range map[string]string{
		"torn":    `{"format":"hyper-nix`,
		"other":   `{"format":"something else","version":1,"content":{}}`,
		"unknown": `{"format":"hyper-nixos backup policy","version":1,"content":{"name":"unknown","colour":"red"}}`,
		"named":   `{"format":"hyper-nixos backup policy","version":1,"content":{"name":"otherwise"}}`,
	} {
		if err := os.WriteFile(f.path(name+".json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := f.Load(name); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(f.path("newer.json"), []byte(`{"format":"hyper-nixos backup policy","version":3,"content":{}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.Load("newer"); !errors.Is(err, block.ErrVersion) {
		t.Error(err)
	}
	for _, name := range []string{"", "../x", "a b", strings.Repeat("x", 65)} {
		if _, _, err := f.Load(name); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("name %q: %v", name, err)
		}
	}
	for what, change := range map[string]func(*Policy){
		"nothing to back up":  func(p *Policy) { p.Volumes = nil },
		"both":                func(p *Policy) { p.Group = "shop" },
		"no repository":       func(p *Policy) { p.Repository = "" },
		"too often":           func(p *Policy) { p.Every, p.At = 59, "" },
		"odd days":            func(p *Policy) { p.Every = day + 1 },
		"no such time":        func(p *Policy) { p.At = "25:00" },
		"percent":             func(p *Policy) { p.VerifyPercent = 101 },
		"prune":               func(p *Policy) { p.PruneEvery = -1 },
		"files without paths": func(p *Policy) { p.Files = map[string][]string{"etc": nil} },
		"tests of others":     func(p *Policy) { p.TestEvery, p.TestGuests = day, []string{"web1,other"} },
		"tests at no time":    func(p *Policy) { p.TestAgent = true },
		"tests that expect":   func(p *Policy) { p.TestEvery, p.TestExpect = day, "(" },
		"tests for days":      func(p *Policy) { p.TestEvery, p.TestTimeout = day, 2*day },
		"keep":                func(p *Policy) { p.Keep.Daily = -1 },
		"a negative lock":     func(p *Policy) { p.Lock = -1 },
		"a lock for ever":     func(p *Policy) { p.Lock = maxEvery + 1 },
		"a lock of no copies": func(p *Policy) { p.CopyLock = day },
		"a header of mail":    func(p *Policy) { p.MailTo = "ops@example.org\nBcc: x@example.org" },
		"long":                func(p *Policy) { p.Endpoint = strings.Repeat("x", maxText+1) },
	} {
		p := nightly()
		change(p)
		if err := f.Save(p); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
