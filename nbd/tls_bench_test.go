package nbd

import "testing"

// BenchmarkTLS has nbdcopy read 256 MiB out of memory over TCP and one connection; its own half of the work is in the figures. Both TLS kinds use AES-128-GCM or what the client prefers.
func BenchmarkTLS(b *testing.B) {
	const size = 256 << 20
	keys := keyFile(b, shortDir(b), "guest:"+guestKey+"\n")
	for _, way := range []struct {
		name string
		door func(*TLSOptions)
		uri  func(g *guarded) string
	}{
		{"plain", func(o *TLSOptions) { o.Required = false }, func(g *guarded) string { return "nbd://" + g.tcp + "/disk" }},
		{"x509", func(o *TLSOptions) { o.ClientCAFile = "" }, func(g *guarded) string {
			dir := shortDir(b)
			g.ca.StoreSelf(dir)
			return g.uriTLS(dir)
		}},
		{"psk", withKeys(b), func(g *guarded) string { return g.uriPSK("guest", keys) }},
	} {
		b.Run(way.name, func(b *testing.B) {
			dev := newMemDevice(size)
			dev.fill(func(i int) byte { return byte(i>>12) | 1 })
			g := guard(b, oneDisk(dev), way.door)
			uri := way.uri(g)
			b.SetBytes(size)
			for b.Loop() {
				tool(b, "nbdcopy", "--connections=1", uri, "null:")
			}
		})
	}
}
