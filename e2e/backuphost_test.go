package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/hyper-nixos/hyper-nixos/internal/certtest"
)

// repositoryHost is an hvd that keeps repositories of other machines.
type repositoryHost struct {
	*daemon
	authority *certtest.Authority
	folder    string
	listen    string
}

func startRepositoryHost(t *testing.T, peers string, flags ...string) *repositoryHost {
	t.Helper()
	h := &repositoryHost{authority: certtest.New(t, "sites"), folder: t.TempDir(), listen: freePort(t, "127.0.0.1")}
	certs := shortDir(t)
	h.authority.Store(certs, "host", h.authority.Server())
	h.daemon = startDaemon(t, append([]string{
		"--repository-listen", h.listen, "--repository-dir", h.folder, "--repository-peers", peers,
		"--repository-cert", certs + "/host-cert.pem", "--repository-key", certs + "/host-key.pem", "--repository-ca", certs + "/ca-cert.pem",
	}, flags...)...)
	return h
}

// certificates are the flags of a client with a certificate of that name, of an authority.
func (h *repositoryHost) certificates(a *certtest.Authority, name string) []string {
	h.t.Helper()
	dir := shortDir(h.t)
	a.Store(dir, "client", a.Issue(name, x509.ExtKeyUsageClientAuth, time.Hour))
	h.authority.StoreSelf(dir)
	return []string{"--tls-cert", dir + "/client-cert.pem", "--tls-key", dir + "/client-key.pem", "--tls-ca", dir + "/ca-cert.pem"}
}

// packs counts the packs of a repository.
func (h *repositoryHost) packs(name string) int {
	found, err := filepath.Glob(filepath.Join(h.folder, name, "packs", "*", "*"))
	if err != nil {
		h.t.Fatal(err)
	}
	return len(found)
}

func randomImage(seed uint64, size int) []byte {
	data := make([]byte, size)
	rng := rand.New(rand.NewPCG(seed, 29))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	return data
}

