package machine

import (
	"fmt"
	"path"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/hypervisor"
)

// These constants are part of the format and should not be changed.
const (
	version     = 1
	describes   = "machine.json"
	definition  = "domain.xml"
	nvramName   = "nvram"
	tpmPrefix   = "tpm/"
	mediaPrefix = "media/"

	MaxFile  = 64 << 20  // bytes of one file
	maxBytes = 256 << 20 // of all
	maxFiles = 4096
	maxText  = 4096
	maxDisks = 4096
)

// What became of a part of the machine that the definition names.
const (
	Stored  = "stored"
	Missing = "missing" // there was none, as before the first start
	Left    = "left"    // it could not be read, or is on no file
)

// Machine is a machine as it was when it was backed up. The names of the fields of what is in machine.json are part of the format.
type Machine struct {
	Version  int      `json:"version"`
	Name     string   `json:"name"`
	UUID     string   `json:"uuid"`
	Type     string   `json:"type"`  // kvm, qemu, …
	State    string   `json:"state"` // "running" or "shut off"
	MACs     []string `json:"macs,omitempty"`
	Disks    []Disk   `json:"disks,omitempty"` // in backups of volumes of the same time and host
	Left     []Other  `json:"left,omitempty"`  // that are in no backup
	NVRAM    *Part    `json:"nvram,omitempty"`
	TPM      *Part    `json:"tpm,omitempty"`
	Media    []Medium `json:"media,omitempty"`
	Reason   string   `json:"reason,omitempty"` // why its guest was not at rest, if it ran
	XML      string   `json:"-"`                // domain.xml
	Contents []File   `json:"-"`                // everything else
}

// Disk is a disk that is a volume of hvd.
type Disk struct {
	Target     string `json:"target"`
	Device     string `json:"device"`
	Volume     string `json:"volume"`
	VolumeUUID string `json:"volumeUuid"`
	SizeBytes  uint64 `json:"sizeBytes"`
	OwnSocket  bool   `json:"ownSocket,omitempty"`
	Owner      string `json:"owner,omitempty"` // USER:GROUP of that socket
	Mode       string `json:"mode,omitempty"`  // of it, octal
	ReadOnly   bool   `json:"readOnly,omitempty"`
}

// Other is a disk that is none.
type Other struct {
	Target string `json:"target"`
	Device string `json:"device"`
	Source string `json:"source"` // in words
	Why    string `json:"why"`
}

// Part is the NVRAM, or the state of the TPM.
type Part struct {
	State string `json:"state"` // "stored", "missing" or "left"
	Why   string `json:"why,omitempty"`
	Owner string `json:"owner,omitempty"` // USER:GROUP
}

// Medium is a small image that a CD drive or the like had in it.
type Medium struct {
	Target string `json:"target"`
	Path   string `json:"path"`
	Owner  string `json:"owner,omitempty"` // USER:GROUP
}

// File is a file of the archive.
type File struct {
	Name string // "nvram", "tpm/…" or "media/TARGET"
	Mode uint32 // permissions
	Data []byte
}

// NVRAMFile is the name of the variables of the firmware, TPMFile that of a file of the TPM's state, MediumFile that of what was in a drive.
const NVRAMFile = nvramName

// TPMFile is the name of a file of the TPM's state.
func TPMFile(relative string) string { return tpmPrefix + relative }

// MediumFile is the name of what was in a drive.
func MediumFile(target string) string { return mediaPrefix + target }

// File returns a file of the archive, nil if it is not there.
func (m *Machine) File(name string) *File {
	for i := range m.Contents {
		if m.Contents[i].Name == name {
			return &m.Contents[i]
		}
	}
	return nil
}

// TPMFiles are the files of the TPM's state, by their names below its folder.
func (m *Machine) TPMFiles() map[string]File {
	all := make(map[string]File)
	for _, f := range m.Contents {
		if name, ok := strings.CutPrefix(f.Name, tpmPrefix); ok {
			all[name] = f
		}
	}
	return all
}

// validate bounds what a machine says, and checks that its definition says the same.
func (m *Machine) validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("machine with %s: %w", fmt.Sprintf(format, args...), block.ErrCorrupt)
	}
	if m.Version != version {
		return fmt.Errorf("machine of version %d: %w", m.Version, block.ErrVersion)
	}
	d, err := hypervisor.Parse(m.XML)
	if err != nil {
		return err
	}
	if d.Name != m.Name || !strings.EqualFold(d.UUID, m.UUID) {
		return bad("the definition of another one")
	}
	if len(m.Disks)+len(m.Left)+len(m.Media) > maxDisks {
		return bad("more than %d disks", maxDisks)
	}
	texts := []string{m.Type, m.State, m.Reason}
	for _, d := range m.Disks {
		if d.Volume == "" || d.Target == "" {
			return bad("a disk that has no name")
		}
		texts = append(texts, d.Target, d.Device, d.Volume, d.VolumeUUID, d.Owner, d.Mode)
	}
	for _, o := range m.Left {
		texts = append(texts, o.Target, o.Device, o.Source, o.Why)
	}
	for _, medium := range m.Media {
		if m.File(MediumFile(medium.Target)) == nil {
			return bad("a medium that is not there")
		}
		texts = append(texts, medium.Path, medium.Owner)
	}
	for _, part := range []*Part{m.NVRAM, m.TPM} {
		if part != nil {
			texts = append(texts, part.State, part.Why, part.Owner)
		}
	}
	for _, text := range append(texts, m.MACs...) {
		if len(text) > maxText {
			return bad("a text of more than %d B", maxText)
		}
	}
	if m.NVRAM != nil && m.NVRAM.State == Stored && m.File(nvramName) == nil {
		return bad("an NVRAM that is not there")
	}
	return m.validateFiles()
}

func (m *Machine) validateFiles() error {
	seen, sum := make(map[string]bool), 0
	for _, f := range m.Contents {
		base, nested := strings.CutPrefix(f.Name, tpmPrefix)
		if !nested {
			base, nested = strings.CutPrefix(f.Name, mediaPrefix)
			nested = nested && !strings.Contains(base, "/")
		}
		if f.Name != nvramName && (!nested || base == "" || path.Clean("/"+base) != "/"+base || strings.Contains(base, "\x00")) || len(f.Name) > maxText || seen[f.Name] {
			return fmt.Errorf("machine with a file %.100q: %w", f.Name, block.ErrCorrupt)
		}
		seen[f.Name] = true
		if sum += len(f.Data); len(f.Data) > MaxFile || sum > maxBytes || len(seen) > maxFiles {
			return fmt.Errorf("machine with more than %d B or %d files beside its volumes: %w", maxBytes, maxFiles, block.ErrInvalid)
		}
	}
	return nil
}
