package trial

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/unixsock"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

var (
	powerOff = []byte{0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4} // out 604h, 2000h; hlt
	restart  = []byte{0xea, 0x00, 0x00, 0xff, 0xff}                   // jmp ffff:0000
)

// image is a read-only device, and the one export of its server.
type image struct {
	nbd.Device // nil: nothing else is called
	data       []byte
}

func (d image) Size() uint64   { return uint64(len(d.data)) }
func (d image) ReadOnly() bool { return true }
func (d image) TryReadAt(p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	copy(p, d.data[off:])
	return holes, nil
}
func (d image) ReadAt(_ context.Context, p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	return d.TryReadAt(p, off, holes)
}
func (d image) Flush(context.Context) error { return nil }

func (d image) Acquire(string) (nbd.Export, func(), error) {
	return nbd.Export{Name: "disk", Device: d, MinBlock: 1, PreferredBlock: 4096, MaxBlock: nbd.MaxPayload}, func() {}, nil
}

func (d image) List() []nbd.Export { return nil }

// served returns QEMU's end of a connection to a server of a disk.
func served(t *testing.T, data []byte) *os.File {
	t.Helper()
	server, err := nbd.NewServer(image{data: data}, nbd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	door := unixsock.NewHandover()
	go func() { _ = server.Serve(context.Background(), door) }()
	f, err := door.Connect()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func needsQEMU(t *testing.T) {
	t.Helper()
	if _, err := FindProgram(); err != nil {
		if os.Getenv("CI") != "" || os.Getenv("HV_REQUIRE_TOOLS") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// running counts the QEMU whose arguments have a word.
func running(t *testing.T, word string) (n int) {
	t.Helper()
	all, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range all {
		text, _ := os.ReadFile("/proc/" + one.Name() + "/cmdline")
		if _, err := strconv.Atoi(one.Name()); err == nil && strings.Contains(string(text), word) && !strings.HasPrefix(string(text), "/bin/sh") { // which becomes QEMU
			n++
		}
	}
	return n
}

// What a guest may do, and what is said of it. QEMU boots each from the disk that it was given, as somebody who owns nothing where this is root.
func TestRun(t *testing.T) {
	needsQEMU(t)
	slowest := time.Duration(0) // of the guests that have answered so far
	for _, c := range []struct {
		name    string
		disk    []byte
		change  func(*Options)
		console string // that is found
		why     string // else
	}{
		{name: "it asks who is there", disk: sector("\r\nhello\r\nweb1 login: ", halt...), console: "web1 login:"},
		{name: "it says what is expected", disk: sector("\r\n\x1b[1;31mAll\x1b[0m is well\r\n", halt...), change: func(o *Options) { o.Expect = regexp.MustCompile("is w") }, console: "All is well"},
		{name: "on sata", disk: sector("\r\nweb1 login: ", halt...), change: func(o *Options) { o.Bus = "sata" }, console: "web1 login:"},
		{name: "on scsi", disk: sector("\r\nweb1 login: ", halt...), change: func(o *Options) { o.Bus = "scsi" }, console: "web1 login:"},
		{name: "it asks and is gone", disk: sector("\r\nweb1 login: ", powerOff...), console: "web1 login:"},
		{name: "nothing to boot", disk: make([]byte, 1<<20), why: "finds nothing on it that it can boot"},
		{name: "it powers off", disk: sector("\r\nbye\r\n", powerOff...), why: `powered off before it answered, after .*said last: "bye"`},
		{name: "it panics", disk: sector("\r\n[    1.2] Kernel panic - not syncing: VFS: no root\r\n", halt...), why: "its kernel panics: .*no root"},
		{name: "it says something else", disk: sector("\r\nhello\r\n", halt...), change: func(o *Options) { o.Timeout = 2 * time.Second }, why: `no login prompt .*its qemu-guest-agent does not answer, after .*"hello"`},
		{name: "it begins anew and anew", disk: sector("\r\nhello\r\n", restart...), change: func(o *Options) { o.Timeout = 4 * time.Second }, why: "began anew [0-9]+ times"},
		{name: "no agent", disk: sector("\r\nweb1 login: ", halt...), change: func(o *Options) { o.Agent, o.Timeout = true, 2*time.Second }, why: "^no answer: its qemu-guest-agent does not answer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := Options{Disks: []*os.File{served(t, c.disk)}, Timeout: time.Minute, User: Unprivileged(), Args: []string{"-name", t.Name()}}
			if c.change != nil {
				c.change(&o)
			}
			if o.Timeout < time.Minute { // those that shall run out begin first, however busy the machine is
				o.Timeout += 4 * slowest
			}
			r, err := Run(t.Context(), o)
			if n := running(t, t.Name()); n > 0 {
				t.Errorf("%d QEMU are left", n)
			}
			if c.why == "" {
				slowest = max(slowest, r.Took)
				if err != nil || r.Console != c.console || r.Took <= 0 {
					t.Errorf("%+v, %v", r, err)
				}
				return
			}
			var failure *Failure
			if !errors.As(err, &failure) || !regexp.MustCompile(c.why).MatchString(err.Error()) {
				t.Errorf("got %v, want %s", err, c.why)
			}
		})
	}
}

// An interrupt ends QEMU at once; arguments that QEMU refuses are no fault of the guest; options that make no sense are refused.
func TestRunEnds(t *testing.T) {
	needsQEMU(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	interrupted := errors.New("interrupted")
	time.AfterFunc(time.Second, func() { cancel(interrupted) })
	r, err := Run(ctx, Options{Disks: []*os.File{served(t, sector("\r\nhello\r\n", halt...))}, Args: []string{"-name", t.Name()}})
	if !errors.Is(err, interrupted) || r.Took > 20*time.Second || running(t, t.Name()) > 0 {
		t.Errorf("interrupted: %+v, %v, %d are left", r, err, running(t, t.Name()))
	}
	_, err = Run(t.Context(), Options{Disks: []*os.File{served(t, sector("\r\nhello\r\n", halt...))}, Args: []string{"-frobnicate"}})
	if failure := (*Failure)(nil); err == nil || errors.As(err, &failure) || !strings.Contains(err.Error(), "frobnicate") {
		t.Errorf("QEMU does not start: %v", err)
	}
	for _, o := range []Options{{}, {Disks: make([]*os.File, 1), Bus: "ide"}, {Disks: make([]*os.File, 1), MemoryBytes: 3}, {Disks: make([]*os.File, 1), Accel: "magic"}} {
		if _, err := Run(t.Context(), o); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// What runs a machine is found by running one.
func TestBestAccel(t *testing.T) {
	needsQEMU(t)
	program, err := FindProgram()
	if err != nil {
		t.Fatal(err)
	}
	disk, err := probeDisk()
	if err != nil {
		t.Fatal(err)
	}
	if r, err := Run(t.Context(), Options{Disks: []*os.File{disk}, plain: true, Expect: regexp.MustCompile(probeWord), User: Unprivileged(), Timeout: time.Minute}); err != nil {
		t.Fatalf("the loader of the probe does not run under TCG: %+v, %v", r, err)
	}
	began := time.Now()
	accel, err := BestAccel(t.Context(), program, nil)
	if err != nil || accel != KVM && accel != TCG {
		t.Errorf("%s, %v", accel, err)
	}
	t.Logf("%s, found in %v", accel, time.Since(began))
	if as := (&syscall.Credential{Uid: 4_000_000_000, Gid: 4_000_000_000}); os.Geteuid() == 0 && !mayUseKVM(&syscall.Credential{}) && mayUseKVM(as) {
		t.Error("who may not use KVM, may")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if accel, err := BestAccel(ctx, program, nil); err == nil && mayUseKVM(nil) {
		t.Errorf("it was interrupted, and found %s", accel)
	}
}

// Who is killed leaves no QEMU: this test, run by itself, is killed while one runs.
func TestKilledWithItsParent(t *testing.T) {
	needsQEMU(t)
	name := "trial-" + strconv.Itoa(os.Getpid())
	if os.Getenv("HV_TRIAL_NAME") != "" {
		_, err := Run(t.Context(), Options{Disks: []*os.File{served(t, sector("\r\nhello\r\n", halt...))}, Args: []string{"-name", os.Getenv("HV_TRIAL_NAME")}})
		t.Fatal(err)
	}
	c := exec.Command(os.Args[0], "-test.run=^TestKilledWithItsParent$")
	c.Env = append(os.Environ(), "HV_TRIAL_NAME="+name)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	wait := func(want int) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); running(t, name) != want; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				_ = c.Process.Kill()
				t.Fatalf("%d QEMU run, want %d", running(t, name), want)
			}
		}
	}
	wait(1)
	_ = c.Process.Kill()
	_ = c.Wait()
	wait(0)
}

// Lines come out of what consoles send, whatever steers terminals in it, and never too long.
func TestScreen(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"lines", "a\r\nb\n", "a|b|"},
		{"a prompt", "web1 login: ", "web1 login: "},
		{"colours", "\x1b[0;32m  OK  \x1b[0m] Reached", "  OK  ] Reached"},
		{"the cursor is put elsewhere", "one\x1b[2;1Htwo", "one|two"},
		{"the screen is cleared", "one\x1bctwo\x1b[2Jthree", "one|two|three"},
		{"a title", "a\x1b]0;title\x07b", "ab"},
		{"a character set", "a\x1b(Bb", "ab"},
		{"control characters", "a\x00\x07\x08b", "ab"},
		{"no text", "\xff\xfea", "?a"},
		{"a sequence that does not end", "\x1b[" + strings.Repeat("1", 2*maxEscape) + "a", strings.Repeat("1", maxEscape+2) + "a"},
	} {
		for _, step := range []int{1, 1000} {
			var s screen
			var got string
			for in := []byte(c.in); len(in) > 0; in = in[min(step, len(in)):] {
				last := ""
				for _, l := range s.add(in[:min(step, len(in))]) {
					if last = l.text; l.whole {
						got, last = got+l.text+"|", ""
					}
				}
				if len(in) <= step {
					got += last
				}
			}
			if got != c.want {
				t.Errorf("%s, %d at once: %q, want %q", c.name, step, got, c.want)
			}
		}
	}
	var s screen
	for _, l := range s.add([]byte(strings.Repeat("x", 3*maxLine))) {
		if len(l.text) > maxLine {
			t.Errorf("a line of %d B", len(l.text))
		}
	}
}

// What a guest says that has come up, and what not.
func TestLogin(t *testing.T) {
	for text, want := range map[string]bool{
		"web1 login: ": true, "debian login:": true, "[  OK  ] Reached target Multi-User System.": true, "[  OK  ] Reached target multi-user.target - Multi-User System.": true,
		"[  OK  ] Reached target Graphical Interface": true, "Welcome to Debian": false, "Reached target Basic System": false, "sshd: failed login: x": false,
	} {
		if Login.MatchString(text) != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
}