// A repository at another hvd is one like others, and hvd sees to it who may do what, and that nobody deletes what is young.
func TestBackupHost(t *testing.T) {
	h := startRepositoryHost(t, "admin=all,web1=append:vms,mirror=read", "--repository-keep", "720h")
	d := startDaemon(t)
	endpoint := []string{"--endpoint", "unix:" + d.dir + "/hvd.sock"}
	passwords := writeFile(t, "password", "tr0ub4dor\n")
	as := func(name string) *repo {
		return &repo{t: t, dir: "hvd://" + h.listen + "/vms", passwords: passwords, flags: h.certificates(h.authority, name)}
	}
	admin, mirror, web1 := as("admin"), as("mirror"), as("web1")
	if got := mirror.try("list"); got.code != 3 || !strings.Contains(got.stderr, "no repository") {
		t.Errorf("no repository yet: %d %s", got.code, got.stderr)
	}
	admin.run("repo", "init")
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	admin.run("repo", "key", "add", "--writer", "--recipient", id.Recipient().String(), "--label", "web1")

	data := randomImage(1, 40<<20)
	clear(data[20<<20 : 24<<20])
	image := writeFile(t, "disk.raw", string(data))
	d.run("volume", "import", "web1", image)
	writer := &repo{t: t, dir: web1.dir, flags: append(web1.flags, "--identity", writeFile(t, "writer", id.String()+"\n"))}
	var first, second backedUp
	writer.json(&first, append([]string{"run", "web1"}, endpoint...)...)
	var shown struct{ Snapshots int }
	if d.json(&shown, "volume", "show", "web1"); shown.Snapshots != 0 {
		t.Errorf("a run that can only write left %d snapshots, which no other can begin from", shown.Snapshots)
	}
	writer.json(&second, "run", "--file", image)
	if second.NewBytes != 0 {
		t.Errorf("%d bytes of the image are new, which the volume was made of", second.NewBytes)
	}
	var list []backedUp
	if admin.json(&list, "list"); len(list) != 2 {
		t.Errorf("there are %+v", list)
	}
	for _, who := range []*repo{admin, mirror} {
		if !bytes.Equal(who.restored(first.Backup), data) {
			t.Error("a backup differs from what was backed up")
		}
	}
	admin.run("repo", "verify", "--read-data")
	var third struct {
		Parent    string
		ReadBytes *uint64
	}
	admin.run(append([]string{"run", "web1"}, endpoint...)...)
	admin.json(&third, append([]string{"run", "web1"}, endpoint...)...)
	if third.Parent == "" || third.ReadBytes == nil || *third.ReadBytes != 0 {
		t.Errorf("nothing has changed, and the third backup is %+v", third)
	}
	usb := newRepo(t)
	mirror.run("copy", first.Backup, "--to", usb.dir)
	if !bytes.Equal(usb.restored("latest"), data) {
		t.Error("a copy differs")
	}

	admin.run("prune")
	before := h.packs("vms")
	for _, c := range []struct {
		who  *repo
		code int
		says string
		args []string
	}{
		{web1, 4, "not for web1", []string{"list"}},
		{web1, 4, "not for web1", []string{"restore", first.Backup, "--to-file", filepath.Join(t.TempDir(), "x")}},
		{web1, 4, "not for web1", []string{"prune", "--alone"}},
		{web1, 4, "not for web1", []string{"repo", "key", "add", "--recipient", id.Recipient().String()}},
		{writer, 4, "not for web1", []string{"forget", first.Backup}},
		{mirror, 4, "not for mirror", []string{"run", "--file", writeFile(t, "other.raw", string(randomImage(2, 1<<20)))}},
		{mirror, 4, "not for mirror", []string{"forget", first.Backup}},
		{mirror, 4, "not for mirror", []string{"bench", "--most", "16MiB", "--requests", "1", "--time", "1s"}},
		{admin, 4, "kept until", []string{"forget", first.Backup}},
		{admin, 4, "not empty", []string{"repo", "init"}},
	} {
		if got := c.who.try(c.args...); got.code != c.code || !strings.Contains(got.stderr, c.says) {
			t.Errorf("%v: %d %s; want %d and %q", c.args, got.code, got.stderr, c.code, c.says)
		}
	}
	var ruled struct{ Forgotten, Kept []struct{ Name string } }
	if admin.json(&ruled, "forget", "--keep-last", "1"); len(ruled.Forgotten) != 0 || len(ruled.Kept) != 4 {
		t.Errorf("a rule forgot %+v", ruled)
	}
	admin.run("prune", "--alone")
	if after := h.packs("vms"); after != before {
		t.Errorf("%d packs of %d are left", after, before)
	}
	if left := admin.run("list"); strings.Count(left, "\n") != 5 {
		t.Errorf("of four backups there are:\n%s", left)
	}
	if !strings.Contains(h.log.String(), "a client of a repository was refused something") {
		t.Error("its log does not say that somebody was refused")
	}

	metrics := execute(t, nil, "curl", "-s", "--unix-socket", h.dir+"/hvd.sock", "http://hvd/metrics").stdout
	for _, want := range []string{`hv_repository_stored_bytes_total{repository="vms"} `, `hv_repository_refused_total{repository="vms"} `} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics do not have %s", want)
		}
	}

	h.refusesStrangers(admin, web1)
	newDaemon(t, "--repository-listen", h.listen).refusesToStart(2, "repository.cert")
}

// refusesStrangers tries what must not work, and looks at what is said to it.
func (h *repositoryHost) refusesStrangers(admin, web1 *repo) {
	h.t.Helper()
	stranger := certtest.New(h.t, "strangers")
	for _, c := range []struct {
		code  int
		says  string
		place string
		flags []string
	}{
		{2, "--tls-cert", admin.dir, nil},
		{2, "hvd://HOST", "hvd://" + h.listen, admin.flags},
		{4, "certificate", admin.dir, h.certificates(stranger, "admin")},
		{4, "repository.peers", admin.dir, h.certificates(h.authority, "web2")},
		{4, "repository.peers", "hvd://" + h.listen + "/other", web1.flags},
		{6, "cannot be reached", "hvd://" + freePort(h.t, "127.0.0.1") + "/vms", admin.flags},
	} {
		if got := (&repo{t: h.t, dir: c.place, passwords: admin.passwords, flags: c.flags}).try("list"); got.code != c.code || !strings.Contains(got.stderr, c.says) {
			h.t.Errorf("%s %v: %d %s; want %d and %q", c.place, c.flags, got.code, got.stderr, c.code, c.says)
		}
	}
}

