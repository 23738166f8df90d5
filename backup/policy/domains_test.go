package policy

import (
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// written is what programs that know no machines have written, and read.
const written = `{
  "format": "hyper-nixos backup policy",
  "version": 1,
  "content": {
    "name": "nightly",
    "volumes": [
      "web1"
    ],
    "repository": "/mnt/r",
    "everySeconds": 86400,
    "at": "02:00",
    "keep": {
      "daily": 7
    }
  }
}
`

// Old policies are read, and written as they were; one with machines has a version that old programs refuse, and no other.
func TestVersions(t *testing.T) {
	f := Folder(t.TempDir())
	file := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(f.path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file("nightly.json", written)
	p, _, err := f.Load("nightly")
	if err != nil || !reflect.DeepEqual(p, nightly()) {
		t.Fatalf("%+v, %v", p, err)
	}
	if err := f.Save(p); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(f.path("nightly.json")); err != nil || string(text) != written {
		t.Errorf("written as %s, %v", text, err)
	}
	p.Volumes, p.Domains, p.Connect = nil, []string{"web1", "a, b"}, "qemu:///system"
	if err := f.Save(p); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(f.path("nightly.json"))
	if err != nil || !strings.Contains(string(text), `"version": 2`) {
		t.Errorf("with machines it is written as %s, %v", text, err)
	}
	if again, _, err := f.Load("nightly"); err != nil || !reflect.DeepEqual(again, p) {
		t.Errorf("%+v, %v", again, err)
	}
	file("nightly.json", strings.Replace(string(text), `"version": 2`, `"version": 1`, 1))
	if _, _, err := f.Load("nightly"); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("machines in version 1: %v", err)
	}
	for _, version := range []string{"0", "-1", "3"} {
		file("nightly.json", strings.Replace(string(text), `"version": 2`, `"version": `+version, 1))
		if _, _, err := f.Load("nightly"); !errors.Is(err, block.ErrVersion) {
			t.Errorf("version %s: %v", version, err)
		}
	}
	file("nightly.json", string(text))
	file("nightly.state", `{"format":"hyper-nixos backup policy state","version":2,"content":{}}`)
	if _, _, err := f.Load("nightly"); !errors.Is(err, block.ErrVersion) {
		t.Errorf("a state of version 2: %v", err)
	}
}

// A policy backs up one kind of thing at one moment, and says nothing that goes with another kind.
func TestDomains(t *testing.T) {
	good := func() *Policy {
		p := nightly()
		p.Volumes, p.Domains, p.TestEvery, p.TestGuests = nil, []string{"web1", "a,b"}, day, []string{"a,b"}
		return p
	}
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*Policy){
		"volumes":                func(p *Policy) { p.Volumes = []string{"web1"} },
		"a group":                func(p *Policy) { p.Group = "shop" },
		"nothing":                func(p *Policy) { p.Domains = nil },
		"a domain of no name":    func(p *Policy) { p.Domains = []string{""} },
		"a name with controls":   func(p *Policy) { p.Domains[0] = "a\nb" },
		"too many":               func(p *Policy) { p.Domains = slices.Repeat([]string{"a,b"}, maxVolumes+1) },
		"agents":                 func(p *Policy) { p.GuestAgents = []string{"web1=/run/a"} },
		"a test of a volume":     func(p *Policy) { p.TestGuests = []string{"web1-data"} },
		"libvirt, for volumes":   func(p *Policy) { *p = *nightly(); p.Connect = "qemu:///system" },
		"a URI that is too long": func(p *Policy) { p.Connect = strings.Repeat("x", maxText+1) },
	} {
		p := good()
		change(p)
		if err := p.Validate(); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
