package nbd

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"
)

func TestGoAnnouncesTheExport(t *testing.T) {
	s := serveDevice(t, newMemDevice(1<<20+7), Options{})
	c := s.dial(t)
	c.greet(3)
	c.sendOption(8, nil)
	c.optionReply(8)
	c.sendOption(7, infoRequest("disk", 1, 2, 3, 1, 999))
	infos := map[uint16][]byte{}
	for {
		kind, data := c.optionReply(7)
		if kind == 1 {
			break
		}
		k := binary.BigEndian.Uint16(data)
		if _, twice := infos[k]; twice {
			t.Errorf("information %d was sent twice", k)
		}
		infos[k] = data[2:]
	}
	const flags = 1 | 1<<2 | 1<<3 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<10 | 1<<11
	if got, want := string(infos[0]), string(pack(uint64(1<<20+7), uint16(flags))); got != want {
		t.Errorf("NBD_INFO_EXPORT % x, want % x", got, want)
	}
	if string(infos[1]) != "disk" || string(infos[2]) != "a test disk" {
		t.Errorf("name %q, description %q", infos[1], infos[2])
	}
	if got, want := string(infos[3]), string(pack(uint32(1), uint32(4096), uint32(32<<20))); got != want {
		t.Errorf("NBD_INFO_BLOCK_SIZE % x, want % x", got, want)
	}
}

func TestReadOnlyExportHidesWrites(t *testing.T) {
	dev := newMemDevice(4096)
	dev.readOnly = true
	s := serveDevice(t, dev, Options{})
	c := s.dial(t)
	c.greet(3)
	c.sendOption(6, infoRequest("disk"))
	_, data := c.optionReply(6)
	if got, want := binary.BigEndian.Uint16(data[10:]), uint16(1|1<<1|1<<2|1<<3|1<<8|1<<10); got != want {
		t.Errorf("flags %#x, want %#x", got, want)
	}
}

func TestInfoHoldsNothing(t *testing.T) {
	s := serveDevice(t, newMemDevice(4096), Options{})
	c := s.dial(t)
	c.greet(3)
	c.sendOption(6, infoRequest("disk"))
	for kind := uint32(3); kind != 1; {
		kind, _ = c.optionReply(6)
	}
	c.sendOption(3, nil) // its answer comes after INFO was done with
	c.optionReply(3)
	if n := s.table.heldOf("disk"); n != 0 || s.Connections("disk") != 0 {
		t.Errorf("INFO left %d references and %d connections", n, s.Connections("disk"))
	}
}

func TestExportName(t *testing.T) {
	for _, tc := range []struct {
		name  string
		flags uint32
		size  int
	}{{"zeroes", 1, 134}, {"no zeroes", 3, 10}, {"not fixed", 0, 134}} {
		t.Run(tc.name, func(t *testing.T) {
			s := serveDevice(t, newMemDevice(8192), Options{})
			c := s.dial(t)
			c.greet(tc.flags)
			c.sendOption(1, []byte("disk"))
			p := c.recv(tc.size)
			if binary.BigEndian.Uint64(p) != 8192 {
				t.Errorf("size is % x", p[:8])
			}
			c.send(header(0, 0, 5, 8190, 2))
			c.expect(5, 0)
			c.recv(2)
		})
	}
}

func TestExportNameUnknownHangsUp(t *testing.T) {
	for _, name := range []string{"other", "", "disk/../disk", "disk\x00", strings.Repeat("n", 5000)} {
		s := serveDevice(t, newMemDevice(8192), Options{})
		c := s.dial(t)
		c.greet(3)
		c.sendOption(1, []byte(name))
		c.closed()
	}
}

