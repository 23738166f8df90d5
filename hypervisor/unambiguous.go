package hypervisor

import (
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
)

// unambiguous refuses a definition that libvirt could read otherwise than this package does: who libvirt takes the machine for decides which domain it replaces. libvirt takes the first name and UUID without a namespace, and what is in their elements;
// encoding/xml takes the last of any namespace, without that. So there is one of each, of any namespace, and it has none. Nothing is declared: a declaration may give elements attributes that are not in them.
func unambiguous(text string) error {
	d := xml.NewDecoder(strings.NewReader(text))
	count := make(map[string]int)
	var path []string // local names
	var around []int  // bytes of the names up to each
	roots := 0
	for {
		token, err := d.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return corrupt("no XML of a domain")
		}
		switch t := token.(type) {
		case xml.Directive:
			return corrupt("a declaration of a document type")
		case xml.EndElement:
			if len(path) == 0 {
				return corrupt("no XML of a domain")
			}
			path, around = path[:len(path)-1], around[:len(path)-1]
		case xml.StartElement:
			if slices.ContainsFunc(t.Attr, func(a xml.Attr) bool { return a.Name.Space == "xmlns" && a.Value == "" }) {
				return corrupt("a prefix of no namespace") // who has it may be read as if it had no prefix
			}
			long := len(t.Name.Space) + len(t.Name.Local) + 1
			if len(path) > 0 {
				long += around[len(path)-1]
			}
			if path, around = append(path, t.Name.Local), append(around, long); len(path) > maxDepth || long > maxText {
				return corrupt("more than %d elements in each other, or %d B of their names", maxDepth, maxText)
			}
			if len(path) == 1 {
				roots++
			}
			where := strings.Join(path, "/")
			if strings.HasPrefix(where, "domain/name/") || strings.HasPrefix(where, "domain/uuid/") {
				return corrupt("a name or UUID with elements in it")
			}
			switch where {
			case "domain", "domain/name", "domain/uuid", "domain/os", "domain/os/nvram":
				if count[where]++; count[where] > 1 {
					return corrupt("more than one %s", where)
				}
				if namespaced(t) {
					return corrupt("a namespace of %s", where)
				}
			}
		}
	}
	if roots != 1 || count["domain/name"] != 1 || count["domain/uuid"] != 1 {
		return corrupt("not one domain with a name and a UUID")
	}
	return nil
}

// namespaced reports whether an element is in a namespace of its own, or declares one for what has no prefix.
func namespaced(t xml.StartElement) bool {
	_, ok := declared(t)
	return ok || t.Name.Space != ""
}
