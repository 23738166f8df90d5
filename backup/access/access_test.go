package access

import (
	"errors"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

func TestParseRules(t *testing.T) {
	rules, err := ParseRules(" web1=append:vms, ops.example=all,web1=read:archive ,, mirror=read")
	if err != nil || len(rules) != 4 {
		t.Fatalf("%v, %v", rules, err)
	}
	for _, c := range []struct {
		names      []string
		repository string
		want       Rights
	}{
		{[]string{"web1"}, "vms", Append},
		{[]string{"web1"}, "archive", Read},
		{[]string{"web1"}, "other", 0},
		{[]string{"x", "ops.example"}, "any", All},
		{[]string{"web1", "mirror"}, "vms", Append | Read},
		{[]string{"web"}, "vms", 0},
		{nil, "vms", 0},
	} {
		if got := rules.Of(c.names, c.repository); got != c.want {
			t.Errorf("%q may %v in %s, want %v", c.names, got, c.repository, c.want)
		}
	}
	for _, text := range []string{"web1", "=append", "web1=write", "web1=append:", "web1=append:../x", "web1=append:a/b", "web1=append:.a", strings.Repeat("n", 254) + "=all", strings.Repeat("a=read,", 4097)} {
		if rules, err := ParseRules(text); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%.40q: %v, %v", text, rules, err)
		}
	}
	for _, r := range []Rights{Append, Read, All} {
		if again, err := ParseRules("x=" + r.String()); err != nil || again[0].Rights != r {
			t.Errorf("%v is read as %v, %v", r, again, err)
		}
	}
}

// The table of docs/format/repository-host.md: who may do what with which objects.
func TestRights(t *testing.T) {
	for _, c := range []struct {
		key                       string
		make, makeFirst, read, st bool // with Append alone
		list, held                bool
	}{
		{"config", false, true, true, true, false, true},
		{"keys/0123", false, true, true, true, true, true},
		{"packs/ab/abcd", true, true, false, true, true, true},
		{"index/abcd", true, true, true, true, true, false},
		{"manifests/x", true, true, false, true, false, true},
		{"marks/x", false, false, true, true, true, false},
		{"probes/x", false, false, false, false, false, false},
		{"bench/x", false, false, false, false, false, false},
		{"new/x", false, false, false, false, false, true},
	} {
		prefix := c.key[:strings.LastIndex(c.key, "/")+1]
		got := []bool{Append.MayMake(c.key, true), Append.MayMake(c.key, false), Append.MayRead(c.key), Append.MayStat(c.key), Append.MayList(prefix), Held(c.key)}
		want := []bool{c.make, c.makeFirst, c.read, c.st, c.list, c.held}
		for i, what := range []string{"make", "make before config", "read", "stat", "list", "held"} {
			if got[i] != want[i] {
				t.Errorf("%s %s: %v, want %v", what, c.key, got[i], want[i])
			}
		}
		if Read.MayMake(c.key, false) || !Read.MayRead(c.key) || !Read.MayList(prefix) || !Read.MayStat(c.key) {
			t.Errorf("with read: %s", c.key)
		}
		if !All.MayMake(c.key, true) || !All.MayRead(c.key) || !All.MayList("") {
			t.Errorf("with all: %s", c.key)
		}
		if r := Rights(0); r.MayMake(c.key, false) || r.MayRead(c.key) || r.MayStat(c.key) || r.MayList(prefix) {
			t.Errorf("with nothing: %s", c.key)
		}
	}
	for _, prefix := range []string{"", "p", "packs", "manifests/", "manif", "probes/"} {
		if Append.MayList(prefix) {
			t.Errorf("append lists %q", prefix)
		}
	}
}

func TestQuotas(t *testing.T) {
	q, err := ParseQuotas("vms=500GiB, *=1TiB,a.b=1", CheckName)
	if err != nil || q.Of("vms") != 500<<30 || q.Of("a.b") != 1 || q.Of("other") != 1<<40 {
		t.Fatalf("%v, %v", q, err)
	}
	if got := q.Account([]string{"first", "vms", "a.b"}); got != "vms" {
		t.Errorf("of several names %q counts", got)
	}
	if got := q.Account([]string{"first", "second"}); got != "first" || q.Of(got) != 1<<40 {
		t.Errorf("of names without an entry %q counts", got)
	}
	if none, err := ParseQuotas(" ", CheckName); err != nil || none.Of("vms") != 0 {
		t.Errorf("none: %v, %v", none, err)
	}
	for _, text := range []string{"vms", "vms=", "=1GiB", "vms=0", "vms=1GiB=2", "../x=1GiB", "vms=-1", "vms=1GiB,vms=2GiB", "*=1,*=2"} {
		if q, err := ParseQuotas(text, CheckName); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%q is %v, %v", text, q, err)
		}
	}
	for key, exempt := range map[string]bool{"marks/x": true, "index/x": true, "probes/x": true, "packs/aa/x": false, "manifests/x": false, "new/x": false} {
		if All.Exempt(key) != exempt || (Append | Read).Exempt(key) {
			t.Errorf("%s passes quotas: %v", key, All.Exempt(key))
		}
	}
}
