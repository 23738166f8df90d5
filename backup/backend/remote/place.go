package remote

import (
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/backup/access"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// DefaultPort is where a host listens, unless a place says otherwise.
const DefaultPort = "8083"

// Scheme is what the names of such places begin with.
const Scheme = "hvd://"

// Place names a repository at a host.
type Place struct {
	Host string // what the host's certificate must be for
	Port string
	Name string // of the repository
}

// ParsePlace reads hvd://HOST[:PORT]/NAME. The error wraps block.ErrInvalid.
func ParsePlace(text string) (Place, error) {
	bad := func(why string) (Place, error) {
		return Place{}, fmt.Errorf("repository %.300q: %s; give hvd://HOST[:PORT]/NAME: %w", text, why, block.ErrInvalid)
	}
	u, err := url.Parse(text)
	if err != nil {
		return Place{}, fmt.Errorf("repository: no URL: %w", block.ErrInvalid) // the text may have a secret in it
	}
	if u.User != nil {
		return Place{}, fmt.Errorf("repository: a URL with a name or password in it; a host of repositories knows its clients by their certificates: %w", block.ErrInvalid)
	}
	if u.Scheme+"://" != Scheme || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "" {
		return bad("a URL without a host, or with more than host and name")
	}
	p := Place{Host: u.Hostname(), Port: u.Port(), Name: strings.Trim(u.Path, "/")}
	if p.Port == "" {
		p.Port = DefaultPort
	}
	if err := access.CheckName(p.Name); err != nil {
		return bad("its name must have 1 to 64 lower-case letters, digits, dots, dashes and underscores, no dot first")
	}
	return p, nil
}

// Address is HOST:PORT.
func (p Place) Address() string { return net.JoinHostPort(p.Host, p.Port) }

// String returns the URL.
func (p Place) String() string { return Scheme + p.Address() + "/" + p.Name }
