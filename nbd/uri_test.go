package nbd

import (
	"net/url"
	"testing"
)

// A URI names its socket and export whatever their names hold.
func TestUnixURI(t *testing.T) {
	for _, c := range []struct{ socket, export, want string }{
		{"/run/a.sock", "", "nbd+unix:///?socket=/run/a.sock"},
		{"/run/a b+c&d.sock", "x y/z", "nbd+unix:///x%20y%2Fz?socket=/run/a%20b%2Bc%26d.sock"},
	} {
		got := UnixURI(c.socket, c.export)
		u, err := url.Parse(got)
		if got != c.want || err != nil || u.Query().Get("socket") != c.socket || u.Path != "/"+c.export {
			t.Errorf("UnixURI(%q, %q) = %q, %v", c.socket, c.export, got, err)
		}
	}
}
