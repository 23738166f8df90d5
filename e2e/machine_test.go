package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/internal/libvirttest"
)

const machineUUID = "6f0c2f3e-1111-4222-8333-444455556666"

// firmware returns the code of OVMF and the template of its variables.
func firmware(t *testing.T) (code, vars string) {
	t.Helper()
	for _, kind := range []string{"", "_4M"} {
		code, vars = "/usr/share/OVMF/OVMF_CODE"+kind+".fd", "/usr/share/OVMF/OVMF_VARS"+kind+".fd"
		if _, err := os.Stat(code); err == nil {
			return code, vars
		}
	}
	absent(t, "OVMF is not installed (Debian: apt install ovmf)")
	return "", ""
}

// machines is an hvd, a libvirtd, and a repository.
type machines struct {
	*daemon
	lv   *libvirttest.Daemon
	repo *repo
	t    *testing.T
}

func newMachines(t *testing.T) *machines {
	t.Helper()
	for program, from := range map[string]string{"libvirtd": "libvirt-daemon-system", "virsh": "libvirt-clients", "qemu-system-x86_64": "qemu-system-x86", "swtpm": "swtpm", "swtpm_setup": "swtpm-tools"} {
		if libvirttest.Find(program) == "" {
			absent(t, "%s is not installed (Debian: apt install %s)", program, from)
		}
	}
	m := &machines{daemon: newDaemon(t), lv: libvirttest.Start(t), repo: newRepo(t), t: t}
	for _, variable := range []string{"LIBVIRT_DEFAULT_URI", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"} { // where hv-backup looks for libvirt, and for what that keeps
		m.repo.env = append(m.repo.env, variable+"="+m.getenv(variable))
	}
	if err := os.Chmod(m.dir, 0o755); err != nil { // guests come to the sockets
		t.Fatal(err)
	}
	m.start()
	return m
}

// getenv is os.Getenv for who shall find this libvirtd.
func (m *machines) getenv(variable string) (value string) {
	for _, pair := range m.lv.Env { // the last one counts
		if is, ok := strings.CutPrefix(pair, variable+"="); ok {
			value = is
		}
	}
	return value
}

// source attaches a volume for guests and returns the source of a disk.
func (m *machines) source(volume string) string {
	m.t.Helper()
	var attached struct{ Socket string }
	m.json(&attached, "volume", "attach", volume, "--socket-per-volume", "--owner", m.lv.User(), "--mode", "0600")
	return fmt.Sprintf("<source protocol='nbd' name='%s'><host transport='unix' socket='%s'/></source>", volume, attached.Socket)
}

// backup runs hv-backup.
func (m *machines) backup(args ...string) result {
	m.t.Helper()
	return m.repo.try(append(args, m.where()...)...)
}

func (m *machines) where() []string { return []string{"--endpoint", "unix:" + m.dir + "/hvd.sock"} }

func (m *machines) backupJSON(into any, args ...string) {
	m.t.Helper()
	m.repo.json(into, append(args, m.where()...)...)
}

// machineBackup is what `run` prints of a backup.
type machineBackup struct {
	Backup, Kind, Source, Consistency string
	FrozenSeconds                     float64
}

// shownMachine is what `show` prints of a machine.
type shownMachine struct {
	Name, UUID, State, Reason string
	MACs                      []string
	Disks                     []struct{ Target, Volume, VolumeUUID string }
	Left                      []struct{ Target, Why string }
	NVRAM, TPM                *struct{ State string }
}

// wholeMachine is a machine with everything: two volumes, a disk that is none, a seed, firmware with variables, a TPM, a password. Its tests are not parallel: two libvirtd might choose the same port for its screen.
type wholeMachine struct {
	*machines
	content     map[string][]byte // of its volumes
	seed, other string
	nvram, tpm  string
}

