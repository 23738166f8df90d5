package crashtest

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Listing names one volume of a store.
type Listing struct {
	Name      string
	SizeBytes uint64
	Snapshots map[string]uint64 // sizes in bytes
	Protected map[string]bool   // snapshots that are
}

// Source is a store that is read back.
type Source interface {
	// List names all volumes.
	List() ([]Listing, error)
	// ReadAt fills p from a volume, or from one of its snapshots when that is not "".
	ReadAt(volume, snapshot string, p []byte, off uint64) error
}

// Image is all that a store holds, by client.
type Image struct{ Clients []*State }

// ReadImage reads a whole store of n clients. A sector that is not what one operation wrote is an error, and so is a volume of nobody.
func ReadImage(src Source, n int) (*Image, error) {
	img := &Image{}
	for range n {
		img.Clients = append(img.Clients, NewState())
	}
	list, err := src.List()
	if err != nil {
		return nil, err
	}
	for _, l := range list {
		owner := -1
		for i := range n {
			if strings.HasPrefix(l.Name, volumePrefix(i)) {
				owner = i
			}
		}
		if owner < 0 {
			return nil, fmt.Errorf("volume %q belongs to no client", l.Name)
		}
		v := &Volume{Snapshots: map[string]Content{}}
		if v.Content, err = readContent(src, l.Name, "", l.SizeBytes); err != nil {
			return nil, err
		}
		for _, snap := range slices.Sorted(maps.Keys(l.Snapshots)) {
			c, err := readContent(src, l.Name, snap, l.Snapshots[snap])
			if err != nil {
				return nil, err
			}
			if _, twice := v.Snapshots[plainName(snap)]; twice {
				return nil, fmt.Errorf("volume %q has two snapshots like %q", l.Name, snap)
			}
			c.Protected = l.Protected[snap]
			v.Snapshots[plainName(snap)] = c
		}
		img.Clients[owner].Volumes[l.Name] = v
	}
	return img, nil
}

// readContent reads one volume or snapshot.
func readContent(src Source, volume, snapshot string, size uint64) (Content, error) {
	c := Content{Size: size, Pages: map[uint64]*page{}}
	const pageBytes = pageSectors * sectorBytes
	buf := make([]byte, 32*pageBytes)
	zero := make([]byte, pageBytes)
	for off := uint64(0); off < size; off += uint64(len(buf)) {
		b := buf[:min(uint64(len(buf)), size-off)]
		if err := src.ReadAt(volume, snapshot, b, off); err != nil {
			return c, fmt.Errorf("read volume %q snapshot %q at %d+%d B: %w", volume, snapshot, off, len(b), err)
		}
		for at := 0; at < len(b); at += pageBytes {
			raw := b[at:min(at+pageBytes, len(b))]
			if bytes.Equal(raw, zero[:len(raw)]) {
				continue
			}
			var p page
			for i := 0; i < len(raw); i += sectorBytes {
				t, err := decode(raw[i:])
				if err != nil {
					return c, fmt.Errorf("volume %q snapshot %q at %d: %w", volume, snapshot, off+uint64(at+i), err)
				}
				p[i/sectorBytes] = t
			}
			c.put((off+uint64(at))/pageBytes, &p)
		}
	}
	return c, nil
}
