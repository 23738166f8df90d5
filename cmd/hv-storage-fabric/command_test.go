package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What goes wrong has an exit code and one line that says what, where and what to do.
func TestExitCodes(t *testing.T) {
	d := startDaemon(t)
	d.must("volume", "create", "v", "--size", "1MiB")
	d.must("volume", "create", "busy", "--size", "1MiB")
	d.must("volume", "attach", "busy")
	d.must("volume", "create", "busy2", "--size", "1MiB")
	d.must("volume", "attach", "busy2")
	d.must("snapshot", "create", "v@s")
	d.must("snapshot", "create", "busy2@s")
	empty := t.TempDir()
	d.refuse([]refusal{
		{"volume show nope", exitNotFound, `"nope": not found`},
		{"snapshot delete v@nope", exitNotFound, "not found"},
		{"volume detach v", exitNotFound, "not attached"},
		{"token revoke nope", exitNotFound, "token list"},
		{"snapshot rollback v@nope --dry-run", exitNotFound, "not found"},
		{"volume lst", exitUsage, "did you mean list?"},
		{"volume qos set v --write-iops -1", exitUsage, "want a whole number, 0 or more"},
		{"volume qos set v --write-iops 99999999999999999999", exitUsage, "too large"},
		{"store whatif --file /no/such.raw", exitNotFound, "image: open"},
		{"volume create v --size 1MiB", exitRefused, "already exists"},
		{"volume delete v", exitRefused, "--yes"},
		{"volume delete busy --yes", exitRefused, "attached"},
		{"volume rename busy other", exitRefused, "detach"},
		{"volume resize v --size 512KiB", exitRefused, "--shrink"},
		{"volume resize busy --size 512KiB --shrink", exitRefused, "--force"},
		{"store settle --class hot", exitUsage, "neither warm nor cold"},
		{"volume create a/b --size 1MiB", exitUsage, "'/'"},
		{"volume create a@b --size 1MiB", exitUsage, "'@'"},
		{"volume create .a --size 1MiB", exitUsage, "begins with"},
		{"volume create " + strings.Repeat("n", 300) + " --size 1MiB", exitUsage, "300 bytes"},
		{"volume create x", exitUsage, "--size"},
		{"volume create x --size 0", exitUsage, "one sector"},
		{"volume create x --size 1000", exitUsage, "1024"},
		{"volume create x --size 8EiB", exitUsage, "largest volume"},
		{"volume create x --size 1XB", exitUsage, "1XB"},
		{"volume create x --size 16EiB", exitUsage, "8 EiB less 16 MiB"},
		{"volume list extra", exitUsage, "takes no arguments"},
		{"volume import x /etc", exitUsage, "/etc is a directory"},
		{"--version nonsense", exitUsage, "unknown command"},
		{"volume create x --size 1MiB --chunking fixed:3KiB", exitUsage, "power of two"},
		{"volume create x --size 1MiB --mode fast", exitUsage, "fast"},
		{"volume create x y --size 1MiB", exitUsage, "NAME"},
		{"volume attach v --owner root", exitUsage, "--socket-per-volume"},
		{"volume attach v --socket-per-volume --owner no.such.user", exitUsage, "not a user"},
		{"volume attach v --socket-per-volume --mode rw", exitUsage, "octal"},
		{"volume attach v --tcp", exitRefused, "nbd.listen is off"},
		{"volume attach v --client node1", exitUsage, "--tcp"},
		{"volume attach v --force", exitUsage, "--tcp"},
		{"volume attach v --inject delay=5", exitUsage, "delay=5"},
		{"volume attach v --inject noise=1", exitUsage, "unknown key"},
		{"volume attach busy --inject delay=5ms", exitRefused, "detach"},
		{"volume attach busy --read-only", exitRefused, "detach"},
		{"volume attach v@", exitUsage, "snapshot is missing"},
		{"volume attach busy@nope", exitNotFound, "not found"},
		{"volume attach busy@s", exitNotFound, "not found"},
		{"volume attach v@s --inject error=1", exitUsage, "--inject"},
		{"volume attach v@s", exitRefused, "not attached"},
		{"volume attach busy2@s --tcp", exitRefused, "--tcp"},
		{"volume replicate v", exitUsage, "TARGET"},
		{"volume replicate v http://host/v", exitUsage, "hvd://HOST"},
		{"volume replicate v hvd://host/v", exitUsage, "replication.cert"},
		{"volume replicate v hvd+unix:///v?socket=/x --interval 1ms", exitUsage, "interval"},
		{"volume replicate nope hvd+unix:///v?socket=/x", exitNotFound, "not found"},
		{"volume replicate status v", exitNotFound, "not found"},
		{"volume replicate sync v", exitNotFound, "not found"},
		{"volume replicate promote v --yes", exitNotFound, "not found"},
		{"volume replicate demote v --yes", exitNotFound, "no replication"},
		{"volume replicate @g hvd+unix:///v?socket=/x", exitUsage, "@GROUP"},
		{"volume replicate @nope hvd+unix:///@g?socket=/x", exitNotFound, "not found"},
		{"volume replicate v hvd+unix:///v?socket=/x --limit 1Mb", exitUsage, "rate"},
		{"volume replicate limit v 1kB/s", exitUsage, "at least"},
		{"volume replicate limit v 1MB/s", exitNotFound, "no replication"},
		{"volume replicate limit v", exitUsage, "RATE"},
		{"volume replicate promote @nope --yes", exitNotFound, "no group"},
		{"volume replicate stop v", exitRefused, "--yes"},
		{"volume replicate stop v --yes", exitNotFound, "no replication"},
		{"volume map v", exitRefused, "not attached"},
		{"volume map nope", exitNotFound, "not found"},
		{"volume nonsense", exitUsage, "unknown command"},
		{"nonsense", exitUsage, "unknown command"},
		{"volume list --nonsense", exitUsage, "unknown flag"},
		{"volume list -o xml", exitUsage, "xml"},
		{"token create t --scope king", exitUsage, "king"},
		{"token create t --scope read --expires 0d", exitUsage, "--expires"},
		{"volume import i /no/such/file", exitNotFound, "/no/such/file"},
		{"store check /no/such/dir", exitNotFound, "/no/such/dir"},
		{"store check " + empty, exitNotFound, empty},
		{"store dump super /no/such/dir", exitNotFound, "/no/such/dir"},
		{"--token-file /no/such/token volume list", exitNotFound, "/no/such/token"},
		{"volume qos set nope --write-iops 1", exitNotFound, "not found"},
		{"volume qos clear nope", exitNotFound, "not found"},
		{"volume qos set v", exitUsage, "--write-iops"},
		{"volume import x", exitUsage, "got 1 argument;"},
		{"volume create x --size 12x", exitUsage, `flag: size "12x": unit "x"`},
		{"volume clone nope c", exitNotFound, `to "c": volume "nope": not found`},
		{"volume export nope " + filepath.Join(empty, "o"), exitNotFound, `export volume "nope": volume "nope": not found`},
		{"volume attach busy --read-only", exitRefused, "volume show"},
		{"volume qos set v --write-bytes 100", exitUsage, "4096"},
		{"volume qos set v --write-bytes 1XB/s", exitUsage, "1XB/s"},
		{"volume qos set v --burst 2h", exitUsage, "burst"},
		{"volume export nope /tmp/x", exitNotFound, "not found"},
		{"--endpoint ftp://x status", exitUsage, "endpoint"},
		{"--endpoint unix:/no/such.sock status", exitUnreachable, "/no/such.sock"},
	})
}

