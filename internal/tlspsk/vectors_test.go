package tlspsk

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
)

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(text), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestKeySchedule is the simple 1-RTT handshake of RFC 8448, 3, whose early secret is that of a key of zeroes.
func TestKeySchedule(t *testing.T) {
	check := func(what string, got []byte, want string) {
		t.Helper()
		if !bytes.Equal(got, unhex(t, want)) {
			t.Errorf("%s is %x", what, got)
		}
	}
	early := earlySecret(make([]byte, hashSize))
	check("early secret", early[:], "33ad0a1c607ec03b09e6cd9893680ce210adf300aa1f2660e1b22e10f170f92a")
	salt := next(early)
	check("derived", salt[:], "6f2615a108c702c5678f54fc9dbab69716c076189c48250cebeac3576c3611ba")
	shared := unhex(t, "8bd4054fb55b9d63fdfbacf9f04b9f0d35e6d63f537563efd46272900f89492d")
	handshake := extract(salt, shared)
	check("handshake secret", handshake[:], "1dc826e93606aa6fdc0aadc12f741b01046aa6b99f691ed221a9f0ca043fbeac")
	server := secret(unhex(t, "b67b7d690cc16c4e75e54213cb2d37b4e9c912bcded9105d42befd59d391ad38")) // server_handshake_traffic_secret
	check("server's key", expandLabel(server, "key", nil, 16), "3fce516009c21727d0f2e4e86ee403bc")
	check("server's iv", expandLabel(server, "iv", nil, 12), "5d313eb2671276ee13000b30")
	salt = next(handshake)
	check("derived", salt[:], "43de77e0c77713859a944db9db2590b53190a65b3ee2e4f12dd7a0bb7ce254b4")
	master := extract(salt, make([]byte, hashSize))
	check("master secret", master[:], "18df06843d13a08bf2a449844c5f8a478001bc4d4c627984d5a41da8d0402919")
}
