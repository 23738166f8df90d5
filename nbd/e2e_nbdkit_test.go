package nbd

import (
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"testing"
)

// nbdkit runs a command against nbdkit's NBD plugin, which is another client of ours and a server of its own; $uri is that server.
func nbdkit(t *testing.T, command string, args ...string) string {
	t.Helper()
	needs(t, "nbdcopy")
	return tool(t, "nbdkit", append([]string{"--exit-with-parent", "-U", "-"}, append(args, "--run", command)...)...)
}

// TestThroughNbdkit: data and holes are the same with nbdkit in the middle, also when it delays requests or cuts them up.
func TestThroughNbdkit(t *testing.T) {
	for name, filters := range map[string][]string{
		"alone": nil,
		"delay": {"--filter=delay", "delay-read=3ms", "delay-extents=1ms"},
		"small": {"--filter=blocksize", "maxdata=64k"},
	} {
		t.Run(name, func(t *testing.T) {
			dev := newMemDevice(8 << 20)
			file := image(t, dev)
			s := serveDevice(t, dev, Options{})
			// Filters go before the plugin's name, their parameters anywhere.
			var before, after []string
			for _, f := range filters {
				if len(f) > 2 && f[:2] == "--" {
					before = append(before, f)
				} else {
					after = append(after, f)
				}
			}
			args := append(append(before, "nbd", "socket="+s.addr, "export=disk"), after...)
			out := filepath.Join(t.TempDir(), "out.raw")
			nbdkit(t, "nbdcopy --connections=1 $uri "+out, args...)
			mustEqualFiles(t, file, out)
			var got []struct {
				Length uint64
				Type   uint32
			}
			if err := json.Unmarshal([]byte(nbdkit(t, "nbdinfo --json --map $uri", args...)), &got); err != nil {
				t.Fatal(err)
			}
			var extents []extent
			for _, e := range got {
				if n := len(extents); n > 0 && extents[n-1].status == e.Type {
					extents[n-1].length += e.Length // what the filters cut apart
				} else {
					extents = append(extents, extent{e.Length, e.Type})
				}
			}
			if want := extentsOf(dev, ContextAllocation, 0, dev.Size()); fmt.Sprint(extents) != fmt.Sprint(want) {
				t.Errorf("map: %v, want %v", extents, want)
			}
		})
	}
}

// TestNbdkitOverTLS: its plugin as a client with a certificate.
func TestNbdkitOverTLS(t *testing.T) {
	dev := newMemDevice(8 << 20)
	file := image(t, dev)
	g := guard(t, oneDisk(dev), nil)
	host, port, _ := net.SplitHostPort(g.tcp)
	out := filepath.Join(t.TempDir(), "out.raw")
	nbdkit(t, "nbdcopy $uri "+out, "nbd", "hostname="+host, "port="+port, "export=disk", "tls=require", "tls-certificates="+wallet(t, g, nil))
	mustEqualFiles(t, file, out)
}
