package machine

import (
	"archive/tar"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/hypervisor"
)

// Write writes a machine as an archive.
func (m *Machine) Write(w io.Writer) error {
	m.Version = version
	if err := m.validate(); err != nil {
		return err
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	all := []File{{describes, 0o600, append(text, '\n')}, {definition, 0o600, []byte(m.XML)}}
	rest := slices.Clone(m.Contents)
	slices.SortFunc(rest, func(a, b File) int { return cmp.Compare(a.Name, b.Name) })
	t := tar.NewWriter(w)
	for _, f := range append(all, rest...) {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.Name, Mode: int64(f.Mode & 0o777), Size: int64(len(f.Data)), ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := t.Write(f.Data); err != nil {
			return err
		}
	}
	return t.Close()
}

// Read reads an archive; block.ErrCorrupt if it is none, block.ErrVersion if a later version has written it.
func Read(r io.Reader) (*Machine, error) {
	m := new(Machine)
	t := tar.NewReader(r)
	sum := int64(0)
	for i := 0; ; i++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("machine: %w: %w", err, block.ErrCorrupt)
		}
		if sum += h.Size; h.Typeflag != tar.TypeReg || h.Size < 0 || h.Size > MaxFile || sum > maxBytes || i >= maxFiles {
			return nil, fmt.Errorf("machine: %.100q is no file, or one too many, or too large: %w", h.Name, block.ErrCorrupt)
		}
		var data bytes.Buffer // grows with what is there, whatever the header says
		if _, err := io.Copy(&data, t); err != nil {
			return nil, fmt.Errorf("machine: %w: %w", err, block.ErrCorrupt)
		}
		switch {
		case i == 0 && h.Name == describes:
			if err := json.Unmarshal(data.Bytes(), m); err != nil {
				return nil, fmt.Errorf("machine: %s: %w: %w", describes, err, block.ErrCorrupt)
			}
			if m.Version > version {
				return nil, fmt.Errorf("machine of version %d: %w", m.Version, block.ErrVersion)
			}
		case i == 1 && h.Name == definition && data.Len() <= hypervisor.MaxXML:
			m.XML = data.String()
		case i > 1:
			m.Contents = append(m.Contents, File{h.Name, uint32(h.Mode & 0o777), data.Bytes()})
		default:
			return nil, fmt.Errorf("machine: %.100q where %s and %s should be: %w", h.Name, describes, definition, block.ErrCorrupt)
		}
	}
	return m, m.validate()
}
