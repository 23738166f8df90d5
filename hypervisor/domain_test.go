package hypervisor

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

const definition = `<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web&amp;1</name>
  <uuid>6f0c2f3e-1111-4222-8333-444455556666</uuid>
  <genid>6f0c2f3e-1111-4222-8333-444455556667</genid>
  <metadata><x:y xmlns:x="urn:x"><x:name>web1</x:name></x:y></metadata>
  <sysinfo type='smbios'><system><entry name='uuid'>6f0c2f3e-1111-4222-8333-444455556666</entry><entry name='serial'>7</entry></system></sysinfo>
  <os><loader readonly='yes' type='pflash'>/code.fd</loader><nvram template='/vars.fd'>/var/lib/libvirt/qemu/nvram/web1_VARS.fd</nvram></os>
  <devices>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <auth username='u'><secret type='ceph' uuid='6f0c2f3e-1111-4222-8333-444455556666'/></auth>
      <source protocol='nbd' name='web1'>
        <host transport='unix' socket='/run/old.sock'/>
        <reconnect delay='30'/>
        <encryption format='luks'><secret type='passphrase' uuid='6f0c2f3e-1111-4222-8333-444455556666'/></encryption>
      </source>
      <backingStore type='file'><source file='/elsewhere'/></backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='network' device='disk'><source protocol='nbd' name='data'><host name='127.0.0.1' port='10809'/></source><target dev='vdb'/></disk>
    <disk type='file' device='cdrom'><source file='/seed.iso'/><target dev='sda'/><readonly/></disk>
    <disk type='file' device='cdrom'><target dev='sdb'/></disk>
    <interface type='bridge'><mac address='52:54:00:00:00:01'/></interface>
    <interface type='bridge'><mac address="52:54:00:00:00:02"></mac></interface>
    <graphics type='vnc' passwd='secret'/>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
  </devices>
  <qemu:commandline><qemu:arg value='-name'/></qemu:commandline>
</domain>
`

func TestParse(t *testing.T) {
	d, err := Parse(definition)
	if err != nil {
		t.Fatal(err)
	}
	if d.Type != "kvm" || d.Name != "web&1" || d.UUID != "6f0c2f3e-1111-4222-8333-444455556666" || strings.Join(d.MACs, " ") != "52:54:00:00:00:01 52:54:00:00:00:02" || d.Agent != AgentConnected || d.TPM != "2.0" {
		t.Errorf("%+v", d)
	}
	if !d.UEFI {
		t.Error("its firmware is taken for a BIOS")
	}
	if d.NVRAM != (NVRAM{true, "/var/lib/libvirt/qemu/nvram/web1_VARS.fd", "file"}) {
		t.Errorf("%+v", d.NVRAM)
	}
	want := []Disk{
		{Target: "vda", Device: "disk", Kind: "network", Bus: "virtio", Protocol: "nbd", Export: "web1", Transport: "unix", Socket: "/run/old.sock"},
		{Target: "vdb", Device: "disk", Kind: "network", Protocol: "nbd", Export: "data", Transport: "tcp", Host: "127.0.0.1", Port: "10809"},
		{Target: "sda", Device: "cdrom", Kind: "file", Path: "/seed.iso"},
		{Target: "sdb", Device: "cdrom", Kind: "file"},
	}
	if len(d.Disks) != len(want) {
		t.Fatalf("%+v", d.Disks)
	}
	for i := range want {
		if d.Disks[i] != want[i] {
			t.Errorf("%+v, want %+v", d.Disks[i], want[i])
		}
	}
}

