package guestagent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// guest is a qemu-ga whose only file system is a small ext4, in namespaces of its own, so that nothing else can be frozen.
type guest struct {
	t      *testing.T
	socket string
	root   string // of the file system, from outside
}

// build makes a root with qemu-ga and what it needs in it, and goes there.
const build = `set -eu
dir=$1 agent=$2
mount --make-rprivate /
truncate -s 64M "$dir/disk"
mkfs.ext4 -q -F -E lazy_itable_init=0 "$dir/disk"
mkdir "$dir/root"
mount -o loop "$dir/disk" "$dir/root"
cd "$dir/root"
mkdir -p proc old run bin var/run
cp "$agent" bin/qemu-ga
cp -L "$(command -v busybox)" bin/busybox
for file in $(ldd bin/qemu-ga bin/busybox | grep -o '/[^ ]*\.so[^ ]*'); do mkdir -p ".$(dirname "$file")" && cp -L "$file" ".$file"; done
mount -t proc proc proc
pivot_root . old
exec /bin/busybox chroot . /bin/busybox sh -euc '/bin/busybox umount -l /old
[ "$(/bin/busybox grep -vc " /proc proc " /proc/self/mounts)" = 1 ]
exec /bin/qemu-ga -m unix-listen -p /agent.sock -t /run -f /run/ga.pid -v'
`

func startGuest(t *testing.T) *guest {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for mounts")
	}
	agent, err := exec.LookPath("qemu-ga")
	if err != nil {
		if agent = "/usr/sbin/qemu-ga"; exec.Command(agent, "--version").Run() != nil {
			t.Fatal("qemu-ga is missing: scripts/setup installs it")
		}
	}
	c := exec.Command("sh", "-c", build, "sh", t.TempDir(), agent)
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	var said strings.Builder
	c.Stdout, c.Stderr = &said, &said
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
		if t.Failed() {
			t.Logf("the guest said: %s", said.String())
		}
	})
	g := &guest{t: t, root: fmt.Sprintf("/proc/%d/root", c.Process.Pid)}
	g.socket = filepath.Join(g.root, "agent.sock")
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		a, err := Dial(ctx, g.socket)
		cancel()
		if err == nil {
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			return g
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// writing writes to the guest's file system and tells when that was done.
func (g *guest) writing() <-chan error {
	done := make(chan error, 1)
	go func() { done <- os.WriteFile(filepath.Join(g.root, "file"), []byte("text"), 0o600) }()
	return done
}

// Between freeze and thaw no write of the guest is done; after it all are, whatever happened meanwhile.
func TestAtRest(t *testing.T) {
	g := startGuest(t)
	if err := <-g.writing(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failure := errors.New("failure")
	for _, c := range []struct {
		name string
		do   func() error
		want error
	}{
		{"all goes well", func() error { return nil }, nil},
		{"it fails", func() error { return failure }, failure},
		{"it is cancelled", func() error { cancel(); return ctx.Err() }, context.Canceled},
	} {
		var write <-chan error
		err := AtRest(ctx, []string{g.socket}, func() error {
			write = g.writing()
			select {
			case err := <-write:
				t.Errorf("%s: a write was done while the guest was frozen: %v", c.name, err)
			case <-time.After(200 * time.Millisecond):
			}
			return c.do()
		})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		select {
		case err := <-write:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s: the guest is still frozen", c.name)
		}
	}
}

// If one guest of several does not answer, the others are not left frozen, and nothing is done.
func TestOneDoesNotAnswer(t *testing.T) {
	g := startGuest(t)
	silent := filepath.Join(t.TempDir(), "silent.sock")
	l, err := net.Listen("unix", silent)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second) // enough for the one that answers
	defer cancel()
	err = AtRest(ctx, []string{g.socket, silent}, func() error { t.Error("called"); return nil })
	if err == nil || !strings.Contains(err.Error(), silent) {
		t.Errorf("got %v", err)
	}
	select {
	case err := <-g.writing():
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the guest that answers is frozen")
	}
}

// What an agent says is bounded, and may be anything.
func TestHostileAgent(t *testing.T) {
	for name, say := range map[string]string{
		"nothing":       "",
		"another id":    "\xff{\"return\":1}\n",
		"no JSON":       "\xff{\n",
		"an error":      "\xff{\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"}}\n",
		"a long line":   "\xff" + strings.Repeat("x", 2*maxLine),
		"endless noise": strings.Repeat("x", 3*maxLine),
	} {
		path := filepath.Join(t.TempDir(), "a.sock")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if c, err := l.Accept(); err == nil {
				_, _ = c.Write([]byte(say))
				_ = c.Close()
			}
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		a, err := Dial(ctx, path)
		if cancel(); err == nil {
			t.Errorf("%s: it is taken for an agent", name)
			_ = a.Close()
		}
		_ = l.Close()
	}
}
