package blockstore

import (
	"flag"
	"sync"

	"filippo.io/age"
)

// encrypted runs the tests with encrypted stores: go test ./blockstore -encrypted.
var encrypted = flag.Bool("encrypted", false, "encrypt the stores of the tests")

var testIdentity = sync.OnceValue(func() *age.X25519Identity {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		panic(err)
	}
	return id
})

// testKeys are those of the tests' stores; none unless they are encrypted.
func testKeys() Keys {
	if !*encrypted {
		return Keys{}
	}
	return Keys{Identities: []age.Identity{testIdentity()}}
}