// refusal is a command that fails.
type refusal struct {
	args string
	code int
	says string
}

// refuse runs commands that fail, and sees that each has its exit code and one line that says why.
func (d *daemon) refuse(all []refusal) {
	d.t.Helper()
	for _, c := range all {
		r := d.run("", strings.Fields(c.args)...)
		if r.code != c.code || !strings.Contains(r.err, c.says) {
			d.t.Errorf("%s: exit code %d, want %d; %q should say %q", c.args, r.code, c.code, r.err, c.says)
		}
		if strings.Count(r.err, "\n") != 1 || r.out != "" {
			d.t.Errorf("%s: not one line on the error stream: %q, output %q", c.args, r.err, r.out)
		}
	}
}

// The same for what is done with snapshots.
func TestSnapshotExitCodes(t *testing.T) {
	d := startDaemon(t)
	d.must("volume", "create", "v", "--size", "1MiB")
	d.must("volume", "create", "kept", "--size", "1MiB")
	d.must("snapshot", "create", "kept@s")
	d.must("snapshot", "protect", "kept@s")
	d.refuse([]refusal{
		{"snapshot delete kept@s", exitRefused, "protected; `hv-storage-fabric snapshot unprotect"},
		{"volume delete kept --yes", exitRefused, `"s": protected`},
		{"snapshot rename kept@s", exitUsage, "VOLUME@SNAPSHOT NEW"},
		{"snapshot rename kept@nope new", exitNotFound, "not found"},
		{"snapshot rename kept@s s", exitRefused, "already exists"},
		{"snapshot rename kept@s a@b", exitUsage, "'@'"},
		{"snapshot create", exitUsage, "VOLUME@SNAPSHOT"},
		{"snapshot create v", exitUsage, "VOLUME@SNAPSHOT"},
		{"snapshot create v@x kept", exitUsage, "VOLUME@SNAPSHOT"},
		{"snapshot create v@x kept@", exitUsage, "missing after '@'"},
		{"snapshot create v@x nope@x", exitNotFound, `"nope": not found`},
		{"snapshot create v@x kept@s", exitRefused, "already exists"},
		{"snapshot create v@x v@y", exitUsage, "twice"},
		{"snapshot create @shop", exitUsage, "@GROUP@SNAPSHOT"},
		{"snapshot create @shop@a v@a", exitUsage, "by itself"},
		{"snapshot create v@a @shop@a", exitUsage, "by itself"},
		{"snapshot create @shop@a", exitNotFound, `group "shop": not found`},
		{"snapshot schedule set v", exitUsage, "--every is missing"},
		{"snapshot schedule set v --every 1y", exitUsage, `--every "1y"`},
		{"snapshot schedule set v --every 30s", exitUsage, "every 30s"},
		{"snapshot schedule set v --every 1h --keep-last -1", exitUsage, "keep -1"},
		{"snapshot schedule set nope --every 1h", exitNotFound, "not found"},
		{"snapshot schedule set @nope --every 1h", exitNotFound, `group "nope": not found`},
		{"snapshot schedule set nope --dry-run", exitNotFound, "not found"},
		{"snapshot schedule delete v", exitNotFound, "not found"},
		{"volume group set shop", exitUsage, "NAME VOLUME"},
		{"volume group set shop nope", exitNotFound, "not found"},
		{"volume group delete shop", exitNotFound, "not found"},
		{"snapshot diff kept", exitUsage, "VOLUME@SNAPSHOT"},
		{"snapshot diff kept@", exitUsage, "missing after '@'"},
		{"snapshot diff kept@nope", exitNotFound, "not found"},
		{"snapshot diff kept@s kept@s", exitUsage, "two states"},
		{"snapshot diff kept@s v", exitUsage, "no state in common"},
		{"snapshot protect kept@nope", exitNotFound, "not found"},
	})
}

