package hypervisor

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
)

// Change is what a restored definition has otherwise. What is empty stays.
type Change struct {
	Name  string
	UUID  string
	GenID string            // the generation of the machine, if it has one: Windows looks there whether it was put back in time
	MACs  map[string]string // new addresses by old ones
	NVRAM string            // path
	Disks map[string]Source // by target
}

// Source is where a disk shall be read from: an export of an NBD server at a unix socket, or a file.
type Source struct {
	Export, Socket string
	File           string
}

// edit replaces bytes of a text.
type edit struct {
	from, to int
	with     string
}

// changer goes over a definition and notes what to replace.
type changer struct {
	Change
	text  string
	d     *xml.Decoder
	path  []string // names of the elements around, those of other namespaces with a prefix
	space []string // the namespaces of names without a prefix in each
	start []int    // where the content of each begins
	edits []edit
	disk  diskEdit
	nvram string // content of that element; "": as it is
}

// diskEdit is the disk that is being read.
type diskEdit struct {
	target     string
	from, to   int    // of its source; 0: none
	kept       string // elements of the source that stay
	childBegin int
}

// keptOfSource are the elements of a disk's source that are about this host, or about what is in the disk, not about where it is.
var keptOfSource = []string{"reconnect", "seclabel", "slices", "encryption"}

// Apply returns a definition with changes. What it gets must be one that Parse takes.
func (c Change) Apply(text string) (string, error) {
	if _, err := Parse(text); err != nil {
		return "", err
	}
	w := &changer{Change: c, text: text, d: xml.NewDecoder(strings.NewReader(text))}
	for {
		from := int(w.d.InputOffset())
		token, err := w.d.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", corrupt("no XML of a domain")
		}
		switch t := token.(type) {
		case xml.StartElement:
			w.enter(t, from)
		case xml.EndElement:
			w.leave(from)
		}
	}
	slices.SortFunc(w.edits, func(a, b edit) int { return cmp.Compare(a.from, b.from) })
	var out strings.Builder
	at := 0
	for _, e := range w.edits {
		if e.from < at {
			return "", corrupt("two changes at one place")
		}
		out.WriteString(text[at:e.from] + e.with)
		at = e.to
	}
	out.WriteString(text[at:])
	changed := out.String()
	_, err := Parse(changed)
	return changed, err
}

func rawName(n xml.Name) string {
	if n.Space != "" {
		return n.Space + ":" + n.Local
	}
	return n.Local
}

func attribute(t xml.StartElement, name string) string {
	for _, a := range t.Attr {
		if a.Name.Space == "" && a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

// enter comes to an element that begins at from.
func (w *changer) enter(t xml.StartElement, from int) {
	end := int(w.d.InputOffset())
	name := rawName(t.Name)
	space, ok := declared(t)
	if n := len(w.space); !ok && n > 0 {
		space = w.space[n-1]
	}
	if space != "" && t.Name.Space == "" {
		name = ":" + name // of no path below
	}
	w.path, w.space, w.start = append(w.path, name), append(w.space, space), append(w.start, end)
	switch strings.Join(w.path, "/") {
	case "domain/devices/interface/mac":
		if to := w.MACs[attribute(t, "address")]; to != "" {
			w.edits = append(w.edits, edit{from, end, w.tag(t, end, "address", to)})
		}
	case "domain/devices/disk":
		w.disk = diskEdit{}
	case "domain/devices/disk/target":
		w.disk.target = attribute(t, "dev")
	case "domain/devices/disk/source":
		w.disk.from = from
	case "domain/sysinfo/system/entry":
		if attribute(t, "name") == "uuid" && w.UUID != "" {
			w.path[len(w.path)-1] = "entry of uuid"
		}
	case "domain/os/nvram":
		w.enterNVRAM(t, end)
	}
	if w.within("domain/devices/disk/source") {
		w.disk.childBegin = from
	}
}

// within reports whether the element is a child of that one.
func (w *changer) within(parent string) bool {
	return strings.Join(w.path[:len(w.path)-1], "/") == parent
}

// leave comes to the end of an element; its tag begins at from.
func (w *changer) leave(from int) {
	end, begin := int(w.d.InputOffset()), w.start[len(w.start)-1]
	text := func(to string) {
		if to != "" {
			w.edits = append(w.edits, edit{begin, from, escaped(to)})
		}
	}
	switch strings.Join(w.path, "/") {
	case "domain/name":
		text(w.Name)
	case "domain/uuid", "domain/sysinfo/system/entry of uuid":
		text(w.UUID)
	case "domain/genid":
		if end > from { // <genid/> is given one by libvirt
			text(w.GenID)
		}
	case "domain/os/nvram":
		if w.nvram != "" {
			w.edits = append(w.edits, edit{begin, from, w.nvram})
		}
	case "domain/devices/disk/source":
		w.disk.to = end
	case "domain/devices/disk":
		w.finishDisk()
	}
	if w.within("domain/devices/disk/source") && slices.Contains(keptOfSource, w.path[len(w.path)-1]) {
		w.disk.kept += w.text[w.disk.childBegin:end]
	}
	w.path, w.space, w.start = w.path[:len(w.path)-1], w.space[:len(w.space)-1], w.start[:len(w.start)-1]
}

// selfClosed reports whether the tag that ends there is an element of its own.
func (w *changer) selfClosed(end int) bool { return end >= 2 && w.text[end-2] == '/' }

// tag writes a tag that ends at end anew, with one attribute changed.
func (w *changer) tag(t xml.StartElement, end int, name, value string) string {
	var b strings.Builder
	b.WriteString("<" + rawName(t.Name))
	for _, a := range t.Attr {
		if a.Name.Space == "" && a.Name.Local == name {
			a.Value = value
		}
		b.WriteString(" " + rawName(a.Name) + "='" + escaped(a.Value) + "'")
	}
	if w.selfClosed(end) {
		b.WriteString("/")
	}
	return b.String() + ">"
}

// enterNVRAM notes what the element shall hold. What lies on no file stays.
func (w *changer) enterNVRAM(t xml.StartElement, end int) {
	w.nvram = ""
	if w.NVRAM == "" {
		return
	}
	content := escaped(w.NVRAM)
	switch attribute(t, "type") {
	case "":
	case "file":
		content = "<source file='" + content + "'/>"
	default:
		return
	}
	if w.selfClosed(end) {
		w.edits = append(w.edits, edit{end - 2, end, ">" + content + "</nvram>"})
		return
	}
	w.nvram = content
}

// finishDisk notes where a disk shall be read from.
func (w *changer) finishDisk() {
	to, ok := w.Disks[w.disk.target]
	if !ok || w.disk.to == 0 {
		return
	}
	source := "<source protocol='nbd' name='" + escaped(to.Export) + "'><host transport='unix' socket='" + escaped(to.Socket) + "'/>"
	if to.File != "" {
		source = "<source file='" + escaped(to.File) + "'>"
	}
	w.edits = append(w.edits, edit{w.disk.from, w.disk.to, source + w.disk.kept + "</source>"})
}

func escaped(text string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(text)) // a buffer takes all
	return b.String()
}
