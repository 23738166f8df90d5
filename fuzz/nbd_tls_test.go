package fuzz

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// FuzzNBDForcedTLS sends anything in plain text to a door that wants TLS. Whatever it is, no export is touched, and no option gets another answer
// than that TLS is required, but for STARTTLS and ABORT.
func FuzzNBDForcedTLS(f *testing.F) {
	rules := selfSigned(f)
	option := func(kind byte, data string) string {
		return "IHAVEOPT\x00\x00\x00" + string(rune(kind)) + "\x00\x00\x00" + string(rune(len(data))) + data
	}
	info := "\x00\x00\x00\x04disk\x00\x00"
	for _, seed := range []string{
		"", option(1, "disk"), option(2, ""), option(3, ""), option(5, ""), option(5, "x"), option(6, info), option(7, info), option(8, ""), option(11, ""),
		option(5, "") + option(7, info), option(8, "") + option(5, "") + "\x16\x03\x01\x00\x05hello", option(5, "") + option(5, ""),
		"IHAVEOPT\x00\x00\x00\x07\x00\x01\x00\x00",
	} {
		for _, flags := range []byte{0, 1, 2, 3} {
			f.Add(append([]byte{0, 0, 0, flags}, seed...))
		}
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		s := newNBDServer(t)
		s.door.TLS = rules
		s.run(t, func(nc net.Conn) {
			if _, err := io.ReadFull(nc, make([]byte, 18)); err != nil {
				t.Fatalf("no greeting: %v", err)
			}
			checkPlainReplies(t, converse(nc, input))
		})
		if s.acquired.Load() != 0 {
			t.Fatal("an export was opened in plain text")
		}
	})
}

// checkPlainReplies parses option replies up to the one that begins TLS.
func checkPlainReplies(t *testing.T, p []byte) {
	for len(p) > 0 {
		if len(p) < 20 || binary.BigEndian.Uint64(p) != 0x3e889045565a9 || len(p)-20 < int(binary.BigEndian.Uint32(p[16:])) {
			t.Fatalf("not an option reply: % x", p[:min(len(p), 40)])
		}
		opt, kind := binary.BigEndian.Uint32(p[8:]), binary.BigEndian.Uint32(p[12:])
		const ack, invalid, tlsRequired = 1, 1<<31 + 3, 1<<31 + 5
		switch {
		case opt == 5 && kind == ack:
			return
		case opt == 5 && kind == invalid, opt == 2 && kind == ack:
		case opt == 5 || opt == 2 || kind != tlsRequired:
			t.Fatalf("option %d answered %#x", opt, kind)
		}
		p = p[20+binary.BigEndian.Uint32(p[16:]):]
	}
}

// selfSigned makes a certificate and the rules of a door that insists on TLS.
func selfSigned(f *testing.F) *nbd.TLS {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		f.Fatal(err)
	}
	var both bytes.Buffer
	for _, block := range []pem.Block{{Type: "CERTIFICATE", Bytes: cert}, {Type: "PRIVATE KEY", Bytes: der}} {
		if err := pem.Encode(&both, &block); err != nil {
			f.Fatal(err)
		}
	}
	file := filepath.Join(f.TempDir(), "both.pem")
	if err := os.WriteFile(file, both.Bytes(), 0o600); err != nil {
		f.Fatal(err)
	}
	rules, err := nbd.OpenTLS(nbd.TLSOptions{CertFile: file, KeyFile: file, Required: true})
	if err != nil {
		f.Fatal(err)
	}
	return rules
}