func newWholeMachine(t *testing.T) *wholeMachine {
	t.Helper()
	m := &wholeMachine{machines: newMachines(t), content: map[string][]byte{"web1": randomBytes(1, 24<<20), "web1-data": randomBytes(2, 8<<20)}}
	code, vars := firmware(t)
	disks := ""
	for i, volume := range []string{"web1", "web1-data"} {
		m.run("volume", "import", volume, writeFile(t, volume, string(m.content[volume])))
		disks += fmt.Sprintf("<disk type='network' device='disk'><driver name='qemu' type='raw'/>%s<target dev='vd%c' bus='virtio'/></disk>\n", m.source(volume), 'a'+i)
	}
	m.seed, m.other = filepath.Join(m.lv.Dir, "seed.iso"), filepath.Join(m.lv.Dir, "other.raw")
	for path, data := range map[string][]byte{m.seed: []byte("#cloud-config seed"), m.other: make([]byte, 1<<20)} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		m.lv.Own(path)
	}
	m.lv.Define(`<domain type='qemu'><name>web1</name><uuid>` + machineUUID + `</uuid><memory unit='MiB'>128</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type><loader readonly='yes' type='pflash'>` + code + `</loader><nvram template='` + vars + `'/></os>
<features><acpi/></features><devices>` + disks + `
<disk type='file' device='cdrom'><source file='` + m.seed + `'/><target dev='sda' bus='sata'/><readonly/></disk>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='` + m.other + `'/><target dev='vdz' bus='virtio'/></disk>
<interface type='user'><mac address='52:54:00:aa:bb:01'/><model type='virtio'/></interface>
<graphics type='vnc' port='-1' autoport='yes' passwd='s3cret'/>
<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
</devices></domain>`)
	m.nvram, m.tpm = filepath.Join(m.lv.Dir, "c/libvirt/qemu/nvram/web1_VARS.fd"), filepath.Join(m.lv.Dir, "c/libvirt/qemu/swtpm", machineUUID)
	return m
}

// restoredMachine is what `restore --to-domain` prints.
type restoredMachine struct {
	Domain, UUID, NVRAM, TPM string
	MACs, Media              []string
	Volumes                  []struct{ Volume, Was string }
}

// A backup of a machine says what it is of and what it lacks, without its secrets; how its disks came to rest; and is not mistaken for a volume of its name.
func TestMachineBackup(t *testing.T) {
	m := newWholeMachine(t)
	var done []machineBackup
	m.backupJSON(&done, "run", "--domain", "web1", "--tag", "off") // before the first start
	if len(done) != 3 || done[2].Kind != "machine" || done[2].Source != "web1" || done[2].Consistency != "offline" || done[0].Consistency != "offline" {
		t.Errorf("backed up %+v", done)
	}
	var shown struct {
		Name, Consistency string
		Source            struct{ Kind string }
		Machine           shownMachine
	}
	m.backupJSON(&shown, "show", "latest:domain:web1")
	if is := shown.Machine; is.State != "shut off" || is.NVRAM == nil || is.NVRAM.State != "missing" || is.TPM == nil || is.TPM.State != "missing" {
		t.Errorf("before the first start it is %+v", shown)
	}
	m.lv.Virsh("start", "web1")
	got := m.backup("run", "--domain", "web1", "-o", "json")
	if err := json.Unmarshal([]byte(got.stdout), &done); err != nil || got.code != 0 || !strings.Contains(got.stderr, "vdz") || !strings.Contains(got.stderr, "no channel for qemu-guest-agent") {
		t.Fatalf("%v %+v", err, got)
	}
	m.backupJSON(&shown, "show", "latest:domain:web1")
	is := shown.Machine
	if shown.Name != done[2].Backup || shown.Source.Kind != "machine" || shown.Consistency != "crash" || is.Name != "web1" || is.UUID != machineUUID || is.State != "running" || strings.Join(is.MACs, " ") != "52:54:00:aa:bb:01" ||
		len(is.Disks) != 2 || is.Disks[1].Volume != "web1-data" || len(is.Left) != 1 || is.Left[0].Target != "vdz" || is.NVRAM == nil || is.NVRAM.State != "stored" || is.TPM == nil || is.TPM.State != "stored" {
		t.Errorf("show says %+v", shown)
	}
	text := m.backup("show", "latest:domain:web1").stdout
	if !strings.Contains(text, "volume web1-data") || !strings.Contains(text, "52:54:00:aa:bb:01") || strings.Contains(text+got.stdout+got.stderr, "s3cret") {
		t.Errorf("show prints %s", text)
	}
	if !bytes.Equal(m.repo.restored("latest:web1"), m.content["web1"]) {
		t.Error("latest:web1 is not the volume")
	}
	folder := filepath.Join(t.TempDir(), "unpacked")
	m.repo.run("restore", "latest:domain:web1", "--to-dir", folder)
	if !bytes.Contains(contents(t, filepath.Join(folder, "domain.xml")), []byte("s3cret")) || !bytes.Equal(contents(t, filepath.Join(folder, "media/sda")), []byte("#cloud-config seed")) {
		t.Error("the archive lacks something")
	}
	for _, c := range []struct {
		code int
		says string
		args []string
	}{
		{3, "no domain", []string{"run", "--domain", "nobody"}},
		{2, "--domain finds", []string{"run", "--domain", "web1", "web1-data"}},
		{2, "--connect is for", []string{"run", "web1", "--connect", "qemu:///system"}},
		{2, "only this host", []string{"run", "--domain", "web1", "--connect", "qemu+ssh://far/system"}},
		{2, "--to-domain", []string{"restore", "latest:domain:web1", "--to-volume", "x"}},
		{2, "for --to-domain", []string{"restore", "latest:web1", "--to-volume", "x", "--start"}},
		{2, "no such volume", []string{"restore", "latest:web1", "--to-domain", "x", "--volume", "a=b"}},
		{2, "cannot be the name", []string{"restore", "latest:web1", "--to-domain", "../x"}},
		{3, "machine", []string{"restore", "latest:web1-data", "--to-domain", "x"}},
	} {
		if got := m.backup(c.args...); got.code != c.code || !strings.Contains(got.stderr, c.says) {
			t.Errorf("hv-backup %v ends with %d, want %d and %q: %s", c.args, got.code, c.code, c.says, got.stderr)
		}
	}
}

