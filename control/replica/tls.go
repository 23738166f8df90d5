package replica

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Files are the PEM files of TLS between two hvd: one certificate for both directions, and the authorities that the other one's must be signed by. They are read for each connection, so a renewed
// certificate needs no restart.
type Files struct{ Cert, Key, CA string }

// Set reports whether there are any.
func (f Files) Set() bool { return f.Cert != "" && f.Key != "" && f.CA != "" }

// load reads the files.
func (f Files) load() (tls.Certificate, *x509.CertPool, error) {
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return cert, nil, fmt.Errorf("load certificate %s with key %s: %w", f.Cert, f.Key, err)
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return cert, nil, fmt.Errorf("load authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return cert, nil, fmt.Errorf("no certificate in %s: %w", f.CA, block.ErrInvalid)
	}
	return cert, pool, nil
}

// Check tells whether the files can be used.
func (f Files) Check() error {
	_, _, err := f.load()
	return err
}

// ServerConfig is for who listens: TLS 1.3, and nobody gets in without a certificate of the authorities. failed is told when the files cannot be used for a connection.
func (f Files) ServerConfig(failed func(error)) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			cert, pool, err := f.load()
			if err != nil {
				failed(err)
				return nil, err
			}
			return &tls.Config{
				MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
				NextProtos: []string{"http/1.1"}, SessionTicketsDisabled: true, // a resumed session would outlive a change of the authorities
			}, nil
		},
	}
}

// clientConfig is for who connects to host: its certificate must be for that name or address, and of the authorities.
func (f Files) clientConfig(host string) (*tls.Config, error) {
	if !f.Set() {
		return nil, fmt.Errorf("hvd:// is always under TLS, with certificates on both sides: set replication.cert, replication.key and replication.ca: %w", block.ErrInvalid)
	}
	cert, pool, err := f.load()
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: pool, ServerName: host}, nil
}
