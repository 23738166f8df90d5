package replica

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// DefaultPort is where hvd listens for others, unless a target says otherwise.
const DefaultPort = "8082"

// maxTarget bounds the text of a target, in bytes.
const maxTarget = 1024

// Target names a volume of another hvd, or, as @NAME, a group of volumes there: hvd://HOST[:PORT]/NAME, or hvd+unix:///NAME?socket=PATH for one on this machine, PATH being its control socket.
type Target struct {
	Address string // HOST:PORT; empty with Socket
	Host    string // of Address; what the other one's certificate must be for
	Socket  string // absolute path
	Volume  string // not checked; empty with Group
	Group   string // not checked; without its @
}

// ParseTarget reads a target. The error wraps block.ErrInvalid.
func ParseTarget(text string) (Target, error) {
	bad := func(why string) (Target, error) {
		return Target{}, fmt.Errorf("target %.200q: %s; want hvd://HOST[:PORT]/NAME, or hvd+unix:///NAME?socket=PATH for an hvd on this machine, NAME being @GROUP for a group: %w", text, why, block.ErrInvalid)
	}
	if len(text) > maxTarget {
		return bad("it is too long")
	}
	u, err := url.Parse(text)
	if err != nil {
		return bad("it is no URL")
	}
	volume := strings.TrimPrefix(u.Path, "/")
	group := ""
	if name, is := strings.CutPrefix(volume, "@"); is {
		volume, group = "", name
	}
	switch {
	case u.Scheme != "hvd" && u.Scheme != "hvd+unix":
		return bad("its scheme is unknown")
	case volume == "" && group == "" || strings.Contains(volume+group, "/"):
		return bad("it names no volume, and no @GROUP")
	case u.User != nil || u.Fragment != "":
		return bad("it has more than a host and a name")
	}
	if u.Scheme == "hvd+unix" {
		socket := u.Query().Get("socket")
		if u.Host != "" || !filepath.IsAbs(socket) {
			return bad("it names no socket by an absolute path")
		}
		return Target{Socket: filepath.Clean(socket), Volume: volume, Group: group}, nil
	}
	if u.Hostname() == "" || u.RawQuery != "" {
		return bad("it names no host")
	}
	port := u.Port()
	if port == "" {
		port = DefaultPort
	}
	return Target{Address: net.JoinHostPort(u.Hostname(), port), Host: u.Hostname(), Volume: volume, Group: group}, nil
}

// String is the target as ParseTarget reads it.
func (t Target) String() string {
	name := url.PathEscape(t.Volume)
	if t.Group != "" {
		name = "@" + url.PathEscape(t.Group)
	}
	if t.Socket != "" {
		return "hvd+unix:///" + name + "?" + url.Values{"socket": {t.Socket}}.Encode()
	}
	return "hvd://" + t.Address + "/" + name
}

// SamePlace reports whether two targets are at one hvd, as they are written.
func (t Target) SamePlace(o Target) bool { return t.Address == o.Address && t.Socket == o.Socket }

// Member is a volume of a group's target.
func (t Target) Member(volume string) Target {
	t.Volume, t.Group = volume, ""
	return t
}
