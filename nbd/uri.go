package nbd

import (
	"net/url"
	"strings"
)

// UnixURI returns the NBD URI (NBD URI specification) of an export on a unix socket, in the form that libnbd and QEMU take: QEMU does not read "+" as a space, and a plain slash keeps it
// readable.
func UnixURI(socket, export string) string {
	return "nbd+unix:///" + url.PathEscape(export) + "?socket=" + strings.NewReplacer("+", "%20", "%2F", "/").Replace(url.QueryEscape(socket))
}