// A machine comes back beside what is there, with names, UUID and addresses of its own; never over it.
func TestMachineBeside(t *testing.T) {
	m := newWholeMachine(t)
	m.lv.Virsh("start", "web1")
	m.backup("run", "--domain", "web1")
	for _, c := range []struct {
		says string
		args []string
	}{
		{"volume", []string{"--to-domain"}},
		{"domain", []string{"--to-domain", "--volume", "web1=a", "--volume", "web1-data=b"}},
	} {
		if got := m.backup(append([]string{"restore", "latest:web1"}, c.args...)...); got.code != 4 || !strings.Contains(got.stderr, c.says) {
			t.Errorf("restore %v: %+v", c.args, got)
		}
	}
	before := m.lv.Virsh("list", "--all", "--name")
	var plan, made restoredMachine
	m.backupJSON(&plan, "restore", "latest:web1", "--to-domain", "web2", "--dry-run")
	if m.lv.Virsh("list", "--all", "--name") != before || m.try("volume", "show", "web2").code != 3 {
		t.Error("a dry run makes something")
	}
	m.backupJSON(&made, "restore", "latest:web1", "--to-domain", "web2")
	if made.Domain != "web2" || made.UUID == machineUUID || len(made.MACs) != 1 || made.MACs[0] == "52:54:00:aa:bb:01" || len(made.Volumes) != 2 || made.Volumes[0].Volume != "web2" || made.Volumes[1].Volume != "web2-data" {
		t.Errorf("restored %+v", made)
	}
	xml := m.lv.Virsh("dumpxml", "web2", "--security-info")
	for _, want := range []string{made.UUID, made.MACs[0], "s3cret", "name='web2-data'", "web2_VARS.fd", m.seed, m.other} {
		if !strings.Contains(xml, want) {
			t.Errorf("the definition lacks %s:\n%s", want, xml)
		}
	}
	// It starts with firmware variables, TPM and sockets of its own, but for the disk that was in no backup, which web1 holds.
	m.lv.Virsh("detach-disk", "web2", "vdz", "--config")
	m.lv.Virsh("start", "web2")
}

