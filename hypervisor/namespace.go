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

// declared is the namespace that an element declares for names without a prefix, its own and those in it; "" takes that of the elements around back.
func declared(t xml.StartElement) (space string, ok bool) {
	for _, a := range t.Attr {
		if a.Name.Space == "" && a.Name.Local == "xmlns" {
			return a.Value, true
		}
	}
	return "", false
}
