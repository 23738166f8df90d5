package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pulling is hv-backup while it restores a volume that is in use.
type pulling struct {
	t      *testing.T
	cmd    *exec.Cmd
	said   *transcript
	exited chan error
}

// restoreLive begins to restore the last backup to a volume, and returns when that can be attached.
func (r *repo) restoreLive(d *daemon, volume string, args ...string) *pulling {
	r.t.Helper()
	p := &pulling{t: r.t, said: &transcript{}, exited: make(chan error, 1)}
	p.cmd = exec.Command(backupPath, r.args(append([]string{"restore", "latest", "--to-volume", volume, "--live", "--endpoint", "unix:" + d.dir + "/hvd.sock"}, args...)...)...)
	p.cmd.Stdout, p.cmd.Stderr = p.said, p.said
	if err := p.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	go func() { p.exited <- p.cmd.Wait() }()
	for end := time.Now().Add(patience); !strings.Contains(p.said.String(), "can be attached now"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("the volume cannot be attached\n%s", p.said)
		}
	}
	return p
}

// end waits for it to end with a code.
func (p *pulling) end(code int, says string) {
	p.t.Helper()
	select {
	case <-p.exited:
	case <-time.After(patience):
		p.t.Fatalf("it does not end\n%s", p.said)
	}
	if got := p.cmd.ProcessState.ExitCode(); got != code || !strings.Contains(p.said.String(), says) {
		p.t.Errorf("hv-backup ended with %d, want %d and %q:\n%s", got, code, says, p.said)
	}
}

func (p *pulling) kill() {
	_ = p.cmd.Process.Kill()
	<-p.exited
}

// restoring is how far a live restore is, nil if there is none.
type restoring struct {
	Backup                     string
	ContentBytes, ReachedBytes uint64
	Pulling                    bool
	WaitingReads               int
}

func (d *daemon) restoring(volume string) *restoring {
	d.t.Helper()
	var v struct{ Restoring *restoring }
	d.json(&v, "volume", "show", volume)
	return v.Restoring
}

// liveDisk is a backup of a disk with data, zeroes and holes.
func liveDisk(t *testing.T, r *repo) []byte {
	t.Helper()
	data := make([]byte, 96<<20+512*3)
	copy(data, noise(31, 40<<20))
	copy(data[60<<20+1000:], noise(32, 20<<20))
	copy(data[len(data)-700:], noise(33, 700))
	r.run("run", "--file", writeFile(t, "disk.raw", string(data)))
	return data
}

func atText(at int) string { return bytesText(uint64(at)) }

// content is what a client reads of a volume.
func (d *daemon) content(volume string) []byte {
	d.t.Helper()
	path := filepath.Join(d.t.TempDir(), "content.raw")
	tool(d.t, "nbdcopy", d.uri(volume), path)
	return contents(d.t, path)
}

// guestWrites has a guest write, discard and zero, parts of blocks too if it shall, in what has come and in what has not.
func guestWrites(t *testing.T, uri string, data []byte, at int, parts bool) {
	t.Helper()
	commands := []string{"-f", "raw", "-d", "unmap"}
	do := func(command string) { commands = append(commands, "-c", command) }
	do("write -P 7 " + atText(at) + " 1M")
	copy(data[at:], bytes.Repeat([]byte{7}, 1<<20))
	do("discard " + atText(at+2<<20) + " 1M")
	do("write -z " + atText(at+4<<20) + " 1M")
	do("write -P 0 " + atText(at+6<<20) + " 300k")
	clear(data[at+2<<20 : at+3<<20])
	clear(data[at+4<<20 : at+5<<20])
	clear(data[at+6<<20 : at+6<<20+300<<10])
	if parts {
		do("write -P 9 " + atText(at+8<<20+512) + " 1024")
		copy(data[at+8<<20+512:], bytes.Repeat([]byte{9}, 1024))
		do("write -z " + atText(at+9<<20+512) + " 9k")
		clear(data[at+9<<20+512 : at+9<<20+512+9<<10])
	}
	do("flush")
	if got := execute(t, nil, "qemu-io", append(commands, uri)...); got.code != 0 {
		t.Fatal(got.stdout, got.stderr)
	}
}

