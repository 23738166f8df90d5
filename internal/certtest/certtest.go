package certtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority signs certificates. It and they live for an hour.
type Authority struct {
	Cert *x509.Certificate
	t    testing.TB
	key  *ecdsa.PrivateKey
}

// New returns a new authority. What goes wrong ends the test.
func New(t testing.TB, name string) *Authority {
	a := &Authority{t: t, key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	a.Cert = a.sign(template, template, a.key)
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *Authority) sign(template, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

// Issue returns a certificate for a server on this machine, or for a client, which ends in so much time (or has, if that is negative).
func (a *Authority) Issue(name string, usage x509.ExtKeyUsage, lasts time.Duration) tls.Certificate {
	key := newKey(a.t)
	cert := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(lasts),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, a.Cert, key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

// Server returns a certificate for a server on this machine.
func (a *Authority) Server() tls.Certificate {
	return a.Issue("server", x509.ExtKeyUsageServerAuth, time.Hour)
}

// Client returns a certificate for a client.
func (a *Authority) Client(name string) tls.Certificate {
	return a.Issue(name, x509.ExtKeyUsageClientAuth, time.Hour)
}

// Pool holds the authority alone.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.Cert)
	return pool
}

// Store writes what clients and servers of QEMU and libnbd look for in a folder: ca-cert.pem, and ROLE-cert.pem with ROLE-key.pem.
func (a *Authority) Store(dir, role string, cert tls.Certificate) {
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		a.t.Fatal(err)
	}
	a.StoreSelf(dir)
	a.put(dir, role+"-cert.pem", "CERTIFICATE", cert.Certificate[0])
	a.put(dir, role+"-key.pem", "PRIVATE KEY", key)
}

// StoreSelf writes ca-cert.pem alone.
func (a *Authority) StoreSelf(dir string) { a.put(dir, "ca-cert.pem", "CERTIFICATE", a.Cert.Raw) }

// put replaces a file as a whole, as one should with files that somebody watches.
func (a *Authority) put(dir, name, kind string, der []byte) {
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path+".new", pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		a.t.Fatal(err)
	}
}
