package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// increment is what `run -o json` prints.
type increment struct {
	Backup, Source, Parent string
	ReadBytes              *uint64
	NonZeroBytes, NewBytes uint64
}

// kept returns the snapshots of a volume that backups left.
func (d *daemon) kept(volume string) (names []string) {
	d.t.Helper()
	var list []struct{ Name string }
	d.json(&list, "snapshot", "list", volume)
	for _, s := range list {
		if strings.HasPrefix(s.Name, "backup-") {
			names = append(names, s.Name)
		}
	}
	return names
}

// The second backup of a volume reads what a guest has changed since the first and no more, has the content that a whole one has, and goes back to reading all when it must.
func TestIncrementalBackups(t *testing.T) {
	d, r := startDaemon(t), newRepo(t)
	endpoint := "unix:" + d.dir + "/hvd.sock"
	data := make([]byte, 100<<20)
	rng := rand.New(rand.NewPCG(21, 2))
	for i := range data[:60<<20] {
		data[i] = byte(rng.Uint32())
	}
	d.run("volume", "import", "web1", writeFile(t, "disk.raw", string(data)))
	run := func(args ...string) (b increment) {
		r.json(&b, append([]string{"run", "web1", "--endpoint", endpoint}, args...)...)
		return b
	}
	first := run()
	if first.Parent != "" || first.ReadBytes != nil || len(d.kept("web1")) != 1 {
		t.Errorf("the first backup is %+v, and %v are kept", first, d.kept("web1"))
	}
	uri := d.attach("web1")
	data = bytes.Clone(data)
	var commands []string
	write := func(pattern byte, off, length int) {
		commands = append(commands, "-c", fmt.Sprintf("write -P %d %d %d", pattern, off, length))
		copy(data[off:], bytes.Repeat([]byte{pattern}, length))
	}
	write(7, 30<<20, 256<<10)
	write(9, 70<<20+4096, 8192) // where nothing was
	write(8, 16<<20-4096, 8192) // over the end of a region
	commands = append(commands, "-c", "discard 40M 2M")
	clear(data[40<<20 : 42<<20])
	if got := execute(t, nil, "qemu-io", append(append([]string{"-f", "raw", "-d", "unmap"}, commands...), uri)...); got.code != 0 {
		t.Fatal(got.stderr)
	}
	second := run()
	if second.Parent != first.Backup || second.ReadBytes == nil || *second.ReadBytes > 4<<20 || second.NewBytes > 1<<20 {
		t.Errorf("about 2.3 MiB changed, and the second backup is %+v, and read %d", second, *second.ReadBytes)
	}
	if kept := d.kept("web1"); len(kept) != 1 || kept[0][16:] != second.Backup[:16] {
		t.Errorf("after the second backup, %s, there are %v", second.Backup, kept)
	}
	if !bytes.Equal(r.restored(second.Backup), data) {
		t.Fatal("the second backup has other content than the volume")
	}
	var whole increment
	// It is cut as a whole: chunks around what changed, of which the second backup has slices, are new.
	if whole = run("--full"); whole.Parent != "" || whole.NewBytes > 1<<20 || whole.NonZeroBytes < second.NonZeroBytes || whole.NonZeroBytes > second.NonZeroBytes+1<<20 {
		t.Errorf("all of it read again: %+v; before %+v", whole, second)
	}
	if !bytes.Equal(r.restored(whole.Backup), data) {
		t.Error("all of it read again has other content than the volume")
	}
	d.run("volume", "resize", "web1", "--size", "130M")
	data = append(data, make([]byte, 30<<20)...)
	third := run()
	if third.Parent != whole.Backup || *third.ReadBytes > 17<<20 {
		t.Errorf("after it grew: %+v, %d B read", third, *third.ReadBytes)
	}
	if !bytes.Equal(r.restored(third.Backup), data) {
		t.Error("after it grew the backup has other content")
	}
	r.run("forget", third.Backup)
	fourth := run()
	if fourth.Parent != "" {
		t.Errorf("its parent was forgotten, and it has %s", fourth.Parent)
	}
	for _, name := range d.kept("web1") {
		d.run("snapshot", "delete", "web1@"+name)
	}
	if fifth := run(); fifth.Parent != "" || fifth.NewBytes != 0 {
		t.Errorf("the snapshot was deleted, and it is %+v", fifth)
	}
	r.run("repo", "verify", "--read-data")

	r.run("restore", "latest:web1", "--to-volume", "web2", "--endpoint", endpoint)
	copied := filepath.Join(t.TempDir(), "web2.raw")
	d.run("volume", "export", "web2", copied)
	if got, err := os.ReadFile(copied); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the restored volume has other content: %v", err)
	}
	if got := r.try("restore", "latest:web1", "--to-volume", "web2", "--endpoint", endpoint); got.code != 4 {
		t.Errorf("restored over a volume: %d %s", got.code, got.stderr)
	}
}