// What a change names is changed; every other byte stays.
func TestChange(t *testing.T) {
	c := Change{
		Name: "web<2", UUID: "99999999-1111-4222-8333-444455556666", GenID: "88888888-1111-4222-8333-444455556666", NVRAM: "/n/web2.fd",
		MACs:  map[string]string{"52:54:00:00:00:01": "52:54:00:00:00:11", "52:54:00:00:00:02": "52:54:00:00:00:12"},
		Disks: map[string]Source{"vda": {Export: "web2", Socket: "/run/n'w.sock"}, "vdb": {Export: "data2", Socket: "/run/d.sock"}, "sda": {File: "/seed2.iso"}, "sdb": {File: "/none"}},
	}
	got, err := c.Apply(definition)
	if err != nil {
		t.Fatal(err)
	}
	want := definition
	for _, r := range [][2]string{
		{"<name>web&amp;1</name>", "<name>web&lt;2</name>"},
		{"<uuid>6f0c2f3e-1111-4222-8333-444455556666</uuid>", "<uuid>99999999-1111-4222-8333-444455556666</uuid>"},
		{"<genid>6f0c2f3e-1111-4222-8333-444455556667", "<genid>88888888-1111-4222-8333-444455556666"},
		{"<entry name='uuid'>6f0c2f3e-1111-4222-8333-444455556666", "<entry name='uuid'>99999999-1111-4222-8333-444455556666"},
		{">/var/lib/libvirt/qemu/nvram/web1_VARS.fd<", ">/n/web2.fd<"},
		{"<source protocol='nbd' name='web1'>\n        <host transport='unix' socket='/run/old.sock'/>\n        <reconnect delay='30'/>\n        <encryption format='luks'><secret type='passphrase' uuid='6f0c2f3e-1111-4222-8333-444455556666'/></encryption>\n      </source>",
			"<source protocol='nbd' name='web2'><host transport='unix' socket='/run/n&#39;w.sock'/><reconnect delay='30'/><encryption format='luks'><secret type='passphrase' uuid='6f0c2f3e-1111-4222-8333-444455556666'/></encryption></source>"},
		{"<source protocol='nbd' name='data'><host name='127.0.0.1' port='10809'/></source>", "<source protocol='nbd' name='data2'><host transport='unix' socket='/run/d.sock'/></source>"},
		{"<source file='/seed.iso'/>", "<source file='/seed2.iso'></source>"},
		{"<mac address='52:54:00:00:00:01'/>", "<mac address='52:54:00:00:00:11'/>"},
		{`<mac address="52:54:00:00:00:02">`, "<mac address='52:54:00:00:00:12'>"},
	} {
		if strings.Count(want, r[0]) != 1 {
			t.Fatalf("%q is not there once", r[0])
		}
		want = strings.Replace(want, r[0], r[1], 1)
	}
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if same, err := (Change{}).Apply(definition); err != nil || same != definition {
		t.Errorf("no change makes %s, %v", same, err)
	}
}

func TestChangeNVRAM(t *testing.T) {
	for from, want := range map[string]string{
		"<nvram/>":               "<nvram>/n</nvram>",
		"<nvram template='/t'/>": "<nvram template='/t'>/n</nvram>",
		"<nvram></nvram>":        "<nvram>/n</nvram>",
		"<nvram type='file'><source file='/o'/></nvram>":     "<nvram type='file'><source file='/n'/></nvram>",
		"<nvram type='block'><source dev='/o'/></nvram>":     "<nvram type='block'><source dev='/o'/></nvram>",
		"<nvram type='file' format='qcow2'>\n\t</nvram>":     "<nvram type='file' format='qcow2'><source file='/n'/></nvram>",
		"<loader>/l</loader><nvram>/a</nvram><boot dev=''/>": "<loader>/l</loader><nvram>/n</nvram><boot dev=''/>",
	} {
		around := func(os string) string {
			return "<domain><name>a</name><uuid>6f0c2f3e-1111-4222-8333-444455556666</uuid><os>" + os + "</os></domain>"
		}
		if got, err := (Change{NVRAM: "/n"}).Apply(around(from)); err != nil || got != around(want) {
			t.Errorf("%s becomes %s, %v", from, got, err)
		}
	}
}

// Only what has no namespace is libvirt's: what is noted beside it, under whatever name, is no device, and stays as it is.
func TestForeignElements(t *testing.T) {
	const foreign = `<x:disk xmlns:x='urn:x' type='file'><source file='/passwd'/><target dev='vda'/></x:disk><disk xmlns='urn:x' type='file'><source file='/passwd'/><target dev='vdb'/></disk>
<lease xmlns='urn:x'><disk><source file='/passwd'/><target dev='vdx'/></disk></lease><interface xmlns='urn:x'><mac address='52:54:00:00:00:01'/></interface>`
	text := strings.Replace(definition, "<devices>", "<devices>"+foreign, 1)
	text = strings.Replace(text, "<source protocol='nbd' name='web1'>", "<source protocol='nbd' name='web1' x:name='passwd' xmlns:x='urn:x'><x:host transport='unix' socket='/passwd'/>", 1)
	text = strings.Replace(text, "<os>", "<os><boot xmlns='urn:x'><nvram>/passwd</nvram></boot>", 1)
	want, err := Parse(definition)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(text)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read as %+v, %v; want %+v", got, err, want)
	}
	changed, err := Change{MACs: map[string]string{"52:54:00:00:00:01": "52:54:00:00:00:11"}, Disks: map[string]Source{"vda": {Export: "web2", Socket: "/run/s"}, "vdb": {File: "/b"}, "vdx": {File: "/x"}}}.Apply(text)
	if err != nil || strings.Count(changed, foreign) != 1 || !strings.Contains(changed, "name='web2'") || strings.Contains(changed, "'/x'") {
		t.Errorf("changed to %s, %v", changed, err)
	}
}

