package nbd

import (
	"fmt"
	"io"
	"testing"
	"time"
)

// TestServedAtOnceAllocatesNothing counts the allocations of the whole process, the client's side included, over windows of requests.
func TestServedAtOnceAllocatesNothing(t *testing.T) {
	for name, attach := range map[string]func(*served) (*client, framing){
		"simple":     func(s *served) (*client, framing) { return s.attach(t, false), simpleReplies },
		"structured": func(s *served) (*client, framing) { return s.attach(t, true), structuredReplies },
		"extended":   func(s *served) (*client, framing) { w, _, _ := s.attachWide(t); return w.client, extendedHeaders },
	} {
		s := serveTable(t, newTable(Export{Name: "disk", Device: newMemDevice(1 << 20)}), Options{})
		c, f := attach(s)
		var window []byte
		reply := 0
		for i := range uint64(32) {
			if f == extendedHeaders {
				window = append(window, append(wideHeader(payloadLen, 1, i, 0, 512), make([]byte, 512)...)...)
				window = append(window, wideHeader(0, 0, i, 0, 512)...)
				reply += 32 + 40 + 512
				continue
			}
			window = append(window, append(header(0, 1, i, 0, 512), make([]byte, 512)...)...)
			window = append(window, header(0, 0, i, 0, 512)...)
			reply += 16 + map[framing]int{simpleReplies: 16, structuredReplies: 28}[f] + 512
		}
		replies := make([]byte, reply)
		if n := testing.AllocsPerRun(200, func() {
			if _, err := c.nc.Write(window); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c.nc, replies); err != nil {
				t.Fatal(err)
			}
		}); n >= 1 && !raceEnabled {
			t.Errorf("%s: %v allocations for 64 requests", name, n)
		}
	}
}

// BenchmarkServer sends windows of requests and waits for all their replies, as a client at a queue depth does.
func BenchmarkServer(b *testing.B) {
	for _, bc := range []struct {
		name        string
		cmd         uint16
		size, depth int
	}{{"read4k", 0, 4096, 32}, {"write4k", 1, 4096, 32}, {"read1M", 0, 1 << 20, 2}, {"write1M", 1, 1 << 20, 2}, {"read4k", 0, 4096, 1}, {"write4k", 1, 4096, 1}} {
		for _, slow := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/depth=%d/slow=%v", bc.name, bc.depth, slow), func(b *testing.B) {
				const span = 64 << 20
				dev := newMemDevice(span)
				dev.slow.Store(slow)
				c := serveDevice(b, dev, Options{}).attach(b, false)
				_ = c.nc.SetDeadline(time.Time{})
				var window []byte
				reply := bc.depth * 16
				for i := range bc.depth {
					window = append(window, header(0, bc.cmd, uint64(i), uint64(i*7919*bc.size)%(span-1<<20)&^4095, uint32(bc.size))...)
					if bc.cmd == 1 {
						window = append(window, make([]byte, bc.size)...)
					} else {
						reply += bc.size
					}
				}
				replies := make([]byte, reply)
				b.SetBytes(int64(bc.size))
				b.ReportAllocs()
				for n := 0; b.Loop(); n++ {
					if n%bc.depth != 0 {
						continue // one pass sends a whole window
					}
					go func() { _, _ = c.nc.Write(window) }()
					if _, err := io.ReadFull(c.nc, replies); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