// image is a raw disk with data, zeroes and a length that is no multiple of a block.
func image(t *testing.T, size int) (path string, content []byte) {
	t.Helper()
	content = make([]byte, size)
	r := rand.NewChaCha8([32]byte{7})
	for at := 0; at < size; at += 300_000 {
		_, _ = r.Read(content[at:min(size, at+100_000)])
	}
	path = filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, content
}

func TestImportAndExportAreTheSameBytes(t *testing.T) {
	d := startDaemon(t)
	path, content := image(t, 5<<20+512)
	d.must("volume", "import", "file", path)
	if r := d.run(string(content), "volume", "import", "pipe", "-"); r.code != exitDone {
		t.Fatal(r.err)
	}
	if r := d.run(string(content), "volume", "import", "sized", "-", "--size", "5243392"); r.code != exitDone {
		t.Fatal(r.err)
	}
	d.must("snapshot", "create", "file@s")
	for _, source := range []string{"file", "pipe", "sized", "file@s"} {
		out := filepath.Join(t.TempDir(), "out.raw")
		d.must("volume", "export", source, out)
		got, err := os.ReadFile(out)
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s to a file: %d bytes, %v; they differ", source, len(got), err)
		}
		if r := d.run("", "volume", "export", source, "-"); sha256.Sum256([]byte(r.out)) != sha256.Sum256(content) {
			t.Errorf("%s to a pipe: exit code %d, %d bytes, %s", source, r.code, len(r.out), r.err)
		}
	}
	if left := d.must("snapshot", "list", "file", "-o", "json"); strings.Count(left, `"name"`) != 1 {
		t.Errorf("exports left snapshots: %s", left)
	}
}

