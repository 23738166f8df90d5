package e2e

import (
	"strings"
	"testing"
	"time"
)

// eventually waits until ok says so. What is waited for comes about in another process, so a look at one moment says nothing of it.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for began := time.Now(); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatalf("%s: not in %v", what, patience)
		}
	}
}

// says waits until the daemon's log holds a text. What hvd has written passes through a pipe, so its reply to a client may be here before the line of its log is.
func (d *daemon) says(text string) {
	d.t.Helper()
	eventually(d.t, "hvd says "+text, func() bool { return strings.Contains(d.log.String(), text) })
}

// clients counts the connections that hvd has not let go yet. It lets one go when the last request that it read from it has ended.
func (d *daemon) clients() int {
	d.t.Helper()
	var status struct{ Connections int }
	d.json(&status, "status")
	return status.Connections
}

// letGo waits until no more than so many clients are left: requests of a client that is gone may be under way for a moment, and change what is there.
func (d *daemon) letGo(clients int) {
	d.t.Helper()
	eventually(d.t, "hvd drops connections that broke", func() bool { return d.clients() <= clients })
}

// mustDetach ends an attachment without force, which works when hvd has seen that its clients are gone.
func (d *daemon) mustDetach(volume string) {
	d.t.Helper()
	var got result
	eventually(d.t, "hvd sees that the clients are gone", func() bool {
		got = d.try("volume", "detach", volume)
		return got.code != 4 // in use
	})
	if got.code != 0 {
		d.t.Fatalf("detach %s: %s", volume, got.stderr)
	}
}
