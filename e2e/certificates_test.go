package e2e

import (
	"testing"

	"github.com/hyper-nixos/hyper-nixos/internal/certtest"
)

// wallet is a folder with what a client of that name needs.
func wallet(t *testing.T, a *certtest.Authority, name string) string {
	t.Helper()
	dir := shortDir(t)
	a.Store(dir, "client", a.Client(name))
	return dir
}