// The order in which a machine boots from its disks, and what its firmware is, are read; what makes no sense is none.
func TestBoot(t *testing.T) {
	around := func(os string) string {
		return "<domain><name>a</name><uuid>6f0c2f3e-1111-4222-8333-444455556666</uuid>" + os + "<devices><disk><target dev='sda' bus='sata'/><boot order='2'/></disk><disk><target dev='sdb' bus='scsi'/><boot order='1'/></disk><disk><target dev='sdc'/><boot order='-1'/></disk></devices></domain>"
	}
	for os, uefi := range map[string]bool{"": false, "<os><loader>/bios.bin</loader></os>": false, "<os firmware='efi'/>": true, "<os firmware='bios'/>": false, "<os><loader type='pflash'>/code.fd</loader></os>": true, "<os><nvram/></os>": true} {
		d, err := Parse(around(os))
		if err != nil {
			t.Fatal(err)
		}
		if d.UEFI != uefi || d.Disks[0].Boot != 2 || d.Disks[0].Bus != "sata" || d.Disks[1].Boot != 1 || d.Disks[2].Boot != 0 {
			t.Errorf("%s: %+v", os, d)
		}
	}
}

// What is no definition is refused, and not quoted.
func TestHostileDefinitions(t *testing.T) {
	with := func(from, to string) string { return strings.Replace(definition, from, to, 1) }
	for name, text := range map[string]string{
		"nothing":                "",
		"no XML":                 "passwd",
		"another document":       "<network><name>passwd</name></network>",
		"cut":                    definition[:len(definition)/2],
		"long":                   definition + strings.Repeat(" ", MaxXML),
		"deep":                   strings.Repeat("<domain>", 200_000),
		"an entity":              "<!DOCTYPE d [<!ENTITY e 'passwd'>]>" + with("web&amp;1", "&e;"),
		"no name":                with("web&amp;1", ""),
		"a path":                 with("web&amp;1", "../passwd"),
		"no UUID":                with("<uuid>6f0c2f3e-1111-4222-8333-444455556666", "<uuid>passwd"),
		"two vda":                with("dev='vdb'", "dev='vda'"),
		"a target up":            with("dev='vdb'", "dev='..'"),
		"a long path":            with("/seed.iso", strings.Repeat("/passwd", 1000)),
		"a later name":           with("<os>", "<name>passwd</name><os>"),
		"an earlier name":        with("<name>", "<name>passwd</name><name>"),
		"a name of a namespace":  with("<os>", "<qemu:name>passwd</qemu:name><os>"),
		"a name of nowhere":      with("<os>", "<a:name xmlns:a=''>passwd</a:name><os>"),
		"only one of them":       strings.ReplaceAll(with("<name>web", "<qemu:name>web"), "1</name>", "1</qemu:name>"),
		"a name in a namespace":  with("<name>", "<name xmlns='urn:passwd'>"),
		"a prefix of nowhere":    with("<devices>", "<devices><a:disk xmlns:a=''><target dev='vdz'/></a:disk>"),
		"a default namespace":    with("<domain ", "<domain xmlns='urn:passwd' "),
		"a name in the name":     with("<name>web", "<name><x>passwd</x>web"),
		"a name with controls":   with("web&amp;1", "web&#x9b;passwd"),
		"a later UUID":           with("<os>", "<uuid>6f0c2f3e-1111-4222-8333-444455556667</uuid><os>"),
		"a UUID of a namespace":  with("<os>", "<qemu:uuid>6f0c2f3e-1111-4222-8333-444455556667</qemu:uuid><os>"),
		"another form of a UUID": with("<uuid>6f0c2f3e-1111-4222-8333-444455556666<", "<uuid>{6f0c2f3e-1111-4222-8333-444455556666}<"),
		"two NVRAMs":             with("</os>", "<nvram type='block'/></os>"),
		"two domains":            definition + definition,
		"declared attributes":    "<!DOCTYPE domain [<!ATTLIST source file CDATA '/passwd'>]>" + definition,
		"elements in elements":   with("<metadata>", "<metadata>"+strings.Repeat("<a>", 255)+strings.Repeat("</a>", 255)),
		"long elements":          with("<metadata>", "<metadata><"+strings.Repeat("a", 5000)+"/>"),
		"many disks":             with("<devices>", "<devices>"+strings.Repeat("<disk/>", 5000)),
	} {
		_, err := Parse(text)
		if !errors.Is(err, block.ErrCorrupt) || strings.Contains(err.Error(), "passwd") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := (Change{Name: "x"}).Apply(text); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
