package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// bootable returns a disk of 64 MiB with a loader that reads the sector behind it and has the BIOS show its text, which goes to the first serial port, too.
func bootable(text string) string {
	code := []byte{
		0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0xfb, // cli; xor ax, ax; mov ds, ax; mov es, ax; sti
		0xb8, 0x01, 0x02, 0xb9, 0x02, 0x00, 0xb6, 0x00, 0xbb, 0x00, 0x7e, // mov ax, 201h; mov cx, 2; mov dh, 0; mov bx, 7e00h
		0xcd, 0x13, 0x72, 0x10, // int 13h: read a sector; jc stop
		0xbe, 0x00, 0x7e, // mov si, 7e00h
		0xac, 0x84, 0xc0, 0x74, 0x08, 0xb4, 0x0e, 0x31, 0xdb, 0xcd, 0x10, 0xeb, 0xf3, // next: lodsb; test al, al; jz stop; mov ah, 0eh; xor bx, bx; int 10h; jmp next
		0xf4, 0xeb, 0xfd, // stop: hlt; jmp stop
	}
	disk := make([]byte, 64<<20)
	copy(disk, code)
	copy(disk[510:], "\x55\xaa"+text)
	copy(disk[1<<20:], noise(21, 4<<20))
	return string(disk)
}

// tested is what `test-restore -o json` prints.
type tested struct {
	Backups               []string
	Passed                bool
	Error, Console, Agent string
	Machine               string
	Seconds               float64
	Tail, Damage          []string
}

// test tests a restore, which has to end with a code. It has a name, by which nothing of it must be left.
func (r *repo) test(code int, args ...string) (out tested) {
	r.t.Helper()
	name := fmt.Sprintf("test-%d-%d", os.Getpid(), time.Now().UnixNano())
	behind := []string{"--", "-name", name}
	for i, arg := range args {
		if arg == "--" {
			args, behind = args[:i], append(behind, args[i+1:]...)
			break
		}
	}
	got := executeWith(r.t, r.env, nil, backupPath, append(r.args(append([]string{"test-restore", "-o", "json", "--accel", "tcg"}, args...)...), behind...)...)
	if got.code != code {
		r.t.Fatalf("test-restore %s ends with %d, want %d: %s%s", strings.Join(args, " "), got.code, code, got.stdout, got.stderr)
	}
	if got.stdout != "" {
		if err := json.Unmarshal([]byte(got.stdout), &out); err != nil {
			r.t.Fatalf("%v in %s", err, got.stdout)
		}
	}
	if n := processes(r.t, name); n > 0 {
		r.t.Errorf("%d processes of the test are left", n)
	}
	return out
}

// processes counts those whose arguments have a word.
func processes(t *testing.T, word string) (n int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if text, err := os.ReadFile(path); err == nil && bytes.Contains(text, []byte(word)) {
			n++
		}
	}
	return n
}

