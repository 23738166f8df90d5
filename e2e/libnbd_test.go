package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// pythonWithLibnbd returns a python that has the module nbd: Debian's package installs it for Debian's python, which need not be the first in PATH.
func pythonWithLibnbd(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"python3", "/usr/bin/python3"} {
		if exec.Command(name, "-c", "import nbd").Run() == nil {
			return name
		}
	}
	absent(t, "no python3 has the module nbd (Debian: apt install python3-libnbd)")
	return ""
}

// libnbd runs one of the scripts in the folder libnbd, which take their parameters from the environment, and returns what it prints.
func libnbd(t *testing.T, script string, parameters ...string) string {
	t.Helper()
	got := execute(t, nil, "env", append(parameters, pythonWithLibnbd(t), filepath.Join("libnbd", script))...)
	if got.code != 0 {
		t.Fatalf("%s with %q ended with %d\n%s%s", script, parameters, got.code, got.stdout, got.stderr)
	}
	return strings.TrimSpace(got.stdout)
}

// version returns the first two numbers of a program's version, as it prints it on its first line.
func version(t *testing.T, program string) (major, minor int) {
	t.Helper()
	for _, word := range strings.Fields(tool(t, program, "--version")) {
		if n, _ := fmt.Sscanf(word, "%d.%d", &major, &minor); n == 2 {
			return major, minor
		}
	}
	t.Fatalf("%s tells no version", program)
	return 0, 0
}

// contentSum is the SHA-256 of a whole export, read by the tests' own client.
func contentSum(t *testing.T, d *daemon, export string, size int) string {
	t.Helper()
	c := openNBD(t, d.nbdSocket(), export)
	all := make([]byte, size)
	for off := 0; off < size; off += 8 << 20 {
		if err := c.read(all[off:min(off+8<<20, size)], uint64(off)); err != nil {
			t.Fatal(err)
		}
	}
	sum := sha256.Sum256(all)
	return hex.EncodeToString(sum[:])
}

// TestLibnbdCommands sends every command with every flag, with structured and with simple replies. What is left is the same in segments, and after a kill.
func TestLibnbdCommands(t *testing.T) {
	const size = 33<<20 + 512
	count := 300
	if testing.Short() {
		count = 60
	}
	d := startDaemon(t)
	uri := d.disk("disk", bytesText(size))
	for i, structured := range []string{"1", "0"} {
		sum := libnbd(t, "commands.py", "URI="+uri, "SIZE="+bytesText(size), "SEED="+strconv.Itoa(i+1), "COUNT="+strconv.Itoa(count), "STRUCTURED="+structured)
		d.settle()
		if got := contentSum(t, d, "disk", size); got != sum {
			t.Errorf("structured replies %s: in segments the content is another", structured)
		}
		d.kill()
		d.start()
		if got := contentSum(t, d, "disk", size); got != sum {
			t.Errorf("structured replies %s: after a kill the content is another", structured)
		}
	}
}

// TestLibnbdInFlight: many requests on many connections, and nothing is lost when hvd is killed afterwards.
func TestLibnbdInFlight(t *testing.T) {
	const size = 64 << 20
	d := startDaemon(t)
	sum := libnbd(t, "flight.py", "URI="+d.disk("disk", bytesText(size)), "SIZE="+bytesText(size), "SEED=5", "CONNECTIONS=4", "REQUESTS=32", "COUNT=500")
	d.kill()
	d.start()
	if got := contentSum(t, d, "disk", size); got != sum {
		t.Error("after a kill the content is another")
	}
}

// TestLibnbdRefusals asks for what is out of range, unknown or forbidden.
func TestLibnbdRefusals(t *testing.T) {
	const size = 40<<20 + 512
	d := startDaemon(t)
	uri := d.disk("disk", bytesText(size))
	d.run("volume", "create", "fixed", "--size", bytesText(size))
	w := d.watch()
	libnbd(t, "errors.py", "URI="+uri, "READ_ONLY="+d.attach("fixed", "--read-only"), "SIZE="+bytesText(size), "SOCKET="+d.nbdSocket())
	w.testify()
}

