package e2e

import (
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// ranMachines is what `policy run -o json` prints of a policy of machines.
type ranMachines struct {
	State struct {
		Backups       []string
		Error, Damage string
		Failures      int
		Tests         []struct {
			Backups       []string
			Answer, Error string
		}
	}
}

// policyMachine is a machine that boots from its second disk, and a policy of it that backs up the policies, too.
type policyMachine struct {
	*machines
	folder string
}

func newPolicyMachine(t *testing.T, more ...string) *policyMachine {
	t.Helper()
	needs(t, "qemu-system-x86_64")
	m := &policyMachine{newMachines(t), filepath.Join(t.TempDir(), "policies")}
	m.repo.env = append(m.repo.env, "HV_BACKUP_POLICIES="+m.folder)
	m.run("volume", "create", "shop-data", "--size", "8M")
	m.run("volume", "import", "shop", writeFile(t, "shop.raw", bootable("\r\nshop login: \x00")))
	m.lv.Define(`<domain type='qemu'><name>shop</name><uuid>` + machineUUID + `</uuid><memory unit='MiB'>64</memory><os><type arch='x86_64' machine='pc'>hvm</type></os><devices>
<disk type='network' device='disk'><driver name='qemu' type='raw'/>` + m.source("shop-data") + `<target dev='vda' bus='virtio'/></disk>
<disk type='network' device='disk'><driver name='qemu' type='raw'/>` + m.source("shop") + `<target dev='vdb' bus='virtio'/><boot order='1'/></disk>
</devices></domain>`)
	args := append([]string{"policy", "set", "nightly", "--domain", "shop", "--every", "1d", "--keep-last", "2", "--files", "host1.conf=" + m.folder}, more...)
	if got := m.backup(args...); got.code != 0 {
		t.Fatal(got.stderr)
	}
	return m
}

// policy runs the policy, which has to end with a code.
func (m *policyMachine) policy(code int) ranMachines {
	m.t.Helper()
	got := executeWith(m.t, m.repo.env, nil, backupPath, "policy", "run", "nightly", "-o", "json")
	var ran []ranMachines
	if err := json.Unmarshal([]byte(got.stdout), &ran); err != nil || got.code != code || len(ran) != 1 {
		m.t.Fatalf("policy run ends with %d, want %d, and prints %s, %v: %s", got.code, code, got.stdout, err, got.stderr)
	}
	return ran[0]
}

// A policy of a machine does what `run --domain` does, boots it as its definition says, copies and forgets all of it, and tells what goes wrong.
func TestMachinePolicy(t *testing.T) {
	t.Parallel() // it waits for machines
	h := new(heard)
	hook := httptest.NewServer(h)
	defer hook.Close()
	other := newRepo(t)
	m := newPolicyMachine(t, "--test-restore", "weekly", "--test-timeout", "60s", "--verify-every", "1d", "--copy-to", other.dir, "--copy-password-file", other.passwords, "--webhook-file", writeFile(t, "hook", hook.URL+"/secret\n"))
	if text := string(contents(t, filepath.Join(m.folder, "nightly.json"))); !strings.Contains(text, `"version": 2`) || !strings.Contains(text, m.lv.URI) { // an older program refuses it, and the timer has other variables
		t.Errorf("the policy is stored as %s", text)
	}
	first := m.policy(0)
	if s := first.State; len(s.Backups) != 4 || len(s.Tests) != 1 || s.Tests[0].Answer != "shop login:" || s.Tests[0].Error != "" || s.Damage != "" {
		t.Errorf("the first run: %+v", s)
	}
	for range 2 {
		m.policy(0)
	}
	kinds := func(r *repo) map[string]int {
		t.Helper()
		var all []struct {
			Source struct{ Kind string }
		}
		r.json(&all, "list", "--tag", "policy:nightly")
		count := make(map[string]int)
		for _, one := range all {
			count[one.Source.Kind]++
		}
		return count
	}
	if left := kinds(m.repo); left["machine"] != 2 || left["volume"] != 4 || left["files"] != 2 {
		t.Errorf("kept are %v", left)
	}
	if copies := kinds(other); copies["machine"] != 3 || copies["volume"] != 6 {
		t.Errorf("copied are %v", copies)
	}
	h.expect(t)
	m.lv.Stop()
	if s := m.policy(1).State; s.Failures != 1 || !strings.Contains(s.Error, "libvirtd") {
		t.Errorf("without libvirt: %+v", s)
	}
	h.expect(t, "failed")
	m.lv.Run()
	m.policy(0)
	h.expect(t, "well")

	var shown struct {
		Domains []string
		Connect string
	}
	m.backupJSON(&shown, "policy", "show", "nightly")
	if len(shown.Domains) != 1 || shown.Domains[0] != "shop" || shown.Connect != m.lv.URI {
		t.Errorf("show says %+v", shown)
	}
	for _, c := range []struct{ args, want string }{
		{"policy list", "domain:shop"}, {"policy show nightly", "shop login:"}, {"policy show nightly", "domain:shop"},
		{"__complete policy set nightly --domain ", "shop"}, {"__complete policy show ", "nightly"}, {"__complete policy set nightly --domain shop --every 1d ", ":4"},
	} {
		if got := executeWith(t, m.repo.env, nil, backupPath, strings.Split(c.args, " ")...); got.code != 0 || !strings.Contains(got.stdout, c.want) || strings.HasSuffix(c.args, "1d ") && strings.Contains(got.stdout, "shop") {
			t.Errorf("%s prints %q, want %q: %s", c.args, got.stdout, c.want, got.stderr)
		}
	}
	for _, args := range []string{
		"--domain shop web1", "--domain shop @shop", "--domain shop --guest-agent shop=/x", "web1 --connect qemu:///system", "--domain shop --connect qemu+ssh://far/system", "--domain ,", "",
		"--domain shop --test-restore weekly --test-guest shop,shop-data",
	} {
		if got := m.backup(append([]string{"policy", "set", "odd", "--every", "1d"}, strings.Fields(args)...)...); got.code != 2 {
			t.Errorf("policy set %s: %+v", args, got)
		}
	}
	m.testsOfMachines()
}

// testsOfMachines boots a machine's backup by hand.
func (m *policyMachine) testsOfMachines() {
	m.t.Helper()
	var volume, machine struct{ Name string }
	m.repo.json(&volume, "show", "latest:shop")
	m.repo.json(&machine, "show", "latest:domain:shop")
	if got := m.repo.test(0, "latest:domain:shop"); !got.Passed || got.Machine != machine.Name || len(got.Backups) != 2 || got.Backups[0] != volume.Name {
		m.t.Errorf("booted %+v, want %s first", got, volume.Name)
	}
	for _, args := range []string{"latest:domain:shop shop-data", "latest:host1.conf"} {
		if got := m.repo.try(append([]string{"test-restore"}, strings.Fields(args)...)...); got.code != 2 {
			m.t.Errorf("test-restore %s: %+v", args, got)
		}
	}
}

// A host that is gone comes back with its policies of machines, and these go on with the machines.
func TestRecoverMachinePolicy(t *testing.T) {
	t.Parallel() // it waits for machines
	m := newPolicyMachine(t)
	if s := m.policy(0).State; len(s.Backups) != 4 {
		t.Fatalf("%+v", s)
	}
	m.lv.Virsh("undefine", "shop")
	for _, volume := range []string{"shop", "shop-data"} {
		m.run("volume", "detach", volume)
		m.run("volume", "delete", volume, "--yes")
	}
	if err := os.Rename(m.folder, m.folder+".gone"); err != nil {
		t.Fatal(err)
	}
	to := t.TempDir()
	var all []struct{ Source, Kind, State string }
	m.backupJSON(&all, "recover", "--files-to", to, "--domains")
	for _, one := range all {
		if one.State != "restored" {
			t.Errorf("recovered %+v", one)
		}
	}
	if err := os.Rename(filepath.Join(to, "host1.conf", m.folder), m.folder); err != nil {
		t.Fatal(err)
	}
	if got := executeWith(t, m.repo.env, nil, backupPath, "policy", "list"); got.code != 0 || !strings.Contains(got.stdout, "domain:shop") {
		t.Errorf("policy list: %+v", got)
	}
	if s := m.policy(0).State; len(s.Backups) != 4 || s.Error != "" {
		t.Errorf("it goes on with %+v", s)
	}
}
