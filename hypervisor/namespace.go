package hypervisor

import "encoding/xml"

// plain gives the tokens of a definition that libvirt reads: elements and attributes without a namespace. encoding/xml takes those of any namespace for them, and so what a program has noted beside the devices for a device.
type plain struct{ d *xml.Decoder }

// Token implements xml.TokenReader.
func (p plain) Token() (xml.Token, error) {
	for {
		token, err := p.d.Token()
		start, ok := token.(xml.StartElement)
		switch {
		case !ok:
			return token, err
		case start.Name.Space == "":
			kept := start.Attr[:0:0]
			for _, a := range start.Attr {
				if a.Name.Space == "" && a.Name.Local != "xmlns" {
					kept = append(kept, a)
				}
			}
			start.Attr = kept
			return start, nil
		}
		if err := p.d.Skip(); err != nil {
			return nil, err
		}
	}
}

// spaceOf is the namespace in which an element's name is that has no prefix, and those of the elements in it: around is that of the elements around.
func spaceOf(t xml.StartElement, around string) string {
	for _, a := range t.Attr {
		if a.Name.Space == "" && a.Name.Local == "xmlns" {
			return a.Value
		}
	}
	return around
}
