package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/api/client"
)

// asDaemon makes this test binary behave as hvd.
const asDaemon = "HVD_TEST_AS_DAEMON"

func TestMain(m *testing.M) {
	if os.Getenv(asDaemon) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// hvd is the daemon as a process.
func hvd(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), self, args...)
	c.Env = append(os.Environ(), asDaemon+"=1", "HV_CONFIG="+os.DevNull, "HV_LISTEN=off", "HV_MEMORY=256MiB", "HV_STORE_LOG_CAP=256MiB", "HV_LOG_FORMAT=text")
	return c
}

// shortDir is a directory whose name is short enough for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// ready starts hvd and returns when it says that it is ready, as a service manager would hear it.
func ready(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	path := filepath.Join(t.TempDir(), "n")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	c := hvd(t, "--data-dir", dir)
	c.Env = append(c.Env, "NOTIFY_SOCKET="+path)
	stderr, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	logged := make(chan struct{})
	go func() { // its log belongs to the test's
		defer close(logged)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			t.Log(lines.Text())
		}
	}()
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait(); <-logged })
	if err := manager.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	message := make([]byte, 64)
	n, err := manager.Read(message)
	if err != nil || string(message[:n]) != "READY=1" {
		t.Fatalf("from hvd: %q, %v", message[:n], err)
	}
	return c
}

func exitCode(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if exit == nil {
		return 0
	}
	return exit.ExitCode()
}

func TestLifeOfADaemon(t *testing.T) {
	dir := shortDir(t)
	first := ready(t, dir)
	api, err := client.New("unix:"+filepath.Join(dir, "hvd.sock"), "")
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	if _, err := client.CreateVolume(ctx, api, client.CreateVolumeInput{Name: "v", SizeBytes: 1 << 20, Chunking: "cdc", Mode: client.WriteModeWriteback}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.AttachVolume(ctx, api, client.AttachVolumeInput{Name: "v"}); err != nil {
		t.Fatal(err)
	}

	text, err := hvd(t, "--data-dir", dir).CombinedOutput()
	if code := exitCode(t, err); code != exitRefused || !strings.Contains(string(text), "another hvd") || bytes.Count(text, []byte("\n")) != 1 {
		t.Errorf("a second daemon: exit code %d: %s", code, text)
	}

	if err := first.Process.Kill(); err != nil { // SIGKILL: the sockets stay
		t.Fatal(err)
	}
	_ = first.Wait()
	second := ready(t, dir)
	status, err := client.GetStatus(ctx, api)
	if err != nil || status.Status.Volumes != 1 || status.Status.Attached != 1 || len(status.Status.Problems) != 0 {
		t.Errorf("after SIGKILL: %+v, %v", status, err)
	}

	if err := second.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := exitCode(t, second.Wait()); code != 0 {
		t.Errorf("SIGTERM: exit code %d", code)
	}
	for _, socket := range []string{"hvd.sock", "nbd.sock"} {
		if _, err := os.Stat(filepath.Join(dir, socket)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", socket, err)
		}
	}
}

func TestStartsThatCannotBe(t *testing.T) {
	dir := shortDir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	typo := filepath.Join(dir, "typo.yaml")
	if err := os.WriteFile(typo, []byte("log:\n  levle: info\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	keys := filepath.Join(dir, "keys.psk")
	if err := os.WriteFile(keys, []byte("node1:00112233445566778899aabbccddeeff\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(keys, 0o644); err != nil { // whatever the umask
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"--data-dir " + filepath.Join(dir, strings.Repeat("d", 110)), exitUsage, "107"},
		{"--data-dir " + file, exitFailed, "file"},
		{"--data-dir " + dir + " --config " + typo, exitUsage, "log.levle"},
		{"--data-dir " + dir + " --config /no/such.yaml", exitFailed, "/no/such.yaml"},
		{"--data-dir " + dir + " --listen 0.0.0.0:80", exitUsage, "loopback"},
		{"--data-dir " + dir + " --memory 1", exitUsage, "memory"},
		{"--nonsense", exitUsage, "nonsense"},
		{"nonsense", exitUsage, "nonsense"},
		{"config nonsense", exitUsage, "nonsense"},
		{"config check --data-dir " + dir + " --nbd-listen 127.0.0.1:0 --nbd-tls-psk-file " + keys, exitUsage, "chmod 600"},
		{"config check --data-dir " + dir + " --nbd-listen 127.0.0.1:0 --nbd-tls-psk-file /no/such.psk", exitFailed, "/no/such.psk"},
		{"config check --config " + typo, exitUsage, "log.levle"},
	} {
		text, err := hvd(t, strings.Fields(c.args)...).CombinedOutput()
		if code := exitCode(t, err); code != c.code || !strings.Contains(string(text), c.says) || bytes.Count(text, []byte("\n")) != 1 {
			t.Errorf("%s: exit code %d, want %d, one line that says %q: %s", c.args, code, c.code, c.says, text)
		}
	}
}
