package guest

import "testing"

func TestParseNBDURI(t *testing.T) {
	for text, want := range map[string]struct {
		server nbdServer
		export string
	}{
		UnixURI("/run/a b,c/nbd.sock", "vol@snap 1"): {nbdServer{Type: "unix", Path: "/run/a b,c/nbd.sock"}, "vol@snap 1"},
		UnixURI("/run/nbd.sock", ""):                 {nbdServer{Type: "unix", Path: "/run/nbd.sock"}, ""},
		"nbd+unix:///vol?socket=/run/nbd.sock":       {nbdServer{Type: "unix", Path: "/run/nbd.sock"}, "vol"},
		"nbd://[::1]/vol":                            {nbdServer{Type: "inet", Host: "::1", Port: "10809"}, "vol"},
		"nbd://host:99/":                             {nbdServer{Type: "inet", Host: "host", Port: "99"}, ""},
	} {
		server, export, err := parseNBDURI(text)
		if err != nil || server != want.server || export != want.export {
			t.Errorf("%s: got %+v %q %v, want %+v", text, server, export, err, want)
		}
	}
	for _, text := range []string{"", "vol", "http://host/x", "nbd:///x", "nbd+unix:///x", "nbd://host:no/x"} {
		if _, _, err := parseNBDURI(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

func TestUnixURI(t *testing.T) {
	if got, want := UnixURI("/run/a b+c/nbd.sock", "vol"), "nbd+unix:///vol?socket=/run/a%20b%2Bc/nbd.sock"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
