package main

import (
	"strings"
	"testing"
)

// Completion offers what the command takes: snapshots behind VOLUME@, tokens to revoke.
func TestCompletion(t *testing.T) {
	d := startDaemon(t)
	d.must("volume", "create", "web1", "--size", "1G")
	d.must("snapshot", "create", "web1@s1")
	d.must("volume", "bitmap", "add", "web1", "monday")
	d.must("volume", "group", "set", "shop", "web1")
	d.must("snapshot", "schedule", "set", "@shop", "--every", "1h")
	d.must("token", "create", "ci", "--scope", "read")
	for _, c := range []struct {
		args  []string
		offer string
	}{
		{[]string{"snapshot", "create", "we"}, "web1"},
		{[]string{"snapshot", "create", "web1@x", "w"}, "web1"},
		{[]string{"snapshot", "create", "@"}, "@shop@"},
		{[]string{"volume", "group", "set", "shop", "w"}, "web1"},
		{[]string{"volume", "group", "delete", ""}, "shop"},
		{[]string{"snapshot", "schedule", "set", "w"}, "web1"},
		{[]string{"snapshot", "schedule", "set", "@"}, "@shop"},
		{[]string{"snapshot", "schedule", "delete", ""}, "@shop"},
		{[]string{"snapshot", "delete", "we"}, "web1@"},
		{[]string{"snapshot", "delete", "web1@"}, "web1@s1"},
		{[]string{"snapshot", "rollback", "web1", ""}, "s1"},
		{[]string{"snapshot", "rename", "web1@"}, "web1@s1"},
		{[]string{"snapshot", "protect", "web1@"}, "web1@s1"},
		{[]string{"snapshot", "diff", "web1@s1", "web1@"}, "web1@s1"},
		{[]string{"volume", "bitmap", "clear", "we"}, "web1"},
		{[]string{"volume", "bitmap", "remove", "web1", ""}, "monday"},
		{[]string{"token", "revoke", ""}, "ci"},
		{[]string{"volume", "create", "web2", "--chunking", ""}, "cdc"},
		{[]string{"volume", "list", "-o", ""}, "table"},
	} {
		r := d.run("", append([]string{"__complete"}, c.args...)...)
		if first, _, _ := strings.Cut(r.out, "\n"); r.code != exitDone || first != c.offer {
			t.Errorf("%q: offers %q, want %q", c.args, r.out, c.offer)
		}
	}
}
