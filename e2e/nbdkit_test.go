package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// nbdkit is one between clients and hvd: its plugin nbd is a client of hvd, its filters make it a faulty middleman, and it is a server to others.
type nbdkit struct {
	socket string
	uri    string
	cmd    *exec.Cmd
	exited chan struct{}
	said   *transcript
}

// nbdkit starts one in front of an export on hvd's unix socket.
func (d *daemon) nbdkit(export string, parameters ...string) *nbdkit {
	d.t.Helper()
	return startNbdkit(d.t, d.behind(export, parameters...)...)
}

// behind are the parameters of an nbdkit in front of an export.
func (d *daemon) behind(export string, parameters ...string) []string {
	return append([]string{"nbd", "socket=" + d.nbdSocket(), "export=" + export}, parameters...)
}

// startNbdkit starts one with a plugin and its settings, and with filters, which begin with dashes; it ends with the test.
func startNbdkit(t *testing.T, parameters ...string) *nbdkit {
	t.Helper()
	needs(t, "nbdkit")
	dir := shortDir(t)
	k := &nbdkit{socket: filepath.Join(dir, "nbdkit.sock"), exited: make(chan struct{}), said: &transcript{}}
	k.uri = "nbd+unix://?socket=" + k.socket
	ready := filepath.Join(dir, "pid") // written when it serves
	args := []string{"--foreground", "--exit-with-parent", "--unix", k.socket, "--pidfile", ready}
	var settings []string
	for _, p := range parameters {
		if strings.HasPrefix(p, "--") {
			args = append(args, p) // filters go before the plugin
		} else {
			settings = append(settings, p)
		}
	}
	k.cmd = exec.Command("nbdkit", append(args, settings...)...)
	k.cmd.Stderr = k.said
	if err := k.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = k.cmd.Wait() // the state is read from cmd
		close(k.exited)
	}()
	t.Cleanup(k.kill)
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		if text, err := os.ReadFile(ready); err == nil && len(text) > 0 {
			return k
		}
		select {
		case <-k.exited:
			t.Fatalf("nbdkit %q ended\n%s", parameters, k.said)
		default:
		}
		if time.Since(began) > patience {
			t.Fatalf("nbdkit %q does not serve\n%s", parameters, k.said)
		}
	}
}

// kill ends nbdkit with SIGKILL, if it runs.
func (k *nbdkit) kill() {
	_ = k.cmd.Process.Kill()
	<-k.exited
}

// needsFilter skips where this nbdkit is too old for a filter, which no package of the distribution brings.
func needsFilter(t *testing.T, filter string) {
	t.Helper()
	needs(t, "nbdkit")
	if got := execute(t, nil, "nbdkit", "--filter="+filter, "null", "--dump-plugin"); got.code != 0 {
		t.Skipf("this nbdkit has no filter %q", filter)
	}
}

// TestNbdkitFilters copies an image in and out through nbdkit and its filters, which change what reaches hvd and when. What hvd holds is the image each time.
func TestNbdkitFilters(t *testing.T) {
	needs(t, "nbdcopy", "nbdinfo")
	const size = 8 << 20
	image := sparseImage(t, 5, size)
	listen := freePort(t, "127.0.0.1")
	_, port, _ := strings.Cut(listen, ":")
	d := startDaemon(t, "--nbd-listen", listen)
	w := d.watch()
	for name, parameters := range map[string][]string{
		"alone":       nil,
		"shared":      {"shared=true"},
		"delay":       {"--filter=delay", "rdelay=2ms", "wdelay=2ms", "delay-zero=2ms", "delay-extents=2ms"},
		"blocksize":   {"--filter=blocksize", "minblock=4k", "maxdata=64k", "maxlen=256k"},
		"rate":        {"--filter=rate", "rate=200M", "burstiness=1"},
		"fua":         {"--filter=fua", "fuamode=emulate"},
		"fua always":  {"--filter=fua", "fuamode=force"},
		"no zeroes":   {"--filter=nozero", "zeromode=emulate"},
		"one at once": {"--filter=noparallel", "serialize=all-requests"},
		"retried":     {"--filter=retry-request", "--filter=error", "retry-request-retries=40", "retry-request-delay=1", "error-pwrite-rate=2%", "error-pread-rate=2%"},
		"tcp":         nil,
	} {
		t.Run(name, func(t *testing.T) {
			export := strings.ReplaceAll(name, " ", "-")
			d.run("volume", "create", export, "--size", bytesText(size))
			var k *nbdkit
			if name == "tcp" {
				d.attach(export, "--tcp")
				k = startNbdkit(t, "nbd", "hostname=127.0.0.1", "port="+port, "export="+export, "tls=off")
			} else {
				d.attach(export)
				k = startNbdkit(t, d.behind(export, parameters...)...)
			}
			if got := tryTool(t, "nbdinfo", "--can", "multi-conn", k.uri); got.code != 0 {
				t.Errorf("several connections to nbdkit are not safe: %+v", got)
			}
			tool(t, "nbdcopy", "--connections=4", "--requests=32", "--request-size=131072", "--flush", image, k.uri)
			tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", image, d.uri(export))
			out := filepath.Join(t.TempDir(), "out.raw")
			tool(t, "nbdcopy", "--connections=8", "--requests=16", k.uri, out)
			equalFiles(t, image, out)
		})
	}
	w.testify()
}

