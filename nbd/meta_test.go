package nbd

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestListMetaContexts(t *testing.T) {
	dev := newMemDevice(1 << 20)
	dev.contexts = append(slices.Clone(allContexts), "qemu:dirty-bitmap:second", "nonsense", "zero:\x00", ":leaf", "space:", "bad:\xff",
		"long:"+strings.Repeat("n", 4096))
	c := serveDevice(t, dev, Options{}).dial(t)
	c.greet(3)
	c.sendOption(8, nil)
	c.optionReply(8)
	monday, second := "qemu:dirty-bitmap:since-monday", "qemu:dirty-bitmap:second"
	for _, tc := range []struct{ queries, want []string }{
		{nil, []string{"base:allocation", "qemu:allocation-depth", monday, "x-hv:heat", second}},
		{[]string{"base:"}, []string{"base:allocation"}},
		{[]string{"base:allocation"}, []string{"base:allocation"}},
		{[]string{"base:alloc"}, nil},
		{[]string{"qemu:"}, []string{"qemu:allocation-depth", monday, second}},
		{[]string{"qemu:dirty-bitmap:"}, []string{monday, second}},
		{[]string{monday, monday, "base:"}, []string{"base:allocation", monday}},
		{[]string{"x-hv:"}, []string{"x-hv:heat"}}, // x-hv:tier is not offered here
		{[]string{"x-hv:tier"}, nil},
		{[]string{"other:", "other:context"}, nil},
	} {
		ids, names := c.metaContexts(9, "disk", tc.queries...)
		if !slices.Equal(names, tc.want) {
			t.Errorf("list of %q: %q, want %q", tc.queries, names, tc.want)
		}
		for name, id := range ids {
			if id != 0 {
				t.Errorf("%s is listed with the reserved id %d", name, id)
			}
		}
	}
}

func TestSetMetaContexts(t *testing.T) {
	c := serveDevice(t, newMemDevice(1<<20), Options{}).dial(t)
	c.greet(3)
	c.sendOption(8, nil)
	c.optionReply(8)
	for _, tc := range []struct{ queries, want []string }{
		{nil, nil},
		{[]string{"base:"}, nil}, // a wildcard selects nothing
		{[]string{"qemu:dirty-bitmap:"}, nil},
		{[]string{"x-hv:heat", "base:allocation", "base:allocation", "other:one"}, []string{"base:allocation", "x-hv:heat"}},
	} {
		ids, names := c.metaContexts(10, "disk", tc.queries...)
		if !slices.Equal(names, tc.want) || len(ids) != len(names) {
			t.Errorf("selection of %q: %q, want %q", tc.queries, names, tc.want)
		}
		if len(names) == 2 && ids[names[0]] == ids[names[1]] {
			t.Errorf("two contexts share the id %d", ids[names[0]])
		}
	}
}

// TestSelectionIsBounded: a device with many bitmaps may list them all, but a client may not select them all.
func TestSelectionIsBounded(t *testing.T) {
	dev := newMemDevice(1 << 20)
	dev.contexts = nil
	for i := range 10000 {
		dev.contexts = append(dev.contexts, fmt.Sprintf("qemu:dirty-bitmap:%d", i))
	}
	c := serveDevice(t, dev, Options{}).dial(t)
	c.greet(3)
	c.sendOption(8, nil)
	c.optionReply(8)
	if _, names := c.metaContexts(9, "disk"); len(names) != 10000 {
		t.Errorf("%d contexts listed", len(names))
	}
	if _, names := c.metaContexts(10, "disk", dev.contexts[:32]...); len(names) != 32 {
		t.Errorf("%d contexts selected", len(names))
	}
	c.sendOption(10, metaQuery("disk", dev.contexts[:33]...))
	if kind, _ := c.optionReply(10); kind != 1<<31+9 {
		t.Errorf("33 contexts: %#x, want TOO_BIG", kind)
	}
	c.sendOption(7, infoRequest("disk"))
	for kind := uint32(3); kind != 1; {
		kind, _ = c.optionReply(7)
	}
	c.send(header(0, 7, 1, 0, 512)) // the option that failed has undone the one before
	if errno, _ := c.errorChunk(1); errno != einval {
		t.Errorf("block status without contexts: errno %d", errno)
	}
}

// TestContextsHoldForTheirExportOnly: selected for one name, not to be used under another, though it is the same device.
func TestContextsHoldForTheirExportOnly(t *testing.T) {
	dev := newMemDevice(1 << 20)
	tab := newTable(Export{Name: "disk", Device: dev}, Export{Name: "", Device: dev})
	c := serveTable(t, tab, Options{}).dial(t)
	c.greet(3)
	c.sendOption(8, nil)
	c.optionReply(8)
	if _, names := c.metaContexts(10, "", "base:allocation"); len(names) != 1 {
		t.Fatalf("selected %q", names)
	}
	c.sendOption(7, infoRequest("disk"))
	for kind := uint32(3); kind != 1; {
		kind, _ = c.optionReply(7)
	}
	c.send(header(0, 7, 1, 0, 512))
	if errno, _ := c.errorChunk(1); errno != einval {
		t.Errorf("errno %d", errno)
	}
}
