package guest

import (
	"fmt"
	"net/url"
	"strings"
)

// UnixURI returns the NBD URI of an export on a unix socket, in the form that QEMU and libnbd also take.
func UnixURI(socket, export string) string {
	// QEMU does not read "+" as a space, and a plain slash keeps the URI readable.
	query := strings.NewReplacer("+", "%20", "%2F", "/").Replace(url.QueryEscape(socket))
	return "nbd+unix:///" + url.PathEscape(export) + "?socket=" + query
}

// nbdServer is QEMU's description of where an NBD server listens (SocketAddress in its QAPI schema).
type nbdServer struct {
	Type string `json:"type"`
	Path string `json:"path,omitempty"`
	Host string `json:"host,omitempty"`
	Port string `json:"port,omitempty"`
}

// parseNBDURI understands nbd+unix:///EXPORT?socket=PATH and nbd://HOST[:PORT]/EXPORT; the port is 10809 by default.
func parseNBDURI(text string) (server nbdServer, export string, err error) {
	uri, err := url.Parse(text)
	if err != nil {
		return nbdServer{}, "", fmt.Errorf("parse NBD URI: %w", err)
	}
	export = strings.TrimPrefix(uri.Path, "/")
	switch uri.Scheme {
	case "nbd+unix":
		server = nbdServer{Type: "unix", Path: uri.Query().Get("socket")}
		if server.Path == "" {
			return nbdServer{}, "", fmt.Errorf("parse NBD URI %q: no socket=PATH", text)
		}
	case "nbd":
		server = nbdServer{Type: "inet", Host: uri.Hostname(), Port: uri.Port()}
		if server.Host == "" {
			return nbdServer{}, "", fmt.Errorf("parse NBD URI %q: no host", text)
		}
		if server.Port == "" {
			server.Port = "10809"
		}
	default:
		return nbdServer{}, "", fmt.Errorf("parse NBD URI %q: unknown scheme, want nbd+unix or nbd", text)
	}
	return server, export, nil
}