func TestImportThatFailsLeavesNothing(t *testing.T) {
	d := startDaemon(t)
	_, content := image(t, 3<<20)
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"volume import v - --size 4MiB", exitFailed, "ended after"},
		{"volume import v - --size 2MiB", exitFailed, "longer than"},
		{"volume import v@s -", exitUsage, "'@'"},
		{"volume import v - --chunking nonsense", exitUsage, "nonsense"},
	} {
		if r := d.run(string(content), strings.Fields(c.args)...); r.code != c.code || !strings.Contains(r.err, c.says) {
			t.Errorf("%s: exit code %d, want %d: %s", c.args, r.code, c.code, r.err)
		}
	}
	if list := d.must("volume", "list", "-o", "json"); list != "[]\n" {
		t.Errorf("left: %s", list)
	}
	if r := d.run(string(content), "volume", "import", "v", "-", "--size", "4MiB", "--keep-partial"); r.code != exitFailed || !strings.Contains(r.err, "kept") {
		t.Errorf("keep: exit code %d: %s", r.code, r.err)
	}
	d.must("volume", "show", "v")
	if r := d.run(string(content), "volume", "import", "v", "-"); r.code != exitRefused {
		t.Errorf("import over a volume: exit code %d: %s", r.code, r.err)
	}
}

// A failed export leaves neither a file nor the end of an old one.
func TestExportThatFailsKeepsTheOldFile(t *testing.T) {
	d := startDaemon(t)
	out := filepath.Join(t.TempDir(), "out.raw")
	if err := os.WriteFile(out, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := d.run("", "volume", "export", "nope", out); r.code != exitNotFound {
		t.Errorf("exit code %d: %s", r.code, r.err)
	}
	if text, err := os.ReadFile(out); err != nil || string(text) != "precious" {
		t.Errorf("the file is %q, %v", text, err)
	}
}

func TestTokensOpenAndCloseTheDoor(t *testing.T) {
	d := startDaemon(t)
	if address := d.server.TCPAddress(); address != "" {
		t.Fatalf("the door is open at %s without a token", address)
	}
	secrets := map[string]string{}
	for _, scope := range []string{"read", "operate", "admin"} {
		var made struct{ Token string }
		if err := json.Unmarshal([]byte(d.must("token", "create", scope, "--scope", scope, "-o", "json")), &made); err != nil {
			t.Fatal(err)
		}
		secrets[scope] = made.Token
	}
	address := d.server.TCPAddress()
	if address == "" {
		t.Fatal("the door is shut although there is a token")
	}
	over := func(scope, args string) result {
		env := map[string]string{"HV_ENDPOINT": "http://" + address, "HV_TOKEN": secrets[scope]}
		return runWith(env, "data", strings.Fields(args)...)
	}
	for _, c := range []struct {
		scope, args string
		code        int
	}{
		{"read", "volume list", exitDone},
		{"read", "volume create r --size 1MiB", exitRefused},
		{"read", "volume import r -", exitRefused},
		{"read", "store settle", exitRefused},
		{"read", "store index", exitDone},
		{"read", "store rebuild-index", exitRefused},
		{"operate", "store rebuild-index --wait", exitDone},
		{"operate", "volume create o --size 1MiB", exitDone},
		{"operate", "volume import i -", exitDone},
		{"operate", "volume export i -", exitDone},
		{"read", "volume export i -", exitRefused},
		{"operate", "token list", exitRefused},
		{"operate", "support -f " + filepath.Join(t.TempDir(), "s"), exitRefused},
		{"admin", "token list", exitDone},
		{"", "volume list", exitRefused},
		{"admin", "token revoke read", exitDone},
		{"read", "volume list", exitRefused},
		{"admin", "token revoke operate", exitDone},
		{"admin", "token revoke admin", exitDone},
		{"admin", "volume list", exitUnreachable}, // nobody listens any more
	} {
		if r := over(c.scope, c.args); r.code != c.code {
			t.Errorf("%s %s: exit code %d, want %d: %s", c.scope, c.args, r.code, c.code, r.err)
		}
	}
	if address := d.server.TCPAddress(); address != "" {
		t.Errorf("the door is open at %s without a token", address)
	}
}

// Attachments are there again after a restart, for a program that is not ours.
func TestAttachmentServesRealClientsAfterARestart(t *testing.T) {
	nbdinfo, err := exec.LookPath("nbdinfo")
	if err != nil {
		t.Skip("nbdinfo is not installed (package libnbd-bin)")
	}
	d := startDaemon(t)
	path, content := image(t, 2<<20)
	d.must("volume", "import", "v", path)
	uri := strings.TrimSpace(d.must("volume", "attach", "v"))
	d.stop()
	d.start()
	size, err := exec.Command(nbdinfo, "--size", uri).CombinedOutput()
	if err != nil || strings.TrimSpace(string(size)) != "2097152" {
		t.Fatalf("nbdinfo: %s, %v", size, err)
	}
	nbdcopy, err := exec.LookPath("nbdcopy")
	if err != nil {
		t.Skip("nbdcopy is not installed (package libnbd-bin)")
	}
	copied := filepath.Join(t.TempDir(), "copied.raw")
	if text, err := exec.Command(nbdcopy, uri, copied).CombinedOutput(); err != nil {
		t.Fatalf("nbdcopy: %s, %v", text, err)
	}
	if got, err := os.ReadFile(copied); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v; they differ", len(got), err)
	}
}

