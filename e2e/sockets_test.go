package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSocketPerVolume gives a volume a socket for another user, who can open this volume through it, and nothing else by any way.
func TestSocketPerVolume(t *testing.T) {
	needs(t, "nbdinfo", "setpriv", "qemu-io")
	needsRoot(t, "give a socket to another user")
	sockets := shortDir(t)
	if err := os.Chmod(sockets, 0o755); err != nil {
		t.Fatal(err)
	}
	d := startDaemon(t, "--nbd-volume-socket-dir", filepath.Join(sockets, "nbd"))
	d.disk("private", "1MiB")
	d.run("volume", "create", "theirs", "--size", "1MiB")
	d.run("volume", "create", "other", "--size", "1MiB")
	var theirs, other struct{ URI, Socket string }
	d.json(&theirs, "volume", "attach", "theirs", "--socket-per-volume", "--owner", "nobody", "--mode", "0600")
	d.json(&other, "volume", "attach", "other", "--socket-per-volume")
	asNobody := func(name string, args ...string) result {
		return tryTool(t, "setpriv", append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", "--", name}, args...)...)
	}
	open := func(when string) {
		t.Helper()
		if got := asNobody("qemu-io", "-f", "raw", "-c", "write -P 7 0 64k", "-c", "read -P 7 0 64k", theirs.URI); got.code != 0 {
			t.Errorf("%s: nobody cannot use a socket of its own: %+v", when, got)
		}
		if got := asNobody("nbdinfo", "--list", "nbd+unix://?socket="+theirs.Socket); got.code != 0 || strings.Count(got.stdout, "export=") != 1 || !strings.Contains(got.stdout, `export="theirs"`) {
			t.Errorf("%s: that socket lists %+v", when, got)
		}
		for _, uri := range []string{
			"nbd+unix:///other?socket=" + theirs.Socket, "nbd+unix:///private?socket=" + theirs.Socket, // exports that this socket does not have
			other.URI, "nbd+unix:///other?socket=" + other.Socket, d.uri("private"), d.uri("theirs"), // sockets of others
		} {
			if got := asNobody("nbdinfo", uri); got.code == 0 {
				t.Errorf("%s: nobody opened %s", when, uri)
			}
		}
		if got := asNobody(fabricPath, "--endpoint", "unix:"+d.dir+"/hvd.sock", "volume", "list"); got.code != 4 || got.stdout != "" {
			t.Errorf("%s: nobody used the control socket: %+v", when, got)
		}
	}
	open("after attach")
	d.kill()
	d.start()
	open("after a kill")
	info, err := os.Stat(theirs.Socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info, err)
	}
	d.run("volume", "detach", "theirs", "--force")
	if _, err := os.Stat(theirs.Socket); err == nil {
		t.Error("the socket is still there after the detach")
	}
}