// A backup boots from the repository and answers, or it is said why not; nothing runs afterwards.
func TestRestoreTest(t *testing.T) {
	needs(t, "qemu-system-x86_64")
	d, r := startDaemon(t), newRepo(t)
	endpoint := "unix:" + d.dir + "/hvd.sock"
	d.run("volume", "import", "web1", writeFile(t, "web1.raw", bootable("\r\nweb1 login: \x00")))
	d.run("volume", "import", "mute", writeFile(t, "mute.raw", bootable("\r\nthe network is slow today\r\n\x00")))
	d.run("volume", "create", "blank", "--size", "8M")
	r.run("run", "web1", "mute", "blank", "--endpoint", endpoint)
	first := r.test(0, "web1")
	if !first.Passed || first.Console != "web1 login:" || first.Seconds <= 0 || len(first.Backups) != 1 {
		t.Errorf("a guest that boots: %+v", first)
	}
	// Those that shall not answer in time have the time to begin, however busy the machine is.
	timeout := 3*time.Second + time.Duration(4*first.Seconds*float64(time.Second)).Round(time.Second)
	if got := r.test(0, "latest:web1", "blank", "--expect", "^web. login", "--bus", "scsi"); !got.Passed || len(got.Backups) != 2 {
		t.Errorf("with two disks: %+v", got)
	}
	if got := r.test(7, "blank"); got.Passed || !strings.Contains(got.Error, "finds nothing on it that it can boot") || len(got.Tail) == 0 {
		t.Errorf("no boot sector: %+v", got)
	}
	if got := r.test(7, "mute", "--timeout", timeout.String()); got.Passed || !regexp.MustCompile(`no login prompt .* after [0-9].*the network is slow`).MatchString(got.Error) || got.Seconds < timeout.Seconds()-1 || got.Seconds > timeout.Seconds()+20 {
		t.Errorf("a guest that does not answer in %v: %+v", timeout, got)
	}
	got := r.try("test-restore", "mute", "--timeout", timeout.String(), "--accel", "tcg")
	if got.code != 7 || got.stdout != "" || !strings.Contains(got.stderr, "console: the network is slow today\n") {
		t.Errorf("in plain text: %+v", got)
	}
	for _, c := range []struct {
		code int
		args string
	}{
		{2, ""}, {2, "web1 --expect ("}, {2, "web1 --uefi --firmware /dev/null"}, {2, "web1 --bus ide"}, {2, "web1 --accel magic"}, {2, "web1 --memory 1KiB"}, {3, "missing"}, {3, "web1 --firmware /does/not/exist"},
		{1, "web1 -- -frobnicate"},
	} {
		before, behind, _ := strings.Cut(c.args, "-- ")
		args := r.args(append([]string{"test-restore"}, strings.Fields(before)...)...)
		if behind != "" {
			args = append(args, "--", behind)
		}
		if got := execute(t, nil, backupPath, args...); got.code != c.code || got.stdout != "" {
			t.Errorf("test-restore %s: %+v, want %d", c.args, got, c.code)
		}
	}
	interruptedTest(t, r)
	damagedTest(t, r)
}

// interruptedTest interrupts a test while the guest runs.
func interruptedTest(t *testing.T, r *repo) {
	t.Helper()
	for signal, code := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143, syscall.SIGKILL: -1} {
		name := fmt.Sprintf("interrupted-%d-%d", os.Getpid(), signal)
		console := filepath.Join(t.TempDir(), "console")
		cmd := exec.Command(backupPath, append(r.args("test-restore", "mute", "--accel", "tcg", "--console", console), "--", "-name", name)...)
		var said strings.Builder
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
			if text, _ := os.ReadFile(console); strings.Contains(string(text), "slow today") {
				break
			}
			if time.Now().After(end) {
				_ = cmd.Process.Kill()
				t.Fatalf("it does not boot: %s", said.String())
			}
		}
		if processes(t, name) == 0 {
			t.Error("no QEMU runs") // or what follows proves nothing
		}
		_ = cmd.Process.Signal(signal)
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != code || code > 0 && !strings.Contains(said.String(), "interrupted") {
			t.Errorf("%v: it ends with %d and says %s", signal, got, said.String())
		}
		for end := time.Now().Add(patience); processes(t, name) > 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%v leaves QEMU", signal)
			}
		}
	}
}

// damagedTest boots from a backup whose packs are damaged: what the guest meets of it is said, and the code is that of damage.
func damagedTest(t *testing.T, r *repo) {
	t.Helper()
	packs, _ := filepath.Glob(filepath.Join(r.dir, "packs", "*", "*"))
	for _, pack := range packs {
		info, err := os.Stat(pack)
		if err != nil {
			t.Fatal(err)
		}
		for off := int64(4096); off < info.Size()-4096; off += 512 {
			flip(t, pack, int(off))
		}
	}
	if got := r.test(5, "web1", "--timeout", "20s"); got.Passed || len(got.Damage) == 0 || !strings.Contains(got.Error, "damage") {
		t.Errorf("of a damaged repository: %+v", got)
	}
}