func TestHelpAndCompletion(t *testing.T) {
	d := startDaemon(t)
	d.must("volume", "create", "web1", "--size", "1MiB")
	for _, args := range []string{"--help", "volume", "volume create --help", "completion bash"} {
		if r := d.run("", strings.Fields(args)...); r.code != exitDone || r.out == "" {
			t.Errorf("%s: exit code %d, %s", args, r.code, r.err)
		}
	}
	if r := d.run("", "__complete", "volume", "show", ""); !strings.Contains(r.out, "web1") {
		t.Errorf("completion of volumes: %q", r.out)
	}
}

// What users do with garbage collection: each command shows how it is doing, a pause outlives a restart of the daemon and says what ends it.
func TestGarbageCommands(t *testing.T) {
	d := startDaemon(t)
	d.must("volume", "create", "web1", "--size", "1GiB")
	for _, c := range []struct{ args, want string }{
		{"store gc status", "none yet"}, {"store gc run", "idle"}, {"store gc audit", "passed at"}, {"store gc status", "0 references"}, {"store gc pause", "paused"},
	} {
		if out := d.must(strings.Fields(c.args)...); !strings.Contains(out, c.want) || !strings.Contains(out, "held but unused") {
			t.Errorf("%s: %s", c.args, out)
		}
	}
	d.stop()
	d.start()
	for _, args := range []string{"store gc run", "store settle --wait"} {
		if r := d.run("", strings.Fields(args)...); r.code != exitFailed || !strings.Contains(r.err, "store gc resume") {
			t.Errorf("%s while paused: exit code %d, %q", args, r.code, r.err)
		}
	}
	if out := d.must("store", "gc", "resume", "-o", "json"); !strings.Contains(out, `"state": "idle"`) || !strings.Contains(out, `"passed": true`) {
		t.Errorf("resume: %s", out)
	}
	d.must("store", "gc", "run", "--background")
	d.must("store", "settle", "--wait")
	if r := d.run("", "__complete", "store", "gc", ""); !strings.Contains(r.out, "audit\t") || !strings.Contains(r.out, "run\t") {
		t.Errorf("completion: %q", r.out)
	}
}

// An interrupt ends a command with one line, and an import with nothing left behind.
func TestInterruptedImportLeavesNothing(t *testing.T) {
	d := startDaemon(t)
	ctx, interrupt := context.WithCancel(context.Background())
	r, w := io.Pipe()
	var out, errs bytes.Buffer
	a := newApp(r, &out, &errs, func(name string) string { return map[string]string{"HV_ENDPOINT": d.endpoint}[name] })
	code := make(chan int)
	go func() { code <- run(ctx, a, []string{"volume", "import", "v", "-"}) }()
	if _, err := w.Write(make([]byte, 3<<20)); err != nil { // the command has read a part of it when this returns
		t.Fatal(err)
	}
	interrupt()
	w.Close()
	if got := <-code; got != 130 || !strings.Contains(errs.String(), "interrupted") || strings.Count(errs.String(), "\n") != 1 {
		t.Errorf("exit code %d: %q", got, errs.String())
	}
	if list := d.must("volume", "list", "-o", "json"); list != "[]\n" {
		t.Errorf("left: %s", list)
	}
}
