package e2e

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend/s3/s3test"
)

// served is hv-backup at work in the foreground.
type served struct {
	t      *testing.T
	cmd    *exec.Cmd
	said   *transcript
	exited chan error
	first  struct{ URI, Socket, Directory string } // what it printed with -o json
}

// serve starts a command that goes on until it is interrupted, and waits for its document.
func (r *repo) serve(args ...string) *served {
	r.t.Helper()
	s := &served{t: r.t, said: &transcript{}, exited: make(chan error, 1)}
	s.cmd = exec.Command(backupPath, r.args(append(args, "-o", "json")...)...)
	s.cmd.Stderr = s.said
	out, err := s.cmd.StdoutPipe()
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = s.cmd.Process.Kill() })
	err = json.NewDecoder(out).Decode(&s.first)
	go func() { s.exited <- s.cmd.Wait() }()
	if err != nil {
		r.t.Fatalf("hv-backup %s: %v\n%s", strings.Join(args, " "), err, s.said)
	}
	return s
}

// interrupt ends it as Ctrl-C does.
func (s *served) interrupt() {
	s.t.Helper()
	_ = s.cmd.Process.Signal(syscall.SIGINT)
	select {
	case err := <-s.exited:
		if err != nil {
			s.t.Errorf("an interrupt ends it with %v\n%s", err, s.said)
		}
	case <-time.After(patience):
		s.t.Fatalf("it does not end\n%s", s.said)
	}
}

// A backup is a disk for every NBD client there is, as it was backed up, with its holes; damage costs the blocks that it hit.
func TestBackupAttach(t *testing.T) {
	needs(t, "nbdinfo", "nbdcopy", "qemu-img", "qemu-io", "fio")
	r := newRepo(t)
	data := make([]byte, 96<<20)
	copy(data, noise(7, 20<<20))
	copy(data[64<<20:], noise(8, 9<<20+12345))
	image := writeFile(t, "disk.raw", string(data))
	r.run("run", "--file", image)
	socket := filepath.Join(shortDir(t), "disk.sock")
	s := r.serve("attach", "latest", "--socket", socket)
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 || s.first.Socket != socket {
		t.Errorf("the socket is %v, %v, and said to be %q", info, err, s.first.Socket)
	}
	if got := r.try("attach", "latest", "--socket", socket); got.code != 4 || !strings.Contains(got.stderr, "in use") {
		t.Errorf("a second one at the same socket: %d %s", got.code, got.stderr)
	}
	var wait sync.WaitGroup
	for n := range 3 {
		wait.Go(func() {
			copied := filepath.Join(t.TempDir(), "copied.raw")
			name, args := "nbdcopy", []string{s.first.URI, copied}
			if n == 2 {
				name, args = "qemu-img", []string{"convert", "-f", "raw", "-O", "raw", s.first.URI, copied}
			}
			if got := execute(t, nil, name, args...); got.code != 0 {
				t.Errorf("%s: %s", name, got.stderr)
			}
			if got, err := os.ReadFile(copied); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s copies %d other bytes, %v", name, len(got), err)
			}
		})
	}
	wait.Wait()
	if got := tool(t, "nbdinfo", s.first.URI); !strings.Contains(got, "is_read_only: true") || !strings.Contains(got, "can_multi_conn: true") {
		t.Errorf("nbdinfo says %s", got)
	}
	var extents []struct{ Offset, Length, Type int }
	if err := json.Unmarshal([]byte(tool(t, "nbdinfo", "--json", "--map", s.first.URI)), &extents); err != nil {
		t.Fatal(err)
	}
	zero := 0
	for _, e := range extents {
		if e.Type == 3 {
			zero += e.Length
			if len(bytes.Trim(data[e.Offset:e.Offset+e.Length], "\x00")) > 0 {
				t.Errorf("%+v is no hole", e)
			}
		}
	}
	if want := 96<<20 - 29<<20 - 12345; zero < want-300_000 || zero > want {
		t.Errorf("%d B are holes, of %d", zero, want)
	}
	tool(t, "fio", "--name=x", "--ioengine=nbd", "--uri="+s.first.URI, "--rw=randread", "--bs=4k", "--iodepth=32", "--size=32M", "--io_size=8M")
	if got := tryTool(t, "qemu-io", "-f", "raw", "-c", "write 0 4k", s.first.URI); !strings.Contains(got.stdout+got.stderr, "read-only") && got.code == 0 {
		t.Errorf("a write: %+v", got)
	}
	s.interrupt()
	if _, err := os.Lstat(socket); err == nil {
		t.Error("the socket is still there")
	}
	damagedAttach(t, r, data)
}