func TestOptionsAreAnswered(t *testing.T) {
	const unsup, policy, invalid, unknown, tooBig = 1<<31 + 1, 1<<31 + 2, 1<<31 + 3, 1<<31 + 6, 1<<31 + 9
	cases := []struct {
		name string
		opt  uint32
		data []byte
		want uint32
	}{
		{"unknown option", 4711, []byte("data"), unsup},
		{"peek export", 4, nil, unsup},
		{"starttls", 5, nil, unsup},
		{"list meta context, empty", 9, nil, invalid},
		{"list meta context, count cut short", 9, infoRequest("disk"), invalid},
		{"list meta context, unknown export", 9, metaQuery("other", "base:"), unknown},
		{"list meta context, unavailable export", 9, metaQuery("locked", "base:"), policy},
		{"list meta context, no namespace", 9, metaQuery("disk", "allocation"), invalid},
		{"list meta context, empty namespace", 9, metaQuery("disk", ":allocation"), invalid},
		{"list meta context, 4 Gi queries", 9, pack(uint32(4), "disk", uint32(0xffffffff)), invalid},
		{"list meta context, query of 4 GiB", 9, pack(uint32(4), "disk", uint32(1), uint32(0xffffffff)), invalid},
		{"list meta context, trailing bytes", 9, append(metaQuery("disk", "base:"), 0), invalid},
		{"set meta context before structured replies", 10, metaQuery("disk", "base:allocation"), invalid},
		{"extended headers with data", 11, []byte("x"), invalid},
		{"unknown, too long", 4711, make([]byte, 100<<10), tooBig},
		{"list with data", 3, []byte("x"), invalid},
		{"structured reply with data", 8, []byte("x"), invalid},
		{"go, empty", 7, nil, invalid},
		{"go, name cut short", 7, pack(uint32(100), "disk", uint16(0)), invalid},
		{"go, name of 4 GiB", 7, pack(uint32(0xffffffff), "disk", uint16(0)), invalid},
		{"go, infos cut short", 7, pack(uint32(4), "disk", uint16(3), uint16(1)), invalid},
		{"go, trailing bytes", 7, append(infoRequest("disk"), 0), invalid},
		{"go, unknown export", 7, infoRequest("other"), unknown},
		{"go, long name", 7, infoRequest(strings.Repeat("n", 4097)), unknown},
		{"go, control characters", 7, infoRequest("disk\x00\n"), unknown},
		{"go, unavailable export", 7, infoRequest("locked"), policy},
		{"info, unknown export", 6, infoRequest("../disk"), unknown},
		{"go, huge", 7, make([]byte, 1<<20), tooBig},
	}
	tab := newTable(Export{Name: "disk", Device: newMemDevice(4096)}, Export{Name: "locked"})
	s := serveTable(t, tab, Options{})
	c := s.dial(t)
	c.greet(3)
	for _, tc := range cases {
		c.sendOption(tc.opt, tc.data)
		if kind, text := c.optionReply(tc.opt); kind != tc.want {
			t.Errorf("%s: reply %#x %q, want %#x", tc.name, kind, text, tc.want)
		}
	}
	c.sendOption(7, infoRequest("disk")) // after all that the client may still go
	if kind, _ := c.optionReply(7); kind != 3 {
		t.Errorf("GO at last: %#x", kind)
	}
}

func TestList(t *testing.T) {
	tab := newTable(Export{Name: "a", Description: "first", Device: newMemDevice(1)}, Export{Name: "b", Device: newMemDevice(1)})
	c := serveTable(t, tab, Options{}).dial(t)
	c.greet(3)
	c.sendOption(3, nil)
	got := map[string]string{}
	for {
		kind, data := c.optionReply(3)
		if kind == 1 {
			break
		}
		n := binary.BigEndian.Uint32(data)
		got[string(data[4:4+n])] = string(data[4+n:])
	}
	if len(got) != 2 || got["a"] != "first" {
		t.Errorf("list is %v", got)
	}
	c.sendOption(2, nil)
	if kind, _ := c.optionReply(2); kind != 1 {
		t.Errorf("ABORT answered %#x", kind)
	}
	c.closed()
}

func TestMalformedHandshakeHangsUp(t *testing.T) {
	for name, bytes := range map[string][]byte{
		"unknown client flags": pack(uint32(0xff)),
		"wrong option magic":   pack(uint32(3), "IHAVENOT", uint32(7), uint32(0)),
		"option of 4 GiB":      pack(uint32(3), "IHAVEOPT", uint32(7), uint32(0xffffffff)),
		"not fixed newstyle":   pack(uint32(0), "IHAVEOPT", uint32(3), uint32(0)),
	} {
		t.Run(name, func(t *testing.T) {
			c := serveDevice(t, newMemDevice(4096), Options{}).dial(t)
			c.recv(18)
			c.send(bytes)
			c.closed()
		})
	}
}

func TestHandshakeTimeout(t *testing.T) {
	c := serveDevice(t, newMemDevice(4096), Options{HandshakeTimeout: time.Second}).dial(t)
	c.recv(18)
	c.send(uint32(3), "IHAVE")
	c.closed()
}

func TestEndlessOptionsHangUp(t *testing.T) {
	c := serveDevice(t, newMemDevice(4096), Options{}).dial(t)
	c.greet(3)
	for range maxOptions {
		c.sendOption(4711, nil)
		c.optionReply(4711)
	}
	c.closed()
}

func TestBlockSizesObeyTheProtocol(t *testing.T) {
	for _, tc := range []struct{ in, want [3]uint32 }{
		{[3]uint32{}, [3]uint32{1, 4096, 32 << 20}},
		{[3]uint32{512, 65536, 1 << 20}, [3]uint32{512, 65536, 1 << 20}},
		{[3]uint32{513, 5000, 100000}, [3]uint32{512, 4096, 99840}},
		{[3]uint32{1 << 30, 1, 1}, [3]uint32{65536, 65536, 65536}},
		{[3]uint32{1, 1, 1 << 31}, [3]uint32{1, 512, 32 << 20}},
	} {
		a, b, c := blockSizes(Export{MinBlock: tc.in[0], PreferredBlock: tc.in[1], MaxBlock: tc.in[2]})
		if got := [3]uint32{a, b, c}; got != tc.want {
			t.Errorf("blockSizes(%v) = %v, want %v", tc.in, got, tc.want)
		}
	}
}
