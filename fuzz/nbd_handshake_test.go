package fuzz

import (
	"io"
	"net"
	"testing"
	"time"
)

// FuzzNBDHandshake sends anything after the greeting. The server must answer or hang up: never panic, never hang, never hold the export when
// the client is gone.
func FuzzNBDHandshake(f *testing.F) {
	flags := []byte{0, 0, 0, 3}
	option := func(kind byte, data string) string {
		return "IHAVEOPT\x00\x00\x00" + string(kind) + "\x00\x00\x00" + string(byte(len(data))) + data
	}
	query := func(name string, queries ...string) string {
		text := func(s string) string { return "\x00\x00\x00" + string(rune(len(s))) + s }
		all := text(name) + "\x00\x00\x00" + string(rune(len(queries)))
		for _, q := range queries {
			all += text(q)
		}
		return all
	}
	info := "\x00\x00\x00\x04disk\x00\x02\x00\x01\x00\x03"
	for _, seed := range []string{
		"", option(1, "disk"), option(2, ""), option(3, ""), option(3, "x"), option(5, ""), option(6, info), option(7, info), option(8, ""),
		option(8, "") + option(10, info) + option(7, info), option(7, "\xff\xff\xff\xffdisk\x00\x00"), option(7, info[:9]), "IHAVENOT",
		"IHAVEOPT\x00\x00\x00\x07\xff\xff\xff\xff", "IHAVEOPT\x00\x00\x00\x07\x00\x01\x00\x00",
		option(11, ""), option(11, "x"), option(11, "") + option(11, "") + option(8, "") + option(7, info), option(11, "") + option(1, "disk"),
		option(9, query("disk")), option(9, query("disk", "base:", "qemu:dirty-bitmap:")), option(10, query("disk", "base:allocation")),
		option(8, "") + option(10, query("disk", "base:allocation", "x-hv:heat")) + option(7, info),
		option(11, "") + option(10, query("disk", "qemu:allocation-depth")) + option(10, query("other", "base:allocation")) + option(7, info),
		option(9, query("disk", "colonless")), option(9, "\x00\x00\x00\x04disk\xff\xff\xff\xff"), option(10, query("disk")[:9]),
	} {
		f.Add(append(append([]byte(nil), flags...), seed...))
	}
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, input []byte) {
		s := newNBDServer(t)
		s.run(t, func(nc net.Conn) {
			if _, err := io.ReadFull(nc, make([]byte, 18)); err != nil {
				t.Fatalf("no greeting: %v", err)
			}
			converse(nc, input)
		})
	})
}

// converse sends input and closes for writing, while it reads to the end.
func converse(nc net.Conn, input []byte) (output []byte) {
	_ = nc.SetDeadline(time.Now().Add(nbdPatience))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = nc.Write(input)
		_ = nc.(*net.UnixConn).CloseWrite()
	}()
	output, _ = io.ReadAll(nc)
	<-done
	return output
}