// When its terminal goes, what is served ends in order: nothing stays behind. That nobody reads what it says does not end it.
func TestBackupAttachEndsWithItsTerminal(t *testing.T) {
	r := newRepo(t)
	r.run("run", "--file", writeFile(t, "disk.raw", "some content"))
	signals := make(chan os.Signal, 1) // or, under nohup, the command would not be told either
	signal.Notify(signals, syscall.SIGHUP)
	defer signal.Stop(signals)
	nobody, says, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	_ = nobody.Close()
	cmd := exec.Command(backupPath, r.args("attach", "latest", "-o", "json")...)
	cmd.Stderr = says
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	_ = says.Close()
	var first struct{ Socket string }
	if err := json.NewDecoder(out).Decode(&first); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ends with %v", err)
	}
	if _, err := os.Lstat(filepath.Dir(first.Socket)); err == nil {
		t.Errorf("%s is still there", filepath.Dir(first.Socket))
	}
}

// damagedAttach damages one frame and reads around it.
func damagedAttach(t *testing.T, r *repo, data []byte) {
	t.Helper()
	var pack string
	_ = filepath.WalkDir(filepath.Join(r.dir, "packs"), func(path string, e fs.DirEntry, err error) error {
		if info, _ := e.Info(); err == nil && e.Type().IsRegular() && info.Size() > 15<<20 {
			pack = path
		}
		return err
	})
	flip(t, pack, 5<<20)
	s := r.serve("attach", "latest")
	got, bad := make([]byte, 0, len(data)), 0
	for off := 0; off < 20<<20; off += 1 << 20 {
		part := filepath.Join(t.TempDir(), "part")
		if out := tryTool(t, "qemu-img", "dd", "-f", "raw", "-O", "raw", "bs=1M", "skip="+strconv.Itoa(off>>20), "count="+strconv.Itoa(off>>20+1), "if="+s.first.URI, "of="+part); out.code != 0 {
			bad++
			got = append(got, data[off:off+1<<20]...)
			continue
		}
		got = append(got, contents(t, part)...)
	}
	if !bytes.Equal(got, data[:20<<20]) || bad == 0 || bad > 3 {
		t.Errorf("one frame of 2 MiB is damaged: %d MiB cannot be read, others are right: %v", bad, bytes.Equal(got, data[:20<<20]))
	}
	if said := s.said.String(); !strings.Contains(said, filepath.Base(pack)) || !strings.Contains(said, "frame 2 at ") {
		t.Errorf("it says %s", said)
	}
	s.interrupt()
	if _, err := os.Lstat(filepath.Dir(s.first.Socket)); err == nil {
		t.Error("the folder of the socket is still there")
	}
}

// A backup in object storage is a disk as well.
func TestBackupAttachFromObjectStorage(t *testing.T) {
	needs(t, "nbdcopy")
	g := s3test.Start(t)
	t.Setenv("AWS_REGION", "us-east-1")
	t.Setenv("AWS_ACCESS_KEY_ID", g.Access)
	t.Setenv("AWS_SECRET_ACCESS_KEY", g.Secret)
	r := &repo{t: t, dir: "s3+http://" + g.Host + "/" + g.Bucket + "/vms", passwords: writeFile(t, "password", "tr0ub4dor\n")}
	r.run("repo", "init")
	data := noise(14, 40<<20)
	r.run("run", "--file", writeFile(t, "disk.raw", string(data)))
	s := r.serve("attach", "latest", "--cache", "8MiB")
	path := filepath.Join(t.TempDir(), "copied.raw")
	tool(t, "nbdcopy", s.first.URI, path)
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
		t.Errorf("nbdcopy copies %d other bytes, %v", len(got), err)
	}
	s.interrupt()
}