// A volume can be used while its backup comes: what a guest reads first comes first, what it writes stays, and what needs the whole content is refused until it is there.
func TestLiveRestore(t *testing.T) {
	t.Parallel() // it waits
	needs(t, "qemu-io", "nbdcopy")
	d, r := startDaemon(t), newRepo(t)
	data := liveDisk(t, r)
	p := r.restoreLive(d, "web1", "--limit-rate", "3MiB")
	uri := d.attach("web1")
	began := time.Now()
	if got := execute(t, nil, "qemu-io", "-f", "raw", "-r", "-c", "read -v 70M 512", uri); got.code != 0 {
		t.Fatal(got.stderr)
	}
	t.Logf("the first read of what has not come took %v", time.Since(began))
	state := d.restoring("web1")
	if state == nil || !state.Pulling || state.ContentBytes != uint64(len(data)) || state.ReachedBytes > 60<<20 {
		t.Fatalf("while it is restored it is %+v", state)
	}
	guestWrites(t, uri, data, 1<<20, true)
	guestWrites(t, uri, data, 20<<20, true)
	guestWrites(t, uri, data, 62<<20, true)
	for _, args := range [][]string{
		{"snapshot", "create", "web1@s"}, {"volume", "clone", "web1", "web2"}, {"volume", "resize", "web1", "--size", "200M"}, {"volume", "export", "web1", filepath.Join(t.TempDir(), "x")},
		{"volume", "delete", "web1", "--yes"},
	} {
		if got := d.try(args...); got.code != 4 {
			t.Errorf("%v of a volume that is being restored: %d %s", args, got.code, got.stderr)
		}
	}
	if got := r.try("restore", "latest", "--to-volume", "web1", "--live", "--endpoint", "unix:"+d.dir+"/hvd.sock"); got.code != 4 || !strings.Contains(got.stderr, "already") {
		t.Errorf("a second one: %d %s", got.code, got.stderr)
	}
	d.settle() // zeroes become holes
	if state := d.restoring("web1"); state == nil {
		t.Error("it was restored too fast for this test")
	}
	if !bytes.Equal(d.content("web1"), data) {
		t.Error("while it is restored it has other content")
	}
	p.end(0, "restored ")
	if state := d.restoring("web1"); state != nil {
		t.Errorf("it is whole, and %+v", state)
	}
	if !bytes.Equal(d.content("web1"), data) {
		t.Error("it has other content in the end")
	}
	d.run("snapshot", "create", "web1@s")
	guestWrites(t, uri, data, 30<<20, true)
	d.settle()
	d.stop()
	d.start()
	if !bytes.Equal(d.content("web1"), data) {
		t.Error("after a restart it has other content")
	}
	var list []struct{ Name string }
	d.json(&list, "volume", "list")
	if len(list) != 1 {
		t.Errorf("there are the volumes %+v", list)
	}
}

// Who pulls and hvd itself are killed again and again while a guest writes; the same command goes on, another backup is refused, and nothing is lost.
func TestLiveRestoreKilled(t *testing.T) {
	t.Parallel() // it waits
	needs(t, "qemu-io", "nbdcopy")
	d, r := startDaemon(t), newRepo(t)
	other := writeFile(t, "other.raw", "another disk")
	var first backedUp
	r.json(&first, "run", "--file", other)
	data := liveDisk(t, r)
	p := r.restoreLive(d, "web1", "--limit-rate", "2MiB")
	uri := d.attach("web1")
	guestWrites(t, uri, data, 1<<20, true)
	time.Sleep(time.Second)
	p.kill()

	guestWrites(t, uri, data, 12<<20, false) // goes on, but for what needs the rest of a block
	p = r.restoreLive(d, "web1", "--limit-rate", "2MiB")
	guestWrites(t, uri, data, 63<<20, true)
	d.settle()
	d.kill()
	p.end(1, "the same command goes on")
	d.start()
	if state := d.restoring("web1"); state == nil || state.Pulling {
		t.Errorf("after a kill of hvd it is %+v", state)
	}
	if got := d.try("status"); !strings.Contains(got.stdout+got.stderr, "--live") {
		t.Errorf("status does not say that it stopped: %s%s", got.stdout, got.stderr)
	}
	if got := r.try("restore", first.Backup, "--to-volume", "web1", "--live", "--endpoint", "unix:"+d.dir+"/hvd.sock"); got.code != 4 || !strings.Contains(got.stderr, "delete the volume first") {
		t.Errorf("another backup: %d %s", got.code, got.stderr)
	}
	c := openNBD(t, d.nbdSocket(), "web1")
	read := make(chan error, 1)
	sector := make([]byte, 512)
	go func() { read <- c.read(sector, 38<<20) }()
	for end := time.Now().Add(patience); d.restoring("web1").WaitingReads == 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	p = r.restoreLive(d, "web1", "-o", "json")
	if err := <-read; err != nil || !bytes.Equal(sector, data[38<<20:38<<20+512]) {
		t.Errorf("the read that waited: %v", err)
	}
	p.end(0, `"resumed": true`)
	if !bytes.Equal(d.content("web1"), data) {
		t.Error("it has other content in the end")
	}
	d.kill()
	d.start()
	if !bytes.Equal(d.content("web1"), data) {
		t.Error("after a last kill it has other content")
	}
}

