package machine

import (
	"archive/tar"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/backup/files"
	"github.com/hyper-nixos/hyper-nixos/block"
)

var update = flag.Bool("update", false, "write the golden bytes anew")

const id = "6f0c2f3e-1111-4222-8333-444455556666"

func example() *Machine {
	return &Machine{
		Name: "web1", UUID: id, Type: "kvm", State: "running", MACs: []string{"52:54:00:00:00:01"},
		Disks: []Disk{{Target: "vda", Device: "disk", Volume: "web1", VolumeUUID: id, SizeBytes: 1 << 30, OwnSocket: true, Owner: "libvirt-qemu:kvm", Mode: "0600"}},
		Left:  []Other{{Target: "vdb", Device: "disk", Source: "/x.qcow2", Why: "no export of this hvd that is attached now"}},
		NVRAM: &Part{State: Stored, Owner: "libvirt-qemu:kvm"}, TPM: &Part{State: Stored, Owner: "tss:tss"},
		Media: []Medium{{Target: "sda", Path: "/seed.iso", Owner: "root:root"}}, Reason: "its guest does not run qemu-guest-agent",
		XML: "<domain type='kvm'><name>web1</name><uuid>" + id + "</uuid></domain>\n",
		Contents: []File{
			{MediumFile("sda"), 0o644, []byte("seed")}, {NVRAMFile, 0o600, []byte("variables")}, {TPMFile("tpm2/tpm2-00.permall"), 0o600, []byte("state")},
		},
	}
}

// A machine is read as it was written, whatever the order of its files, and its bytes are those of the format's first version.
func TestArchive(t *testing.T) {
	var b bytes.Buffer
	m := example()
	if err := m.Write(&b); err != nil {
		t.Fatal(err)
	}
	got, err := Read(bytes.NewReader(b.Bytes()))
	if err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("read %+v, %v; want %+v", got, err, m)
	}
	if names := slices.Collect(maps.Keys(got.TPMFiles())); !slices.Equal(names, []string{"tpm2/tpm2-00.permall"}) {
		t.Errorf("the TPM has %q", names)
	}
	var again bytes.Buffer
	slices.Reverse(m.Contents)
	if err := m.Write(&again); err != nil || !bytes.Equal(again.Bytes(), b.Bytes()) {
		t.Errorf("the same machine makes other bytes: %v", err)
	}
	golden := filepath.Join("testdata", "machine.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(hex.EncodeToString(b.Bytes())+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	want, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || !bytes.Equal(b.Bytes(), want) {
		t.Errorf("the bytes are not those of version 1: %v", err)
	}
	to := filepath.Join(t.TempDir(), "unpacked")
	if done, err := files.Unpack(&b, to); err != nil || done.Files != 5 {
		t.Errorf("unpacked %+v, %v", done, err)
	}
}

// What is no machine, or a hostile one, is refused.
func TestHostileArchives(t *testing.T) {
	type entry struct {
		name string
		data string
	}
	archive := func(entries ...entry) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, e := range entries {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: e.name, Mode: 0o600, Size: int64(len(e.data)), Format: tar.FormatPAX}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte(e.data)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	described := func(change func(*Machine)) entry {
		m := example()
		m.Version = version
		change(m)
		text, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return entry{describes, string(text)}
	}
	same := described(func(*Machine) {})
	xml := entry{definition, example().XML}
	rest := []entry{{"media/sda", "seed"}, {"nvram", "v"}}
	with := func(first, second entry, more ...entry) []byte {
		return archive(append(append([]entry{first, second}, rest...), more...)...)
	}
	if _, err := Read(bytes.NewReader(with(same, xml))); err != nil {
		t.Fatal(err)
	}
	link := new(bytes.Buffer)
	w := tar.NewWriter(link)
	if err := errors.Join(w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: describes, Linkname: "/etc/passwd"}), w.Close()); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"nothing":               nil,
		"no archive":            bytes.Repeat([]byte("x"), 2000),
		"a link":                link.Bytes(),
		"another order":         with(xml, same),
		"no definition":         archive(same),
		"another's definition":  with(same, entry{definition, strings.Replace(xml.data, "web1", "web2", 1)}),
		"a way up":              with(same, xml, entry{"tpm/../../etc/passwd", "x"}),
		"a folder's way up":     with(same, xml, entry{"media/..", "x"}),
		"a name of its own":     with(same, xml, entry{"etc/passwd", "x"}),
		"a medium in a folder":  with(same, xml, entry{"media/a/b", "x"}),
		"one name twice":        with(same, xml, entry{"nvram", "w"}),
		"no medium":             archive(same, xml, entry{"nvram", "v"}),
		"no NVRAM":              archive(same, xml, entry{"media/sda", "seed"}),
		"no JSON":               with(entry{describes, "{"}, xml),
		"a disk without volume": with(described(func(m *Machine) { m.Disks[0].Volume = "" }), xml),
		"a long text":           with(described(func(m *Machine) { m.Reason = strings.Repeat("x", maxText+1) }), xml),
	} {
		if _, err := Read(bytes.NewReader(b)); !errors.Is(err, block.ErrCorrupt) && !errors.Is(err, block.ErrVersion) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Read(bytes.NewReader(with(described(func(m *Machine) { m.Version = 2 }), xml))); !errors.Is(err, block.ErrVersion) {
		t.Errorf("a later version: %v", err)
	}
	large := example()
	large.Contents = append(large.Contents, File{TPMFile("x"), 0o600, make([]byte, MaxFile+1)})
	if err := large.Write(new(bytes.Buffer)); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("a large file: %v", err)
	}
}