// A real guest boots from a backup, reads its root from it and writes to it; its console and its agent answer.
func TestRestoreTestOfAGuest(t *testing.T) {
	image := guestImage(t)
	agent, err := exec.LookPath("qemu-ga")
	if err != nil {
		agent = "/usr/sbin/qemu-ga"
	}
	if _, err := os.Stat(agent); err != nil {
		absent(t, "qemu-ga is not installed (Debian: apt install qemu-guest-agent)")
	}
	folder := shortDir(t)
	if err := os.Chmod(folder, 0o755); err != nil { // QEMU runs as somebody else
		t.Fatal(err)
	}
	disk := filepath.Join(folder, "disk.raw")
	tool(t, "cp", "--sparse=always", image.Disk, disk)
	withAgent(t, disk, agent)
	for _, path := range []string{image.Kernel, image.Initramfs} {
		tool(t, "install", "-m", "644", path, folder)
	}
	r := newRepo(t)
	r.run("run", "--file", disk)
	boot := []string{"--", "-kernel", filepath.Join(folder, filepath.Base(image.Kernel)), "-initrd", filepath.Join(folder, filepath.Base(image.Initramfs)), "-append", "console=ttyS0 quiet"}
	for range 2 { // what the first one wrote is gone
		got := r.test(0, append([]string{"latest", "--timeout", "3m", "--agent", "--expect", "GUEST-FIRST-BOOT"}, boot...)...)
		if !got.Passed || !strings.Contains(got.Console, "GUEST-FIRST-BOOT") || got.Agent == "" {
			t.Errorf("%+v", got)
		}
		t.Logf("after %.1f s: %q, agent %s", got.Seconds, got.Console, got.Agent)
	}
	if got := r.test(7, append([]string{"latest", "--timeout", "3m"}, append(boot[:len(boot)-1], "console=ttyS0 panic=0 hv.task=smoke init=/none rdinit=/none root=/dev/none")...)...); got.Passed || !strings.Contains(got.Error, "kernel panics") {
		t.Errorf("a kernel that panics: %+v", got)
	}
}

// withAgent puts qemu-ga onto the disk of a guest of busybox, and a task that starts it, which its first process runs.
func withAgent(t *testing.T, disk, agent string) {
	t.Helper()
	task := writeFile(t, "task", `#!/bin/sh
exec </dev/ttyS0 >/dev/ttyS0 2>&1
[ -e /hv-booted ] || echo GUEST-FIRST-BOOT
: >/hv-booted
sync
insmod /lib/modules/$(uname -r)/kernel/drivers/char/virtio_console.ko
for port in /dev/vport*p1; do /agent/ld.so --library-path /agent /agent/qemu-ga -m virtio-serial -p $port -t /run -f /run/ga.pid; done
echo GUEST-ERROR the agent ended
`)
	if err := os.Chmod(task, 0o755); err != nil {
		t.Fatal(err)
	}
	commands := []string{"mkdir /agent", "cd /agent", "write " + agent + " qemu-ga"}
	for _, found := range regexp.MustCompile(`(/\S+)/(\S+\.so\S*) \(0x`).FindAllStringSubmatch(tool(t, "ldd", agent), -1) {
		path, err := filepath.EvalSymlinks(found[1] + "/" + found[2])
		if err != nil {
			t.Fatal(err)
		}
		name := found[2]
		if strings.HasPrefix(name, "ld-linux") {
			name = "ld.so"
		}
		commands = append(commands, "write "+path+" "+name)
	}
	commands = append(commands, "cd /usr/lib/hv-guest", "rm task", "write "+task+" task")
	list := writeFile(t, "commands", strings.Join(commands, "\n")+"\n")
	if got := tryTool(t, "debugfs", "-w", "-f", list, disk); got.code != 0 || strings.Contains(got.stderr, "No such file") {
		t.Fatal(got.stderr)
	}
}

