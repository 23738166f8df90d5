package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// mapped is one run of `nbdinfo --map --json`.
type mapped struct {
	Offset, Length uint64
	Type           uint32
}

func (d *daemon) nbdMap(export, context string) (runs []mapped) {
	d.t.Helper()
	out := tool(d.t, "nbdinfo", "--json", "--map="+context, d.uri(export))
	if err := json.Unmarshal([]byte(out), &runs); err != nil {
		d.t.Fatalf("nbdinfo --map=%s: %v: %s", context, err, out)
	}
	return runs
}

// equalMap wants the runs to be {length, type} pairs, one after the other.
func equalMap(t *testing.T, what string, got []mapped, want ...mapped) {
	t.Helper()
	at := uint64(0)
	for i := range want {
		want[i].Offset = at
		at += want[i].Length
	}
	if len(got) != len(want) {
		t.Errorf("%s: %v, want %v", what, got, want)
		return
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%s: %v, want %v", what, got, want)
			return
		}
	}
}

// Clients see holes, the depth that bytes come from and what changed since a snapshot, whether data is in the log or in segments; and snapshots as exports of their own.
func TestBlockStatus(t *testing.T) {
	const mib = 1 << 20
	d := newDaemon(t, "--store-destage-after", "1h")
	d.start()
	d.disk("v", "32MiB")
	io := func(commands ...string) {
		t.Helper()
		args := []string{"-f", "raw"}
		for _, c := range commands {
			args = append(args, "-c", c)
		}
		tool(t, "qemu-io", append(args, d.uri("v"))...)
	}
	io("write -P 1 1M 2M", "write -P 2 20M 1M", "flush")
	d.run("snapshot", "create", "v@s")
	io("write -P 3 2M 2M", "discard 20M 1M", "flush")
	for _, where := range []string{"in the log", "in segments"} {
		equalMap(t, "holes "+where, d.nbdMap("v", "base:allocation"), mapped{0, mib, 3}, mapped{0, 3 * mib, 0}, mapped{0, 28 * mib, 3})
		equalMap(t, "depth "+where, d.nbdMap("v", "qemu:allocation-depth"), mapped{0, mib, 0}, mapped{0, mib, 2}, mapped{0, 2 * mib, 1}, mapped{0, 28 * mib, 0})
		equalMap(t, "changes "+where, d.nbdMap("v", "qemu:dirty-bitmap:s"), mapped{0, 2 * mib, 0}, mapped{0, 2 * mib, 1}, mapped{0, 16 * mib, 0}, mapped{0, mib, 1}, mapped{0, 11 * mib, 0})
		equalMap(t, "holes of the snapshot "+where, d.nbdMap("v@s", "base:allocation"), mapped{0, mib, 3}, mapped{0, 2 * mib, 0}, mapped{0, 17 * mib, 3}, mapped{0, mib, 0}, mapped{0, 11 * mib, 3})
		d.settle()
	}
	var qemu []struct {
		Start, Length uint64
		Data          bool
	}
	out := tool(t, "qemu-img", "map", "--output=json", "-f", "raw", d.uri("v"))
	if err := json.Unmarshal([]byte(out), &qemu); err != nil || len(qemu) != 3 || !qemu[1].Data || qemu[1].Start != mib || qemu[1].Length != 3*mib {
		t.Errorf("qemu-img map: %v: %s", err, out)
	}
	// A copy takes only what is there, and a snapshot can be copied while the volume goes on.
	image := filepath.Join(t.TempDir(), "s.raw")
	tool(t, "nbdcopy", d.uri("v@s"), image)
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", image, d.uri("v@s"))
	if info, err := os.Stat(image); err != nil || info.Size() != 32*mib {
		t.Errorf("copy of the snapshot: %v", err)
	}
	if got := execute(t, nil, "qemu-io", "-f", "raw", "-c", "write 0 4k", d.uri("v@s")); got.code == 0 {
		t.Error("a snapshot took a write")
	}
	for _, export := range []string{"v@", "v@none", "none@s", "@s"} {
		if got := execute(t, nil, "nbdinfo", d.uri(export)); got.code == 0 {
			t.Errorf("export %q is there: %s", export, got.stdout)
		}
	}
}

// A client of a snapshot export that does nothing does not hold up the end of the volume's attachment.
func TestDetachEndsClientsOfSnapshots(t *testing.T) {
	d := startDaemon(t, "--nbd-drain-timeout", "1h") // who waits for it does not end
	d.disk("v", "16MiB")
	d.run("snapshot", "create", "v@s")
	idle := openNBD(t, d.nbdSocket(), "v@s")
	d.run("volume", "detach", "v", "--force")
	if err := idle.read(make([]byte, 512), 0); err == nil {
		t.Error("the snapshot is still served")
	}
}