// Without repository.keep what is forgotten goes.
func TestBackupHostPrune(t *testing.T) {
	h := startRepositoryHost(t, "admin=all")
	r := &repo{t: t, dir: "hvd://" + h.listen + "/vms", passwords: writeFile(t, "password", "x\n"), flags: h.certificates(h.authority, "admin")}
	r.run("repo", "init")
	var gone, kept backedUp
	r.json(&gone, "run", "--file", writeFile(t, "a.raw", string(randomImage(1, 20<<20))))
	data := randomImage(2, 3<<20)
	r.json(&kept, "run", "--file", writeFile(t, "b.raw", string(data)))
	r.run("forget", gone.Backup)
	before := h.packs("vms")
	r.run("prune", "--alone")
	if after := h.packs("vms"); after >= before {
		t.Errorf("of %d packs %d are left", before, after)
	}
	r.run("repo", "verify", "--read-data")
	if !bytes.Equal(r.restored(kept.Backup), data) {
		t.Error("what was kept differs")
	}
	r.run("bench", "--most", "32MiB", "--requests", "1,2", "--time", "1s")
	files := t.TempDir()
	if err := os.WriteFile(filepath.Join(files, "hvd.yaml"), []byte("listen: off\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.run("run", "--files", "web1.conf", files)
	back := filepath.Join(t.TempDir(), "back")
	r.run("recover", "--files-to", back, "web1.conf")
	if got, err := os.ReadFile(filepath.Join(back, "web1.conf", files, "hvd.yaml")); err != nil || string(got) != "listen: off\n" {
		t.Errorf("recovered %q, %v", got, err)
	}

	// A disk that is not mounted keeps no guest waiting, and is said.
	h.stop()
	if err := os.Rename(h.folder, h.folder+".away"); err != nil {
		t.Fatal(err)
	}
	h.start()
	var status struct{ Problems []string }
	if h.json(&status, "status"); len(status.Problems) != 1 || !strings.Contains(status.Problems[0], "repositories") {
		t.Errorf("without the folder status has %q", status.Problems)
	}
	if err := os.Rename(h.folder+".away", h.folder); err != nil {
		t.Fatal(err)
	}
	r.run("list")
	if h.json(&status, "status"); len(status.Problems) != 0 {
		t.Errorf("with it status has %q", status.Problems)
	}
}

// Rights of several rules add up: who may append and read backs up what has changed. Policies and copies find their certificates in the environment.
func TestBackupHostFromTheEnvironment(t *testing.T) {
	h := startRepositoryHost(t, "both=append:vms,both=read:vms,pruner=all:vms,other=all:copies")
	passwords := writeFile(t, "password", "x\n")
	at := func(name string) *repo {
		return &repo{t: t, dir: "hvd://" + h.listen + "/" + name, passwords: passwords, flags: []string{"--endpoint", "unix:" + h.dir + "/hvd.sock"}}
	}
	environment := func(prefix, name string) {
		flags := h.certificates(h.authority, name)
		for i, variable := range []string{"TLS_CERT", "TLS_KEY", "TLS_CA"} {
			t.Setenv(prefix+variable, flags[2*i+1])
		}
	}
	vms, copies := at("vms"), at("copies")
	environment("HV_BACKUP_", "other")
	copies.run("repo", "init")
	environment("HV_BACKUP_", "both")
	vms.run("repo", "init") // as long as there is none

	h.write(h.disk("web1", "40M"), "write -P 7 3M 1M", "flush")
	vms.run("run", "web1")
	h.write(h.uri("web1"), "write -P 8 20M 64k", "flush")
	var second struct {
		Backup, Parent string
		ReadBytes      uint64
	}
	if vms.json(&second, "run", "web1"); second.Parent == "" || second.ReadBytes > 1<<20 {
		t.Errorf("64 KiB have changed, and the backup is %+v", second)
	}
	if got := vms.try("forget", second.Backup); got.code != 4 || !strings.Contains(got.stderr, `"append+read"`) {
		t.Errorf("who may not delete forgets: %d %s", got.code, got.stderr)
	}

	environment("HV_TO_", "other")
	t.Setenv("HV_BACKUP_POLICIES", filepath.Join(t.TempDir(), "policies"))
	if got := vms.try("policy", "set", "nightly", "web1", "--every", "1d", "--tls-cert", "x"); got.code != 2 || !strings.Contains(got.stderr, "HV_BACKUP_TLS_CERT") {
		t.Errorf("a policy with a certificate: %d %s", got.code, got.stderr)
	}
	vms.run("policy", "set", "nightly", "web1", "--every", "1d", "--copy-to", copies.dir)
	vms.run("policy", "run", "nightly")
	environment("HV_BACKUP_", "other")
	want := h.exported("web1")
	if got := copies.restored("latest"); !bytes.Equal(got, want) {
		t.Error("what the policy has copied differs")
	}
	environment("HV_BACKUP_", "pruner")
	vms.run("forget", "--keep-last", "1")
	vms.run("prune", "--alone")
	if got := vms.restored("latest"); !bytes.Equal(got, want) {
		t.Error("what is left differs")
	}
}

// A client that opens more connections than it may have is told so, and another one is served all the same.
func TestBackupHostConnections(t *testing.T) {
	h := startRepositoryHost(t, "greedy=read,other=read")
	ask := func(name string) (*tls.Conn, int) {
		conn, err := tls.Dial("tcp", h.listen, &tls.Config{RootCAs: h.authority.Pool(), ServerName: "localhost", Certificates: []tls.Certificate{h.authority.Client(name)}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "GET /v1/repositories/vms HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		return conn, answer.StatusCode
	}
	first, status := ask("greedy")
	for n := 1; status == http.StatusNotFound; n++ {
		if n > 64 {
			t.Fatal("there is no end")
		}
		_, status = ask("greedy")
	}
	if status != http.StatusTooManyRequests {
		t.Errorf("one connection too many: status %d", status)
	}
	if _, status = ask("other"); status != http.StatusNotFound {
		t.Errorf("another client: status %d", status)
	}
	_ = first.Close()
	for deadline := time.Now().Add(patience); ; {
		if _, status = ask("greedy"); status == http.StatusNotFound {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a connection that was closed still counts")
		}
	}
}

// SIGKILL of the host while a backup is stored there costs tries; of both, another run, which finds what is there.
func TestBackupHostKilled(t *testing.T) {
	t.Parallel() // it waits, as the rate of its backups is bounded
	h := startRepositoryHost(t, "admin=all")
	r := &repo{t: t, dir: "hvd://" + h.listen + "/vms", passwords: writeFile(t, "password", "x\n"), flags: h.certificates(h.authority, "admin")}
	r.run("repo", "init")
	data := randomImage(3, 96<<20)
	image := writeFile(t, "disk.raw", string(data))
	begin := func() (*exec.Cmd, *bytes.Buffer) {
		var said bytes.Buffer
		cmd := exec.Command(backupPath, r.args("run", "--file", image, "--limit-rate", "16MiB")...)
		cmd.Stdout, cmd.Stderr = io.Discard, &said
		before := h.packs("vms")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		for deadline := time.Now().Add(patience); h.packs("vms") == before; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("no pack is stored: %s", said.String())
			}
		}
		return cmd, &said
	}
	cmd, _ := begin()
	time.Sleep(300 * time.Millisecond) // in the middle of the next pack
	h.kill()
	_ = cmd.Process.Signal(syscall.SIGKILL)
	_ = cmd.Wait()
	h.start()
	stored := h.packs("vms")

	cmd, said := begin()
	time.Sleep(300 * time.Millisecond)
	h.kill()
	h.start()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("the host was gone for a moment, and the backup failed: %v: %s", err, said.String())
	}
	if stored == 0 || !bytes.Equal(r.restored("latest"), data) {
		t.Errorf("%d packs of the first try; or the backup differs", stored)
	}
	var again backedUp
	if r.json(&again, "run", "--file", image); again.NewBytes != 0 {
		t.Errorf("once more, and %d B are new", again.NewBytes)
	}
	r.run("repo", "verify", "--read-data")
}
