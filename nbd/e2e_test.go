package nbd

import (
	"bytes"
	"context"
	"encoding/json"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// packages of Debian that bring the programs.
var packages = map[string]string{
	"nbdinfo": "libnbd-bin", "nbdcopy": "libnbd-bin", "qemu-img": "qemu-utils", "qemu-io": "qemu-utils", "fio": "fio", "nbdkit": "nbdkit",
}

// needs ends a test that cannot run without a program and returns its path. On a developer's machine it is skipped; where everything can be
// installed (CI, or HV_REQUIRE_TOOLS set) it fails, so that no client goes untested unseen.
func needs(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
		return path
	case os.Getenv("CI") != "" || os.Getenv("HV_REQUIRE_TOOLS") != "":
		t.Fatalf("%s is not installed (Debian: apt install %s)", name, packages[name])
	}
	t.Skipf("%s is not installed (Debian: apt install %s)", name, packages[name])
	return ""
}

// tool runs a real program and returns its output. A program that fails, fails the test.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := tryTool(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func tryTool(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	path := needs(t, name)
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s *served) uri() string { return "nbd+unix:///disk?socket=" + s.addr }

// image fills dev with runs of data and of nothing, and returns the path of a file of the same content.
func image(t *testing.T, dev *memDevice) string {
	t.Helper()
	rng := rand.New(rand.NewPCG(7, 0))
	dev.mu.Lock()
	defer dev.mu.Unlock()
	for at := 0; at < len(dev.data); at += (1 + rng.IntN(20)) * 64 << 10 {
		for i := range dev.data[at:min(at+128<<10, len(dev.data))] {
			dev.data[at+i] = byte(rng.Uint32())
		}
	}
	file := filepath.Join(t.TempDir(), "image.raw")
	if err := os.WriteFile(file, dev.data, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// eachDevice runs a test with a device that answers at once and with one that never does.
func eachDevice(t *testing.T, size int, test func(t *testing.T, dev *memDevice, s *served)) {
	for _, slow := range []bool{false, true} {
		name := map[bool]string{false: "inline", true: "worker"}[slow]
		t.Run(name, func(t *testing.T) {
			dev := newMemDevice(size)
			dev.holes = true
			dev.slow.Store(slow)
			test(t, dev, serveDevice(t, dev, Options{}))
		})
	}
}

func TestNBDInfo(t *testing.T) {
	s := serveDevice(t, newMemDevice(1<<20+512), Options{})
	var got struct {
		Protocol   string
		Structured bool
		Exports    []map[string]any
	}
	if err := json.Unmarshal([]byte(tool(t, "nbdinfo", "--json", s.uri())), &got); err != nil {
		t.Fatal(err)
	}
	if got.Protocol != "newstyle-fixed" || !got.Structured || len(got.Exports) != 1 {
		t.Fatalf("%+v", got)
	}
	for key, want := range map[string]any{
		"export-name": "disk", "description": "a test disk", "export-size": 1049088.0, "is_read_only": false, "can_cache": true, "can_df": true,
		"can_fast_zero": true, "can_flush": true, "can_fua": true, "can_multi_conn": true, "can_trim": true, "can_zero": true,
		"block_size_minimum": 1.0, "block_size_preferred": 4096.0, "block_size_maximum": 33554432.0,
	} {
		if got.Exports[0][key] != want {
			t.Errorf("%s is %v, want %v", key, got.Exports[0][key], want)
		}
	}
	if out := tool(t, "nbdinfo", "--list", "nbd+unix://?socket="+s.addr); !strings.Contains(out, `export="disk"`) {
		t.Errorf("list: %s", out)
	}
	if out, err := tryTool(t, "nbdinfo", "nbd+unix:///nosuch?socket="+s.addr); err == nil || !strings.Contains(out, "No such file") {
		t.Errorf("unknown export: %v, %s", err, out)
	}
}

func TestNBDCopyBothWays(t *testing.T) {
	eachDevice(t, 24<<20+512, func(t *testing.T, dev *memDevice, s *served) {
		file := image(t, dev)
		dev.fill(func(int) byte { return 0 })
		tool(t, "nbdcopy", "--connections=4", "--flush", file, s.uri())
		out := filepath.Join(t.TempDir(), "out.raw")
		tool(t, "nbdcopy", "--connections=4", s.uri(), out)
		mustEqualFiles(t, file, out)
		tool(t, "nbdcopy", "--request-size=33554432", s.uri(), out) // answered in pieces
		mustEqualFiles(t, file, out)
	})
}

func mustEqualFiles(t *testing.T, a, b string) {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		t.Fatalf("%s and %s differ", a, b)
	}
}

func TestQemuImg(t *testing.T) {
	eachDevice(t, 24<<20, func(t *testing.T, dev *memDevice, s *served) {
		file := image(t, dev)
		tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", file, s.uri())
		qcow := filepath.Join(t.TempDir(), "out.qcow2")
		tool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", s.uri(), qcow)
		dev.fill(func(int) byte { return 0xff })
		tool(t, "qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", qcow, s.uri())
		tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", file, s.uri())
		if dev.zeroes.Load() == 0 {
			t.Error("qemu-img convert wrote a sparse image without WRITE_ZEROES")
		}
		var extents []map[string]any
		if err := json.Unmarshal([]byte(tool(t, "qemu-img", "map", "--output=json", "-f", "raw", s.uri())), &extents); err != nil || len(extents) == 0 {
			t.Errorf("qemu-img map: %v, %v", extents, err)
		}
	})
}

// TestQemuIO issues each command and flag that qemu-io has.
func TestQemuIO(t *testing.T) {
	eachDevice(t, 64<<20, func(t *testing.T, dev *memDevice, s *served) {
		out := tool(t, "qemu-io", "-f", "raw", "-d", "unmap",
			"-c", "write -P 0x5a 0 1M", "-c", "read -P 0x5a 0 1M",
			"-c", "write -P 0x11 513 1025", "-c", "read -P 0x11 513 1025", "-c", "read -P 0x5a 1538 510",
			"-c", "write -f -P 0x22 2M 64k", "-c", "read -P 0x22 2M 64k",
			"-c", "aio_write -P 0x33 4M 32M", "-c", "aio_flush", "-c", "read -P 0x33 4M 32M",
			"-c", "write -z 4M 1M", "-c", "read -P 0 4M 1M",
			"-c", "write -z -u 5M 1M", "-c", "read -P 0 5M 1M",
			"-c", "write -z -f 6M 1M", "-c", "write -z -n 7M 1M", "-c", "read -P 0 6M 2M",
			"-c", "discard 8M 4M", "-c", "read -P 0 8M 4M", "-c", "flush",
			s.uri())
		if strings.Contains(out, "failed") || strings.Contains(out, "rror") {
			t.Errorf("qemu-io: %s", out)
		}
		if dev.noHoles.Load() == 0 || dev.fuaWrites.Load() == 0 || dev.trims.Load() == 0 || dev.flushes.Load() == 0 {
			t.Errorf("NO_HOLE %d, FUA writes %d, trims %d, flushes %d", dev.noHoles.Load(), dev.fuaWrites.Load(), dev.trims.Load(), dev.flushes.Load())
		}
	})
}

func TestQemuIOReadOnly(t *testing.T) {
	dev := newMemDevice(1 << 20)
	dev.readOnly = true
	s := serveDevice(t, dev, Options{})
	tool(t, "qemu-io", "-r", "-f", "raw", "-c", "read -P 0 0 1M", s.uri())
	if out, err := tryTool(t, "qemu-io", "-f", "raw", "-c", "write 0 512", s.uri()); err == nil {
		t.Errorf("writing to a read-only export: %s", out)
	}
}

// fioJobs write and verify what they wrote.
var fioJobs = []string{"--bs=4k --iodepth=32 --rw=randwrite", "--bsrange=512-256k --bs_unaligned --iodepth=16 --rw=randwrite", "--bs=1M --iodepth=8 --rw=write"}

func (s *served) fio(t *testing.T, job string) {
	t.Helper()
	tool(t, "fio", append(strings.Fields(job), "--name=verify", "--ioengine=nbd", "--uri="+s.uri(), "--size=32M", "--verify=crc32c",
		"--verify_fatal=1", "--do_verify=1", "--fsync=8", "--randseed=1")...)
}

func TestFioVerifies(t *testing.T) {
	for _, job := range fioJobs {
		eachDevice(t, 32<<20, func(t *testing.T, dev *memDevice, s *served) {
			s.fio(t, job)
			if dev.flushes.Load() == 0 {
				t.Error("fio sent no flush")
			}
		})
	}
}

// TestFioThroughSmallLeases is what clients have whose server has lent all that it has.
func TestFioThroughSmallLeases(t *testing.T) {
	for i, job := range fioJobs[:2] {
		dev := newMemDevice(32 << 20)
		dev.slow.Store(i == 0)
		s := serveDevice(t, dev, Options{})
		s.memory.onlySmall.Store(true)
		s.fio(t, job)
	}
}

// TestTCP runs a client over TCP, four connections at once.
func TestTCP(t *testing.T) {
	dev := newMemDevice(16 << 20)
	s := serveDevice(t, dev, Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	file := image(t, dev)
	out := filepath.Join(t.TempDir(), "out.raw")
	tool(t, "nbdcopy", "--connections=4", "nbd://"+l.Addr().String()+"/disk", out)
	mustEqualFiles(t, file, out)
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Serve: %v", err)
	}
}
