package nbd

import (
	"fmt"
	"io"
	"testing"
	"time"
)

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