// Several volumes, and groups, are backed up at one moment; one that cannot be does not keep the others from it.
func TestBackupsOfSeveralVolumes(t *testing.T) {
	d, r := startDaemon(t), newRepo(t)
	endpoint := "unix:" + d.dir + "/hvd.sock"
	for _, name := range []string{"a", "b"} {
		d.run("volume", "create", name, "--size", "20M")
	}
	var both []increment
	r.json(&both, "run", "a", "b", "--endpoint", endpoint)
	d.run("volume", "group", "set", "shop", "a", "b")
	var group []increment
	r.json(&group, "run", "@shop", "--endpoint", endpoint)
	if len(both) != 2 || len(group) != 2 || group[0].Parent == "" || !slices.ContainsFunc(both, func(b increment) bool { return b.Backup == group[0].Parent }) {
		t.Errorf("together %+v, then the group %+v", both, group)
	}
	silent := r.try("run", "a", "--guest-agent", "a="+t.TempDir()+"/missing", "-o", "json", "--endpoint", endpoint)
	if silent.code != 0 || !strings.Contains(silent.stderr, "after a power loss") || !strings.Contains(silent.stdout, `"consistency": "crash"`) {
		t.Errorf("the guest's agent is not there: %d %s %s", silent.code, silent.stdout, silent.stderr)
	}
	if group[0].Backup[:16] != group[1].Backup[:16] {
		t.Errorf("the backups of the group are of different moments: %+v", group)
	}
	if got := r.try("run", "a", "missing", "--endpoint", endpoint); got.code != 3 || len(d.kept("a")) != 1 {
		t.Errorf("a volume that is not there: %d %s, kept %v", got.code, got.stderr, d.kept("a"))
	}
	for _, args := range [][]string{{"run", "a", "@shop"}, {"run", "a@x", "b"}, {"run", "@"}, {"run", "a", "--guest-agent", "b=x"}, {"run", "a", "--guest-agent", "a"}} {
		if got := r.try(append(args, "--endpoint", endpoint)...); got.code != 2 {
			t.Errorf("%v: %d %s", args, got.code, got.stderr)
		}
	}
}

// The first backup of a clone reads what differs from the backup of what it was made from, or of another clone, also when the origin is gone; and what has nothing in common is read whole.
func TestFirstBackupOfAClone(t *testing.T) {
	d, r := startDaemon(t), newRepo(t)
	endpoint := "unix:" + d.dir + "/hvd.sock"
	rng := rand.New(rand.NewPCG(22, 2))
	data := make([]byte, 40<<20)
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	d.run("volume", "import", "base", writeFile(t, "disk.raw", string(data)))
	d.run("snapshot", "create", "base@golden")
	disks := map[string][]byte{}
	for i, name := range []string{"web1", "web2", "web3"} {
		d.run("volume", "clone", "base@golden", name)
		disk := bytes.Clone(data)
		off := (i + 1) << 20
		copy(disk[off:], bytes.Repeat([]byte{byte(i + 1)}, 300<<10))
		if got := execute(t, nil, "qemu-io", "-f", "raw", "-c", fmt.Sprintf("write -P %d %d %d", i+1, off, 300<<10), d.attach(name)); got.code != 0 {
			t.Fatal(got.stderr)
		}
		disks[name] = disk
	}
	d.run("volume", "resize", "web3", "--size", "60M")
	disks["web3"] = append(disks["web3"], make([]byte, 20<<20)...)
	d.run("volume", "import", "other", writeFile(t, "other.raw", strings.Repeat("other", 1<<18)))
	run := func(name string) (b increment) {
		r.json(&b, "run", name, "--endpoint", endpoint)
		return b
	}
	first := run("web1")
	if first.Parent != "" || first.ReadBytes != nil {
		t.Errorf("nothing was backed up before, and it is %+v", first)
	}
	second := run("web2")
	if second.Parent != first.Backup || second.ReadBytes == nil || *second.ReadBytes > 1<<20 || second.NewBytes > 1<<20 {
		t.Errorf("a clone that shares all but 600 KiB with another one: %+v", second)
	}
	d.run("volume", "delete", "base", "--yes")
	third := run("web3")
	if third.Parent == "" || *third.ReadBytes > 18<<20 { // the region that it grew in is read whole
		t.Errorf("after the origin was deleted: %+v", third)
	}
	if other := run("other"); other.Parent != "" || other.ReadBytes != nil {
		t.Errorf("it has nothing in common with the others, and is %+v", other)
	}
	for name, b := range map[string]increment{"web1": first, "web2": second, "web3": third} {
		if !bytes.Equal(r.restored(b.Backup), disks[name]) {
			t.Errorf("%s: the backup has other content than the volume", name)
		}
	}
	r.run("forget", first.Backup)
	if again := run("web2"); again.Parent != second.Backup || *again.ReadBytes != 0 {
		t.Errorf("the second backup of the clone: %+v", again)
	}
	if !bytes.Equal(r.restored(second.Backup), disks["web2"]) {
		t.Error("a backup does not outlive the one that it began from")
	}
	r.run("repo", "verify", "--read-data")
}