// TestNbdkitErrors: a fifth of all writes fails on the way. What was replied to is there, what was refused is there as a whole or not at all, also after a kill of hvd.
func TestNbdkitErrors(t *testing.T) {
	d := startDaemon(t)
	d.disk("disk", bytesText(ledgerSlots*ledgerSlot))
	w := d.watch()
	k := d.nbdkit("disk", "--filter=error", "error=ENOSPC", "error-pwrite-rate=20%", "error-pread-rate=20%")
	l := newLedger(1)
	for l.refusals < 20 || l.done < 100 {
		bursts := 0
		if err := l.until(k.socket, "", func() bool { bursts++; return bursts > 10 }); err != nil {
			t.Fatalf("an error of a request broke the connection: %v", err)
		}
		if err := l.audit(d.nbdSocket(), "disk"); err != nil {
			t.Fatal(err)
		}
	}
	w.testify()
	d.kill()
	d.start()
	if err := l.audit(d.nbdSocket(), "disk"); err != nil {
		t.Error(err)
	}
}

// TestNbdkitDies: the middleman is killed while it holds requests back. hvd drops its connections and has each of their writes as a whole or not at all.
func TestNbdkitDies(t *testing.T) {
	d := startDaemon(t)
	d.disk("disk", bytesText(ledgerSlots*ledgerSlot))
	w := d.watch()
	l := newLedger(2)
	for range 3 {
		k := d.nbdkit("disk", "--filter=delay", "delay-write=1ms")
		enough := l.done + 64
		ended := make(chan error, 1)
		reached := make(chan struct{})
		go func() {
			said := false
			ended <- l.until(k.socket, "", func() bool {
				if l.done >= enough && !said {
					close(reached)
					said = true
				}
				return false
			})
		}()
		select {
		case <-reached:
		case err := <-ended:
			t.Fatalf("the connection broke before anything was killed: %v", err)
		}
		k.kill()
		if err := <-ended; err == nil {
			t.Fatal("writes through a dead nbdkit go on")
		}
		d.letGo(1) // the witness
		if err := l.audit(d.nbdSocket(), "disk"); err != nil {
			t.Fatal(err)
		}
	}
	w.testify()
	d.mustDetach("disk")
}

// TestNbdkitRetries: hvd is killed under nbdkit, whose filter connects anew and repeats. Its client sees no error, and what was replied to before a kill is there after it.
func TestNbdkitRetries(t *testing.T) {
	d := startDaemon(t)
	d.disk("disk", bytesText(ledgerSlots*ledgerSlot))
	k := d.nbdkit("disk", "--filter=retry", "retries=60", "retry-delay=1", "retry-exponential=no")
	l := newLedger(3)
	ended, burst := make(chan error, 1), make(chan bool)
	go func() {
		ended <- l.until(k.socket, "", func() bool { return !<-burst })
	}()
	// A burst is under way when hvd dies: the one that follows the last of these begins at once.
	more := func(n int) {
		for range n {
			select {
			case burst <- true:
			case err := <-ended:
				t.Fatalf("the client behind the filter saw %v", err)
			case <-time.After(patience):
				t.Fatalf("the filter does not come through\n%s", k.said)
			}
		}
	}
	for range 2 {
		more(10)
		d.kill()
		d.start()
	}
	more(10)
	close(burst)
	if err := <-ended; err != nil {
		t.Errorf("the client behind the filter saw %v", err)
	}
	if l.refusals > 0 || l.done == 0 {
		t.Errorf("of the client's writes %d were done and %d refused", l.done, l.refusals)
	}
	if err := l.audit(d.nbdSocket(), "disk"); err != nil {
		t.Error(err)
	}
}

// TestNbdkitLeaves: nbdkit with the filter exitlast says goodbye when its last client has gone, and hvd lets the volume go without force.
func TestNbdkitLeaves(t *testing.T) {
	needs(t, "nbdcopy")
	d := startDaemon(t)
	d.disk("disk", "8MiB")
	k := d.nbdkit("disk", "--filter=exitlast")
	image := sparseImage(t, 6, 8<<20)
	tool(t, "nbdcopy", "--connections=4", image, k.uri)
	select {
	case <-k.exited:
	case <-time.After(patience):
		t.Fatal("nbdkit stays after its last client")
	}
	d.mustDetach("disk")
	out := filepath.Join(t.TempDir(), "out.raw")
	d.run("volume", "export", "disk", out)
	equalFiles(t, image, out)
}

// TestNbdkitEvil: the middleman falsifies what it passes on to its own clients. hvd and those who ask it directly are not touched.
func TestNbdkitEvil(t *testing.T) {
	needsFilter(t, "evil")
	const size = 8 << 20
	d := startDaemon(t)
	d.disk("disk", bytesText(size))
	fillDisk(t, d, "disk", size)
	sum := contentSum(t, d, "disk", size)
	k := d.nbdkit("disk", "--filter=evil", "evil-probability=1e-6")
	out := filepath.Join(t.TempDir(), "out.raw")
	tool(t, "nbdcopy", k.uri, out)
	if got := tryTool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", out, d.uri("disk")); got.code != 1 {
		t.Errorf("the filter falsified nothing: %+v", got)
	}
	if contentSum(t, d, "disk", size) != sum {
		t.Error("what hvd holds has changed")
	}
}
