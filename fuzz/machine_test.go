package fuzz

import (
	"bytes"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/backup/machine"
	"github.com/hyper-nixos/hyper-nixos/hypervisor"
)

// FuzzMachine reads what may be a backup of a machine; what is read is written again as the same.
func FuzzMachine(f *testing.F) {
	text, err := os.ReadFile("../backup/machine/testdata/machine.golden")
	if err != nil {
		f.Fatal(err)
	}
	golden, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := machine.Read(bytes.NewReader(b))
		allowed(t, err)
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := m.Write(&again); err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		if _, err := machine.Read(&again); err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
	})
}

// FuzzDomain changes what may be a definition of a domain: the result says what the change says, and a change of nothing changes nothing.
func FuzzDomain(f *testing.F) {
	f.Add("<domain type='kvm'><name>a</name><uuid>6f0c2f3e-1111-4222-8333-444455556666</uuid><os><nvram>/n</nvram></os><devices><disk type='network'><source protocol='nbd' name='a'><host transport='unix' socket='/s'/></source><target dev='vda'/></disk></devices></domain>")
	f.Fuzz(func(t *testing.T, text string) {
		d, err := hypervisor.Parse(text)
		allowed(t, err)
		if err != nil {
			return
		}
		if same, err := (hypervisor.Change{}).Apply(text); err != nil || same != text {
			t.Fatalf("no change makes %q, %v", same, err)
		}
		c := hypervisor.Change{Name: "b", NVRAM: "/m", Disks: map[string]hypervisor.Source{}}
		for _, disk := range d.Disks {
			c.Disks[disk.Target] = hypervisor.Source{Export: "e", Socket: "/t"}
		}
		changed, err := c.Apply(text)
		allowed(t, err)
		if err != nil {
			return
		}
		if got, err := hypervisor.Parse(changed); err != nil || got.Name != "b" {
			t.Fatalf("%q becomes %q, %v", text, changed, err)
		}
	})
}