// A policy boots what it backed up: that is noted, shown, and told once when a guest does not come up, and when all is well again.
func TestBackupPolicyTestsRestores(t *testing.T) {
	needs(t, "qemu-system-x86_64")
	d, r := startDaemon(t), newRepo(t)
	d.run("volume", "import", "web1", writeFile(t, "web1.raw", bootable("\r\nweb1 login: \x00")))
	d.run("volume", "create", "data1", "--size", "8M")
	h := new(heard)
	hook := httptest.NewServer(h)
	defer hook.Close()
	folder := filepath.Join(t.TempDir(), "policies")
	t.Setenv("HV_BACKUP_POLICIES", folder)
	r.run("policy", "set", "nightly", "web1", "data1", "--every", "1d", "--test-restore", "weekly", "--test-guest", "web1,data1", "--test-timeout", "30s", "--files", "web1.conf="+r.passwords,
		"--webhook-file", writeFile(t, "hook", hook.URL+"/secret\n"), "--endpoint", "unix:"+d.dir+"/hvd.sock")
	type state struct {
		State struct {
			Damage   string
			LastTest time.Time
			Tests    []struct {
				Backups       []string
				Seconds       float64
				Answer, Error string
			}
		}
	}
	run := func(code int) state {
		t.Helper()
		var ran []state
		got := execute(t, nil, backupPath, "policy", "run", "nightly", "-o", "json")
		if got.code != code {
			t.Fatalf("policy run ends with %d, want %d: %s", got.code, code, got.stderr)
		}
		if err := json.Unmarshal([]byte(got.stdout), &ran); err != nil || len(ran) != 1 {
			t.Fatal(err, got.stdout)
		}
		return ran[0]
	}
	// older makes the last test older, as nobody can wait.
	older := func() {
		t.Helper()
		path := filepath.Join(folder, "nightly.state")
		text := regexp.MustCompile(`"lastTest": "[^"]*"`).ReplaceAll(contents(t, path), []byte(`"lastTest": "`+time.Now().UTC().Add(-8*24*time.Hour).Format(time.RFC3339)+`"`))
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	shows := func(code int, text string) {
		t.Helper()
		if got := execute(t, nil, backupPath, "policy", "list"); got.code != code || !strings.Contains(got.stdout, text) {
			t.Errorf("policy list ends with %d, want %d and %q: %s%s", got.code, code, text, got.stdout, got.stderr)
		}
	}
	shows(0, "not yet")
	first := run(0)
	if s := first.State; len(s.Tests) != 1 || len(s.Tests[0].Backups) != 2 || s.Tests[0].Answer != "web1 login:" || s.Tests[0].Error != "" || s.Tests[0].Seconds <= 0 {
		t.Errorf("the first run: %+v", s)
	}
	shows(0, "passed")
	if again := run(0); !again.State.LastTest.Equal(first.State.LastTest) {
		t.Error("it is tested again when that is not due")
	}
	h.expect(t)

	d.run("volume", "attach", "web1")
	good := make([]byte, 512)
	copy(good, bootable("")[:512])
	uri := d.uri("web1")
	qemuIO(t, uri, "write -P 0 0 512", "flush")
	older()
	bad := run(7)
	if s := bad.State; len(s.Tests) != 1 || !strings.Contains(s.Tests[0].Error, "nothing on it that it can boot") || !strings.Contains(s.Damage, "nothing on it") {
		t.Errorf("a guest that does not boot: %+v", s)
	}
	h.expect(t, "upkeep")
	shows(5, "failed")
	if still := run(0); !strings.Contains(still.State.Damage, "nothing on it") { // no test was due, and none has passed
		t.Errorf("it is well without a test: %+v", still.State)
	}
	h.expect(t)
	qemuIO(t, uri, "write -s "+writeFile(t, "sector", string(good))+" 0 512", "flush")
	older()
	if well := run(0); well.State.Damage != "" || len(well.State.Tests) != 1 || well.State.Tests[0].Error != "" {
		t.Errorf("it boots again: %+v", well.State)
	}
	h.expect(t, "well")
	shows(0, "passed")
	for _, args := range []string{"--test-guest web1", "--test-restore weekly --test-guest other", "--test-restore never", "--test-restore daily --test-expect ("} {
		if got := r.try(append([]string{"policy", "set", "odd", "web1", "--every", "1d"}, strings.Fields(args)...)...); got.code != 2 {
			t.Errorf("policy set %s: %+v", args, got)
		}
	}
}
