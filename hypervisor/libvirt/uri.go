package libvirt

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Place is a libvirtd of this host: a driver and the sockets at which it may be.
type Place struct {
	URI     string // as libvirtd is told: qemu:///system or qemu:///session
	Sockets []string
	Session bool // of a user, not of the system
	config  string
	data    string
}

// Find returns the place that a connection URI means: qemu:///system, qemu:///session, either with ?socket=PATH. "" is $LIBVIRT_DEFAULT_URI, else the system's for root and the session's for others, as for virsh. Else block.ErrInvalid.
func Find(uri string, getenv func(string) string) (Place, error) {
	if uri == "" {
		uri = getenv("LIBVIRT_DEFAULT_URI")
	}
	if uri == "" {
		if uri = "qemu:///session"; os.Geteuid() == 0 {
			uri = "qemu:///system"
		}
	}
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != "qemu" && u.Scheme != "qemu+unix" || u.Host != "" || u.User != nil || u.Path != "/system" && u.Path != "/session" {
		return Place{}, fmt.Errorf("libvirt at %q: only this host's is spoken to: qemu:///system or qemu:///session, with ?socket=PATH where it is elsewhere: %w", uri, block.ErrInvalid)
	}
	home := getenv("HOME")
	under := func(variable, otherwise string) string {
		if dir := getenv(variable); dir != "" {
			return dir
		}
		return filepath.Join(home, otherwise)
	}
	p := Place{URI: "qemu://" + u.Path, Session: u.Path == "/session", config: "/etc", data: "/var/lib"}
	run := "/run"
	if p.Session {
		p.config, p.data = under("XDG_CONFIG_HOME", ".config"), under("XDG_DATA_HOME", ".local/share")
		if run = getenv("XDG_RUNTIME_DIR"); run == "" {
			run = "/run/user/" + strconv.Itoa(os.Getuid())
		}
	}
	for _, name := range []string{"virtqemud-sock", "libvirt-sock"} {
		p.Sockets = append(p.Sockets, filepath.Join(run, "libvirt", name))
	}
	if socket := u.Query().Get("socket"); socket != "" {
		p.Sockets = []string{socket}
	}
	return p, nil
}

// NVRAMDir is where libvirt keeps the variables of UEFI firmware.
func (p Place) NVRAMDir() string {
	if p.Session {
		return filepath.Join(p.config, "libvirt/qemu/nvram")
	}
	return filepath.Join(p.data, "libvirt/qemu/nvram")
}

// TPMDir is where libvirt keeps the states of emulated TPMs, each in a folder that is called as the UUID of its domain.
func (p Place) TPMDir() string {
	if p.Session {
		return filepath.Join(p.config, "libvirt/qemu/swtpm")
	}
	return filepath.Join(p.data, "libvirt/swtpm")
}

// ImagesDir is where libvirt's own pool keeps images, CD images among them.
func (p Place) ImagesDir() string { return filepath.Join(p.data, "libvirt/images") }
