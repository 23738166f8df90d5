package libvirttest

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const patience = 60 * time.Second

// nobody is the user of a libvirtd whose test is root.
const nobody = 65534

// Daemon is a libvirtd.
type Daemon struct {
	Dir    string // 0700, of the user that guests run as
	URI    string // for hv-backup and virsh
	Env    []string
	UID    int // of guests
	t      *testing.T
	socket string

	mu  sync.Mutex
	log bytes.Buffer
	cmd *exec.Cmd
}

// Find returns where a program is, "" if it is not installed: some are in folders that a user's PATH lacks on Debian.
func Find(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	path := filepath.Join("/usr/sbin", name)
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// Start starts a libvirtd, which ends with the test, and so do its guests. It must be installed.
func Start(t *testing.T) *Daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "hvlv") // short, because a unix socket's path has room for 107 bytes only
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{Dir: dir, t: t, UID: os.Getuid(), socket: filepath.Join(dir, "r/libvirt/libvirt-sock")}
	d.URI = "qemu:///session?socket=" + d.socket
	if d.UID == 0 {
		d.UID = nobody
	}
	t.Cleanup(func() {
		d.destroyAll()
		d.Stop()
		if t.Failed() {
			t.Logf("libvirtd said:\n%s", d.Log())
		}
		_ = os.RemoveAll(dir)
	})
	d.Env = append(os.Environ(), "HOME="+dir, "LIBVIRT_DEFAULT_URI="+d.URI)
	for name, sub := range map[string]string{"XDG_RUNTIME_DIR": "r", "XDG_CONFIG_HOME": "c", "XDG_CACHE_HOME": "k", "XDG_DATA_HOME": "d"} {
		d.Env = append(d.Env, name+"="+filepath.Join(dir, sub))
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
		d.Own(filepath.Join(dir, sub))
	}
	conf := filepath.Join(dir, "libvirtd.conf")
	if err := os.WriteFile(conf, []byte("log_outputs=\"3:stderr\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	qemu := filepath.Join(dir, "c/libvirt")
	if err := os.MkdirAll(qemu, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(qemu, "qemu.conf"), []byte("stdio_handler = \"file\"\n"), 0o644); err != nil { // or it needs a virtlogd
		t.Fatal(err)
	}
	d.Own(dir)
	d.Own(qemu)
	d.Run()
	return d
}

// Own gives a file to the user that guests run as.
func (d *Daemon) Own(path string) {
	d.t.Helper()
	if os.Getuid() != 0 {
		return
	}
	if err := os.Lchown(path, d.UID, d.UID); err != nil {
		d.t.Fatal(err)
	}
}

// User is what hv-storage-fabric volume attach --owner shall have.
func (d *Daemon) User() string { return strconv.Itoa(d.UID) }

// Run starts libvirtd again and waits until it answers.
func (d *Daemon) Run() {
	d.t.Helper()
	d.cmd = exec.Command(Find("libvirtd"), "-f", filepath.Join(d.Dir, "libvirtd.conf"), "-p", filepath.Join(d.Dir, "r/pid"))
	d.cmd.Env, d.cmd.Stderr = d.Env, (*log)(d)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if os.Getuid() == 0 {
		d.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("unix", d.socket)
		if err == nil {
			_ = c.Close()
			return
		}
		if time.Now().After(end) {
			d.t.Fatalf("libvirtd does not listen: %v\n%s", err, d.Log())
		}
	}
}

// Stop ends libvirtd; guests go on.
func (d *Daemon) Stop() {
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Kill() // it must outlive that
	_ = d.cmd.Wait()
	d.cmd = nil
}

// Log is what libvirtd has said.
func (d *Daemon) Log() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.String()
}

type log Daemon

// Write implements io.Writer.
func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log.Write(p)
}

// Try runs virsh.
func (d *Daemon) Try(args ...string) (string, error) {
	c := exec.Command(Find("virsh"), append([]string{"-q", "-c", d.URI}, args...)...)
	c.Env = d.Env
	out, err := c.CombinedOutput()
	return string(out), err
}

// Virsh is Try for what must be done.
func (d *Daemon) Virsh(args ...string) string {
	d.t.Helper()
	out, err := d.Try(args...)
	if err != nil {
		d.t.Fatalf("virsh %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// Define defines a domain.
func (d *Daemon) Define(xml string) {
	d.t.Helper()
	path := filepath.Join(d.t.TempDir(), "domain.xml")
	if err := os.WriteFile(path, []byte(xml), 0o600); err != nil {
		d.t.Fatal(err)
	}
	d.Virsh("define", path)
}

// destroyAll ends all guests.
func (d *Daemon) destroyAll() {
	out, err := d.Try("list", "--name")
	if err != nil {
		return
	}
	for _, name := range strings.Fields(out) {
		_, _ = d.Try("destroy", name)
	}
}