// TestLibnbdContexts: several contexts at once, REQ_ONE, lists of contexts; of a volume and of its snapshot, in the log and in segments.
func TestLibnbdContexts(t *testing.T) {
	const mib = 1 << 20
	d := newDaemon(t, "--store-destage-after", "1h")
	d.start()
	d.disk("v", "32MiB", "--chunking", "fixed:4KiB") // so that what is told of segments is known to the block
	c := openNBD(t, d.nbdSocket(), "v")
	write := func(from, to int) {
		t.Helper()
		if err := c.write(randomBytes(from, (to-from)*mib), uint64(from)*mib); err != nil {
			t.Fatal(err)
		}
	}
	write(1, 3)
	write(20, 21)
	d.run("snapshot", "create", "v@old")
	write(2, 4)
	if err := c.trim(20*mib, mib); err != nil {
		t.Fatal(err)
	}
	d.run("snapshot", "create", "v@new")
	write(30, 32)
	ask := func(export string, want map[string][][2]uint64) {
		t.Helper()
		text, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		libnbd(t, "contexts.py", "SOCKET="+d.nbdSocket(), "EXPORT="+export, "SIZE="+bytesText(32*mib), "WANT="+string(text))
	}
	for _, where := range []string{"in the log", "in segments"} {
		t.Log(where)
		ask("v", map[string][][2]uint64{
			"base:allocation":       {{mib, 3}, {3 * mib, 0}, {26 * mib, 3}, {2 * mib, 0}},
			"qemu:allocation-depth": {{mib, 0}, {mib, 3}, {2 * mib, 2}, {26 * mib, 0}, {2 * mib, 1}},
			"qemu:dirty-bitmap:old": {{2 * mib, 0}, {2 * mib, 1}, {16 * mib, 0}, {mib, 1}, {9 * mib, 0}, {2 * mib, 1}},
			"qemu:dirty-bitmap:new": {{30 * mib, 0}, {2 * mib, 1}},
		})
		ask("v@new", map[string][][2]uint64{
			"base:allocation":       {{mib, 3}, {3 * mib, 0}, {28 * mib, 3}},
			"qemu:allocation-depth": {{mib, 0}, {mib, 2}, {2 * mib, 1}, {28 * mib, 0}},
			"qemu:dirty-bitmap:old": {{2 * mib, 0}, {2 * mib, 1}, {16 * mib, 0}, {mib, 1}, {11 * mib, 0}},
		})
		d.settle()
	}
}

// TestExtendedHeaders: clients that speak extended headers get them. Older ones have tests in package nbd, with a client of our own.
func TestExtendedHeaders(t *testing.T) {
	needs(t, "nbdinfo", "qemu-img")
	d := startDaemon(t)
	uri := d.disk("disk", "16GiB")
	if major, minor := version(t, "nbdinfo"); major > 1 || minor >= 18 {
		libnbd(t, "extended.py", "URI="+uri, "SIZE="+bytesText(16<<30))
	} else {
		t.Logf("libnbd %d.%d does not speak extended headers", major, minor)
	}
	for _, client := range []struct {
		program      string
		major, minor int // since when it has them
		args         []string
	}{
		{"nbdinfo", 1, 18, nil},
		{"nbdcopy", 1, 18, nil},
		{"qemu-img", 8, 2, []string{"map", "-f", "raw"}},
	} {
		major, minor := version(t, client.program)
		newer := major > client.major || major == client.major && minor >= client.minor
		m := d.middleman("disk", nil)
		args := append(client.args, m.uri)
		if client.program == "nbdcopy" {
			args = append(args, "null:")
		}
		tool(t, client.program, args...)
		m.close()
		if got := m.agreed(optExtendedHeaders); got != newer {
			t.Errorf("%s %d.%d: extended headers %v, want %v", client.program, major, minor, got, newer)
		}
		if got := m.agreed(optStructuredReply); got == newer {
			t.Errorf("%s %d.%d: structured replies %v, want %v", client.program, major, minor, got, !newer)
		}
	}
}
