package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/hypervisor/libvirt"
	"github.com/hyper-nixos/hyper-nixos/internal/guest"
	"github.com/hyper-nixos/hyper-nixos/internal/libvirttest"
)

// agentTask is what the guest does: its agent runs, and ten times a second it writes a file, which waits while its disk is frozen, and says so.
const agentTask = `#!/bin/sh
exec </dev/ttyS0 >/dev/ttyS0 2>&1
insmod /lib/modules/$(uname -r)/kernel/drivers/char/virtio_console.ko
for name in /sys/class/virtio-ports/*/name; do
	[ "$(cat $name)" = org.qemu.guest_agent.0 ] && port=/dev/$(basename $(dirname $name))
done
mkdir -p /run/ga
/ga/ld.so --library-path /ga /ga/qemu-ga -m virtio-serial -p $port -t /run/ga -f /run/ga/pid -l /run/ga/log -d
n=0
while :; do
	n=$((n + 1))
	echo $n >/file && sync /file
	echo "ALIVE $n"
	sleep 0.1
done
`

// agentGuest is a guest of libvirt that runs qemu-guest-agent on a root disk which is a volume of hvd.
type agentGuest struct {
	*machines
	console string
}

func startAgentGuest(t *testing.T) *agentGuest {
	t.Helper()
	image := guestImage(t)
	needs(t, "debugfs", "ldd")
	g := &agentGuest{machines: newMachines(t)}
	g.console = filepath.Join(g.lv.Dir, "console")
	g.run("volume", "import", "root", agentDisk(t, image))
	for name, path := range map[string]string{"kernel": image.Kernel, "initramfs": image.Initramfs} {
		if err := os.WriteFile(filepath.Join(g.lv.Dir, name), contents(t, path), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	g.lv.Define(`<domain type='qemu'><name>agent</name><uuid>` + machineUUID + `</uuid><memory unit='MiB'>256</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type><kernel>` + g.lv.Dir + `/kernel</kernel><initrd>` + g.lv.Dir + `/initramfs</initrd><cmdline>console=ttyS0 quiet hv.task=idle</cmdline></os>
<features><acpi/></features><devices>
<disk type='network' device='disk'><driver name='qemu' type='raw'/>` + g.source("root") + `<target dev='vda' bus='virtio'/></disk>
<serial type='file'><source path='` + g.console + `'/></serial>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
</devices></domain>`)
	g.lv.Virsh("start", "agent")
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(g.console)
			t.Logf("console:\n%s", text[max(0, len(text)-4000):])
		}
	})
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		if _, err := g.lv.Try("qemu-agent-command", "agent", `{"execute":"guest-ping"}`, "--timeout", "5"); err == nil && g.alive() > 0 {
			return g
		} else if time.Now().After(end) {
			t.Fatal("the guest's agent does not answer")
		}
	}
}

// agentDisk is the root disk of an image with qemu-ga, what it needs, and the task in it.
func agentDisk(t *testing.T, image *guest.Image) string {
	t.Helper()
	agent := libvirttest.Find("qemu-ga")
	if agent == "" {
		absent(t, "qemu-ga is not installed (Debian: apt install qemu-guest-agent)")
	}
	disk, task := filepath.Join(t.TempDir(), "root.raw"), filepath.Join(t.TempDir(), "task")
	tool(t, "cp", "--sparse=always", image.Disk, disk)
	if err := os.WriteFile(task, []byte(agentTask), 0o755); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("rm /usr/lib/hv-guest/task\nwrite %s /usr/lib/hv-guest/task\nmkdir /ga\nwrite %s /ga/qemu-ga\n", task, agent)
	for _, line := range strings.Split(tool(t, "ldd", agent), "\n") {
		for _, word := range strings.Fields(line) {
			if !strings.HasPrefix(word, "/") {
				continue
			}
			path, err := filepath.EvalSymlinks(word)
			if err != nil {
				t.Fatal(err)
			}
			name := filepath.Base(word)
			if strings.HasPrefix(name, "ld-") {
				name = "ld.so"
			}
			script += fmt.Sprintf("write %s /ga/%s\n", path, name)
		}
	}
	for _, name := range []string{"/usr/lib/hv-guest/task", "/ga/qemu-ga", "/ga/ld.so"} {
		script += "sif " + name + " mode 0100755\n"
	}
	commands := writeFile(t, "debugfs", script)
	debugfs := exec.Command(libvirttest.Find("debugfs"), "-w", "-f", commands, disk)
	if out, err := debugfs.CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v: %s", err, out)
	}
	return disk
}

var aliveLine = regexp.MustCompile(`ALIVE (\d+)`)

// alive is how many files the guest has written.
func (g *agentGuest) alive() int {
	text, _ := os.ReadFile(g.console)
	all := aliveLine.FindAllSubmatch(text, -1)
	if len(all) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(string(all[len(all)-1][1]))
	return n
}

// goesOn fails if the guest writes no more.
func (g *agentGuest) goesOn(when string) {
	g.t.Helper()
	at := g.alive()
	for end := time.Now().Add(30 * time.Second); g.alive() < at+3; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			g.t.Fatalf("%s, the guest is still frozen", when)
		}
	}
}