// What a guest writes is destaged while most of its region has not come: the region is cut as a whole then, and what is zero beside data is stored. That must not be taken for what has come.
func TestLiveRestoreDestaged(t *testing.T) {
	t.Parallel() // it waits
	needs(t, "qemu-io", "nbdcopy")
	d, r := startDaemon(t), newRepo(t)
	data := noise(34, 48<<20)
	r.run("run", "--file", writeFile(t, "disk.raw", string(data)))
	p := r.restoreLive(d, "web1", "--limit-rate", "1MiB")
	uri := d.attach("web1")
	p.kill() // nothing comes while the guest works
	for i, length := range []int{256 << 10, 5 << 20, 100 << 10, 6 << 20} {
		off := 16<<20 + i*(3<<20) + 300<<10
		qemuIO(t, uri, fmt.Sprintf("write -P %d %d %d", i+1, off, length), "flush")
		copy(data[off:], bytes.Repeat([]byte{byte(i + 1)}, length))
		d.settle()
	}
	p = r.restoreLive(d, "web1")
	p.end(0, "")
	if !bytes.Equal(d.content("web1"), data) {
		t.Error("it has other content in the end")
	}
}

// A restore that is given up goes with its volume; an interrupt says how to go on; a stop of hvd does not wait for reads that wait.
func TestLiveRestoreGivenUp(t *testing.T) {
	needs(t, "nbdcopy")
	d, r := startDaemon(t), newRepo(t)
	liveDisk(t, r)
	p := r.restoreLive(d, "web1", "--limit-rate", "1MiB")
	_ = p.cmd.Process.Signal(syscall.SIGINT)
	p.end(130, "the same command goes on")
	d.attach("web1")
	c := openNBD(t, d.nbdSocket(), "web1")
	block := bytes.Repeat([]byte{1}, 4096)
	for range 100 { // the server takes it for a client that has one request at a time
		if err := errors.Join(c.write(block, 0), c.read(block, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.send(nbdRead, 0, 70<<20, 512, nil); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); d.restoring("web1").WaitingReads == 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	for range 10 {
		if err := errors.Join(c.write(block, 8192), c.trim(16384, 4096), c.flush()); err != nil {
			t.Fatalf("behind a read that waits: %v", err)
		}
	}
	began := time.Now()
	d.stop()
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("hvd stops after %v, as long as it waits for reads in flight", took)
	}
	d.start()
	d.run("volume", "detach", "web1", "--force")
	p = r.restoreLive(d, "web1", "--limit-rate", "1MiB")
	d.run("volume", "delete", "web1", "--yes")
	p.end(1, "")
	if _, err := os.Stat(filepath.Join(d.dir, "control", "restores.json")); err != nil {
		t.Error(err)
	}
	d.stop()
	d.start()
	if state := d.try("volume", "show", "web1"); state.code != 3 {
		t.Errorf("the volume is still there: %d %s", state.code, state.stdout)
	}
}

// What the repository cannot give ends a restore with the code for damage; the volume stays, says so, and can be deleted.
func TestLiveRestoreDamaged(t *testing.T) {
	d, r := startDaemon(t), newRepo(t)
	liveDisk(t, r)
	_ = filepath.WalkDir(filepath.Join(r.dir, "packs"), func(path string, e os.DirEntry, err error) error {
		if info, _ := e.Info(); err == nil && e.Type().IsRegular() && info.Size() > 8<<20 {
			flip(t, path, 5<<20)
		}
		return err
	})
	p := r.restoreLive(d, "web1")
	p.end(5, "hv-backup repo verify")
	if state := d.restoring("web1"); state == nil || state.Pulling || state.ReachedBytes == state.ContentBytes {
		t.Errorf("it is %+v", state)
	}
	d.run("volume", "delete", "web1", "--yes")
	if list := d.try("volume", "list"); strings.Contains(list.stdout, "web1") {
		t.Error(list.stdout)
	}
}
