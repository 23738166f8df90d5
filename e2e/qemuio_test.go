package e2e

import (
	"strings"
	"testing"
)

// qemuIO runs commands of qemu-io on an export. A pattern that does not match ends it with an error.
func qemuIO(t *testing.T, uri string, commands ...string) {
	t.Helper()
	args := []string{"-f", "raw", "-d", "unmap", "-t", "none"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	got := tryTool(t, "qemu-io", append(args, uri)...)
	if text := got.stdout + got.stderr; got.code != 0 || strings.Contains(text, "failed") || strings.Contains(text, "rror") {
		t.Fatalf("qemu-io ended with %d\n%s", got.code, text)
	}
}

// TestQemuIO issues each command and flag that qemu-io has, and reads every pattern three times: from the log, from segments, and after a restart.
func TestQemuIO(t *testing.T) {
	needs(t, "qemu-io")
	for _, script := range []struct {
		name         string
		write, check []string
	}{
		{"write", []string{"write -P 0x5a 0 1M", "write -P 0x5b 1M 33M"},
			[]string{"read -P 0x5a 0 1M", "read -P 0x5b 1M 33M", "read -P 0 34M 1M"}},
		{"sectors", []string{"write -P 1 0 64k", "write -P 2 512 512", "write -P 3 1536 5120", "write -P 4 65024 1024", "write -P 5 8191k 512"},
			[]string{"read -P 1 0 512", "read -P 2 512 512", "read -P 1 1k 512", "read -P 3 1536 5120", "read -P 1 6656 58368", "read -P 4 65024 1024",
				"read -P 0 66048 512", "read -P 5 8191k 512"}},
		{"bytes", []string{"write -P 6 1M 8k", "write -P 7 1048579 4099"},
			[]string{"read -P 6 1M 3", "read -P 7 1048579 4099", "read -P 6 1052678 4090"}},
		{"write FUA", []string{"write -f -P 0x22 2M 64k", "write -f -P 0x23 2098k 512"}, []string{"read -P 0x22 2M 50k", "read -P 0x23 2098k 512"}},
		{"zeroes", []string{"write -P 9 0 40M", "write -z 4M 1M", "write -z -f 6M 1000k", "write -z 16M 16M", "write -z 513k 512"},
			[]string{"read -P 9 0 513k", "read -P 0 513k 512", "read -P 9 514k 1k", "read -P 0 4M 1M", "read -P 9 5M 1M", "read -P 0 6M 1000k", "read -P 9 7144k 24k",
				"read -P 0 16M 16M", "read -P 9 32M 8M"}},
		{"zeroes unmap", []string{"write -P 9 0 40M", "write -z -u 5M 1M", "write -z -u 16M 16M", "write -z -u -n 1M 4k"},
			[]string{"read -P 0 1M 4k", "read -P 9 2M 3M", "read -P 0 5M 1M", "read -P 9 6M 10M", "read -P 0 16M 16M", "read -P 9 32M 8M"}},
		{"discard", []string{"write -P 8 0 40M", "discard 8M 4M", "discard 16M 16M", "discard 1M 4k"},
			[]string{"read -P 8 0 1M", "read -P 0 1M 4k", "read -P 0 8M 4M", "read -P 8 12M 4M", "read -P 0 16M 16M", "read -P 8 32M 8M"}},
		{"aio", []string{"aio_write -P 0x31 0 8M", "aio_write -P 0x32 8M 8M", "aio_write -z 20M 2M", "aio_write -P 0x33 16M 64k", "aio_read 0 4k", "aio_flush",
			"aio_write -P 0x34 1M 512", "aio_write -P 0x35 1049088 512", "aio_write -P 0x36 1049600 512", "aio_write -f -P 0x37 1050112 512", "aio_flush", "flush"},
			[]string{"read -P 0x31 0 1M", "read -P 0x34 1M 512", "read -P 0x35 1049088 512", "read -P 0x36 1049600 512", "read -P 0x37 1050112 512",
				"read -P 0x32 8M 8M", "read -P 0x33 16M 64k", "read -P 0 20M 2M"}},
		{"vectors", []string{"writev -P 0x41 512 1024 4096 8192 65536"}, []string{"readv -P 0x41 512 1024 4096 8192 65536"}},
	} {
		t.Run(script.name, func(t *testing.T) {
			d := startDaemon(t)
			uri := d.disk("disk", "40MiB")
			qemuIO(t, uri, append(append(script.write, "flush"), script.check...)...)
			d.settle()
			qemuIO(t, uri, script.check...)
			d.kill()
			d.start()
			qemuIO(t, uri, script.check...)
		})
	}
}