// Where a machine is gone, everything of it comes back as it was.
func TestMachineComesBack(t *testing.T) {
	m := newWholeMachine(t)
	m.lv.Virsh("start", "web1")
	m.lv.Virsh("destroy", "web1")
	if got := m.backup("run", "--domain", "web1"); got.code != 0 {
		t.Fatal(got.stderr)
	}
	vars, permanent := contents(t, m.nvram), contents(t, filepath.Join(m.tpm, "tpm2/tpm2-00.permall"))
	m.lv.Virsh("undefine", "web1", "--nvram")
	for _, volume := range []string{"web1", "web1-data"} {
		m.run("volume", "detach", volume)
		m.run("volume", "delete", volume, "--yes")
	}
	for _, path := range []string{m.tpm, m.seed} {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	var made restoredMachine
	m.backupJSON(&made, "restore", "latest:web1", "--to-domain")
	if made.UUID != machineUUID || made.MACs[0] != "52:54:00:aa:bb:01" || made.NVRAM != m.nvram || made.TPM != m.tpm || len(made.Media) != 1 {
		t.Fatalf("restored %+v", made)
	}
	if !bytes.Equal(contents(t, made.Media[0]), []byte("#cloud-config seed")) || !bytes.Equal(contents(t, m.nvram), vars) || !bytes.Equal(contents(t, filepath.Join(m.tpm, "tpm2/tpm2-00.permall")), permanent) {
		t.Error("a file came back otherwise")
	}
	for volume, want := range m.content {
		out := filepath.Join(t.TempDir(), volume)
		m.run("volume", "export", volume, out)
		if !bytes.Equal(contents(t, out), want) {
			t.Errorf("volume %s came back otherwise", volume)
		}
	}
	m.lv.Virsh("start", "web1")
	m.repo.run("repo", "verify", "--read-data")

	// A recovery of the host defines it on volumes that are there.
	m.lv.Virsh("destroy", "web1")
	m.lv.Virsh("undefine", "web1", "--keep-nvram", "--keep-tpm")
	if got := m.backup("recover"); got.code != 0 || !strings.Contains(got.stdout, "--domains") {
		t.Errorf("recover: %+v", got)
	}
	if got := m.backup("recover", "--domains", "--dry-run"); got.code != 0 || strings.Contains(m.lv.Virsh("list", "--all"), "web1") {
		t.Errorf("a dry run: %+v", got)
	}
	if got := m.backup("restore", "latest:web1", "--to-domain"); got.code != 4 || !strings.Contains(got.stderr, "--existing") {
		t.Errorf("over volumes: %+v", got)
	}
	got := m.backup("recover", "--domains")
	if got.code != 0 || !strings.Contains(m.lv.Virsh("list", "--all"), "web1") {
		t.Errorf("recover --domains: %+v", got)
	}
}

// With --live the machine is defined and runs while its volumes come; a restore that fails leaves nothing.
func TestMachineLive(t *testing.T) {
	t.Parallel() // it waits
	m := newMachines(t)
	disks := ""
	for i, volume := range []string{"db", "logs"} {
		m.run("volume", "import", volume, writeFile(t, volume, string(randomBytes(uint64Seed(i), 16<<20))))
		disks += fmt.Sprintf("<disk type='network' device='disk'><driver name='qemu' type='raw'/>%s<target dev='vd%c' bus='virtio'/></disk>\n", m.source(volume), 'a'+i)
	}
	m.lv.Define(`<domain type='qemu'><name>db</name><uuid>` + machineUUID + `</uuid><memory unit='MiB'>64</memory><os><type arch='x86_64' machine='pc'>hvm</type></os><devices>` + disks + `</devices></domain>`)
	if got := m.backup("run", "--domain", "db"); got.code != 0 {
		t.Fatal(got.stderr)
	}
	live := m.backup("restore", "latest:db", "--to-domain", "db2", "--live", "--start", "--limit-rate", "8MiB")
	if live.code != 0 || !strings.Contains(live.stdout, "domain db2 runs") {
		t.Fatalf("%+v", live)
	}
	for i, volume := range []string{"db2", "db2-logs"} {
		out := filepath.Join(t.TempDir(), volume)
		m.run("volume", "export", volume, out)
		if !bytes.Equal(contents(t, out), randomBytes(uint64Seed(i), 16<<20)) {
			t.Errorf("volume %s came back otherwise", volume)
		}
	}
	m.lv.Stop()
	if got := m.backup("restore", "latest:db", "--to-domain", "db3"); got.code != 1 || !strings.Contains(got.stderr, "libvirtd") {
		t.Errorf("without libvirt: %+v", got)
	}
	if got := m.backup("run", "--domain", "db"); got.code != 1 || !strings.Contains(got.stderr, "libvirtd") {
		t.Errorf("without libvirt: %+v", got)
	}
	m.lv.Run()
}

func uint64Seed(i int) int { return 100 + i }
