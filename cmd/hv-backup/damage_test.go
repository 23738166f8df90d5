package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// place is a repository in a folder, and the file with the identity that opens it.
type place struct {
	t        *testing.T
	dir      string
	identity string
	env      map[string]string
}

func newPlace(t *testing.T) *place {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	p := &place{t, filepath.Join(folder, "repository"), filepath.Join(folder, "identity"), nil}
	if err := os.WriteFile(p.identity, []byte(id.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.ends(exitDone, "", "repo", "init", "--recipient", id.Recipient().String())
	return p
}

// ends runs a command and wants that exit code, and to be told something of it. It returns what is printed.
func (p *place) ends(code int, says string, args ...string) string {
	p.t.Helper()
	var out, told bytes.Buffer
	a := newApp(strings.NewReader(""), &out, &told, func(name string) string { return p.env[name] })
	if got := run(context.Background(), a, append(args, "--repo", p.dir, "--identity", p.identity)); got != code || !strings.Contains(told.String(), says) {
		p.t.Errorf("hv-backup %s ends with %d, want %d, and says %q, want %q", strings.Join(args, " "), got, code, told.String(), says)
	}
	return out.String()
}

// backs up an image of its own and returns its backup's name.
func (p *place) backUp(seed uint64) string {
	p.t.Helper()
	rng := rand.New(rand.NewPCG(seed, 7))
	data := make([]byte, 300_000)
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	path := filepath.Join(p.t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		p.t.Fatal(err)
	}
	var made struct{ Backup string }
	if err := json.Unmarshal([]byte(p.ends(exitDone, "", "run", "--file", path, "-o", "json")), &made); err != nil {
		p.t.Fatal(err)
	}
	return made.Backup
}

func (p *place) objects(kind string) (paths []string) {
	p.t.Helper()
	err := filepath.WalkDir(filepath.Join(p.dir, kind), func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return paths
}

// A backup whose manifest cannot be read is in the way of prunes until it is forgotten, by its whole name. A copy of all backups says that it has left it out.
func TestUnreadableManifest(t *testing.T) {
	p, to := newPlace(t), newPlace(t)
	name := p.backUp(1)
	path := filepath.Join(p.dir, "manifests", name)
	whole, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, whole[:len(whole)-1], 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	copies := func(code int, says string) {
		t.Helper()
		out := p.ends(code, says, "copy", "--from", p.dir, "--to", to.dir, "--to-identity", to.identity, "-o", "json")
		var got struct{ Backups []struct{} }
		if err := json.Unmarshal([]byte(out), &got); err != nil || got.Backups == nil {
			t.Errorf("a copy prints %q, %v", out, err)
		}
	}
	copies(exitDamaged, "1 backup in --from cannot be read")
	p.ends(exitDamaged, "hv-backup forget NAME", "prune")
	p.ends(exitDamaged, name, "prune", "--despite-damage")
	p.ends(exitNotFound, "", "forget", name[:len(name)-1])
	if out := p.ends(exitDone, "", "forget", "--dry-run", name); !strings.Contains(out, "would forget "+name) {
		t.Errorf("a dry run says %q", out)
	}
	p.ends(exitDone, "", "forget", name)
	p.ends(exitDone, "", "prune")
	copies(exitDone, "")
}

// A pack that is lost is damage, whoever meets it. It is in the way of prunes until they are told to go on, or another backup of the same has stored it anew.
func TestLostPack(t *testing.T) {
	p, to := newPlace(t), newPlace(t)
	name := p.backUp(1)
	other := p.backUp(2)
	first := p.objects("packs")
	for _, path := range first {
		if err := os.Rename(path, path+".away"); err != nil { // such a name is no object's
			t.Fatal(err)
		}
	}
	p.ends(exitDamaged, "lost", "restore", name, "--to-file", filepath.Join(t.TempDir(), "restored.raw"))
	p.ends(exitDamaged, "lost", "diff", name, other)
	p.ends(exitDamaged, "lost", "copy", "--from", p.dir, "--to", to.dir, "--to-identity", to.identity)
	if out := p.ends(exitDamaged, "", "repo", "verify"); !strings.Contains(out, "backup "+name) || !strings.Contains(out, "backup "+other) {
		t.Errorf("verify does not say which backups are damaged: %s", out)
	}
	p.ends(exitDamaged, name, "prune")
	p.ends(exitDamaged, other, "prune", "--alone")
	p.ends(exitDone, "a part of backup "+name, "prune", "--despite-damage")
	for _, seed := range []uint64{1, 2} {
		p.backUp(seed)
	}
	if out := p.ends(exitDone, "", "restore", name, "--to-file", filepath.Join(t.TempDir(), "restored.raw")); out == "" {
		t.Error("nothing was restored")
	}
	p.ends(exitDone, "", "prune")
	p.ends(exitDone, "", "repo", "verify", "--read-data")
}

// An interrupt ends the question for a passphrase, and the terminal shows again what is typed.
func TestInterruptAtThePassphrase(t *testing.T) {
	p := newPlace(t)
	main, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("there are no terminals here: %v", err)
	}
	defer main.Close()
	number, err := unix.IoctlGetInt(int(main.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(main.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	before, err := term.GetState(int(terminal.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	asked, told := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		a := newApp(terminal, io.Discard, told, func(string) string { return "" })
		ended <- run(ctx, a, []string{"list", "--repo", p.dir})
		_ = told.Close()
	}()
	if _, err := asked.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	cancel()
	said, err := io.ReadAll(asked)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case code := <-ended:
		if code != 130 || !strings.Contains(string(said), "interrupted") {
			t.Errorf("it ends with %d and says %q", code, said)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("an interrupt does not end it")
	}
	if after, err := term.GetState(int(terminal.Fd())); err != nil || *after != *before {
		t.Errorf("the terminal is left as %+v, it was %+v, %v", after, before, err)
	}
}

// A repository is mended from another one with other keys, says what it does, and says so with its exit code.
func TestRepairCommand(t *testing.T) {
	p, to := newPlace(t), newPlace(t)
	name := p.backUp(1)
	p.ends(exitDone, "", "copy", "--from", p.dir, "--to", to.dir, "--to-identity", to.identity)
	if out := p.ends(exitDone, "", "repo", "repair"); !strings.Contains(out, "nothing is damaged") {
		t.Errorf("a repair of what is whole says %q", out)
	}
	for _, path := range p.objects("packs") {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	p.ends(exitUsage, "--from", "repo", "repair", "--missing-backups")
	p.ends(exitDamaged, "--dry-run", "repo", "repair", "--dry-run", "--from", to.dir, "--from-identity", to.identity)
	if out := p.ends(exitDamaged, "can be mended from here", "repo", "repair"); !strings.Contains(out, "B at 0") {
		t.Errorf("a repair without a source does not say what is lost: %q", out)
	}
	var got struct {
		Mended         []struct{ Chunks int }
		DamagedBackups []struct {
			Name      string
			LostBytes uint64
		}
	}
	out := p.ends(exitDone, "", "repo", "repair", "--from", to.dir, "--from-identity", to.identity, "-o", "json")
	if err := json.Unmarshal([]byte(out), &got); err != nil || len(got.Mended) != 1 || len(got.DamagedBackups) != 1 || got.DamagedBackups[0].Name != name || got.DamagedBackups[0].LostBytes != 0 {
		t.Errorf("a repair prints %s, %v", out, err)
	}
	p.ends(exitDone, "", "repo", "verify", "--read-data")
	p.ends(exitDone, "", "restore", name, "--to-file", filepath.Join(t.TempDir(), "restored.raw"))
}
