package blockstore

import (
	"os"
	"testing"

	"filippo.io/age"
)

// encrypted runs the tests with encrypted stores: HV_TEST_ENCRYPTED=1 go test ./blockstore.
var encrypted = os.Getenv("HV_TEST_ENCRYPTED") != ""

// testKeys are those of the tests' stores; none unless they are encrypted. The processes that a test starts have the same.
func testKeys() Keys {
	if !encrypted {
		return Keys{}
	}
	return fixedKeys()
}

// fixedKeys are keys that every process knows.
func fixedKeys() Keys {
	id, err := age.ParseX25519Identity("AGE-SECRET-KEY-1ZYU9CSMMWX5ZC05WP67HTWR59SNHN9UPSS4Z4EX4TQY2USK484CQECLVRE")
	if err != nil {
		panic(err)
	}
	return Keys{Identities: []age.Identity{id}}
}

// skipEncrypted skips a test that looks at what encryption hides, or counts what it costs.
func skipEncrypted(t *testing.T) {
	t.Helper()
	if encrypted {
		t.Skip("not of encrypted stores")
	}
}