// Guests of libvirt are frozen by their agents for the moment of the snapshot, and go on, whatever happens: to what is done meanwhile, to libvirtd, to the agent.
func TestMachineAtRest(t *testing.T) {
	t.Parallel() // it waits
	g := startAgentGuest(t)
	var done []machineBackup
	g.backupJSON(&done, "run", "--domain", "agent")
	if len(done) != 2 || done[0].Consistency != "frozen" || done[1].Consistency != "frozen" {
		t.Errorf("backed up %+v", done)
	}
	if held := done[1].FrozenSeconds; held <= 0 || held > 10 {
		t.Errorf("the guest was frozen for %v s", held)
	} else {
		t.Logf("the guest was frozen for %.0f ms", 1000*held)
	}
	g.goesOn("after a backup")

	place, err := libvirt.Find(g.lv.URI, g.getenv)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := libvirt.Open(t.Context(), place)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	domain, err := conn.Find(t.Context(), "agent")
	if err != nil {
		t.Fatal(err)
	}
	failure := errors.New("failure")
	ctx, cancel := context.WithCancel(t.Context())
	for _, c := range []struct {
		name string
		do   func() error
		want error
	}{
		{"all goes well", func() error { return nil }, nil},
		{"it fails", func() error { return failure }, failure},
		{"libvirtd is killed and comes back", func() error { g.lv.Stop(); g.lv.Run(); return nil }, nil},
		{"it is cancelled", func() error { cancel(); return ctx.Err() }, context.Canceled},
	} {
		rests, err := conn.AtRest(ctx, []libvirt.Domain{domain}, func(context.Context) error {
			before := g.alive()
			time.Sleep(500 * time.Millisecond)
			if now := g.alive(); now > before+1 { // one that was on its way
				t.Errorf("%s: %d files were written while the guest was frozen", c.name, now-before)
			}
			return c.do()
		})
		if len(rests) != 1 || rests[0].Frozen == 0 || rests[0].Err != nil || !errors.Is(err, c.want) {
			t.Errorf("%s: %+v, %v", c.name, rests, err)
		}
		g.goesOn("when " + c.name)
	}

	g.killedWhileFrozen()
	g.snapshotTakesTooLong()

	// An agent that is stuck: the backup is made without it, and says so.
	stop := `{"execute":"guest-exec","arguments":{"path":"/bin/sh","arg":["-c","sleep 1; kill -STOP $(cat /run/ga/pid); echo AGENT-STOPPED >/dev/ttyS0"]}}`
	g.lv.Virsh("qemu-agent-command", "agent", stop)
	eventually(t, "the guest's agent is stopped", func() bool { return bytes.Contains(contents(t, g.console), []byte("AGENT-STOPPED")) })
	got := g.backup("run", "--domain", "agent", "-o", "json")
	if err := json.Unmarshal([]byte(got.stdout), &done); err != nil || got.code != 0 || len(done) != 2 || done[0].Consistency != "crash" || done[1].Consistency != "crash" || !strings.Contains(got.stderr, "as after a power loss") {
		t.Errorf("with an agent that is stuck: %v %+v", err, got)
	}
	g.goesOn("when its agent is stuck")
}

// stall is a control socket of hvd at which requests for snapshots wait until somebody lets them go on.
type stall struct {
	path    string
	waiting chan struct{} // a request for snapshots is there
	goOn    chan struct{}
}

func (g *agentGuest) stall() *stall {
	g.t.Helper()
	s := &stall{path: filepath.Join(g.lv.Dir, "stall.sock"), waiting: make(chan struct{}, 10), goOn: make(chan struct{})}
	_ = os.Remove(s.path)
	l, err := net.Listen("unix", s.path)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go s.forward(client, g.dir+"/hvd.sock")
		}
	}()
	return s
}

func (s *stall) forward(client net.Conn, to string) {
	defer client.Close()
	hvd, err := net.Dial("unix", to)
	if err != nil {
		return
	}
	defer hvd.Close()
	go func() {
		_, _ = io.Copy(client, hvd)
		_ = client.Close()
	}()
	b := make([]byte, 1<<20)
	for {
		n, err := client.Read(b)
		if strings.Contains(string(b[:n]), "CreateSnapshots") {
			s.waiting <- struct{}{}
			<-s.goOn
		}
		if _, writeErr := hvd.Write(b[:n]); err != nil || writeErr != nil {
			return
		}
	}
}

// begin starts a run whose request for a snapshot stalls, and returns when the guest is frozen.
func (g *agentGuest) begin(s *stall) (cmd *exec.Cmd, said *transcript) {
	g.t.Helper()
	said = &transcript{}
	cmd = exec.Command(backupPath, g.repo.args("run", "--domain", "agent", "--endpoint", "unix:"+s.path, "-o", "json")...)
	cmd.Env = append(os.Environ(), g.repo.env...)
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	select {
	case <-s.waiting:
	case <-time.After(patience):
		g.t.Fatalf("it does not come to the snapshot: %s", said)
	}
	if status := g.lv.Virsh("qemu-agent-command", "agent", `{"execute":"guest-fsfreeze-status"}`); !strings.Contains(status, "frozen") {
		g.t.Errorf("the guest is %s", status)
	}
	return cmd, said
}

// killedWhileFrozen kills hv-backup with SIGKILL while it holds the guest.
func (g *agentGuest) killedWhileFrozen() {
	g.t.Helper()
	s := g.stall()
	cmd, _ := g.begin(s)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	g.goesOn("after a SIGKILL of hv-backup")
	close(s.goOn)
}

// snapshotTakesTooLong lets hvd take its time: the guest goes on before, and the backup says that it was not at rest.
func (g *agentGuest) snapshotTakesTooLong() {
	g.t.Helper()
	s := g.stall()
	cmd, said := g.begin(s)
	g.goesOn("while hvd takes no snapshot")
	close(s.goOn)
	if err := cmd.Wait(); err != nil || strings.Contains(said.String(), `"frozen"`) || !strings.Contains(said.String(), `"crash"`) || !strings.Contains(said.String(), "as long as its guest was frozen") {
		g.t.Errorf("%v: %s", err, said)
	}
}
