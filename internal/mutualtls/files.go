package mutualtls

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Files are the PEM files of one side: its certificate, with any intermediate ones behind it, for whichever of the two it is; that one's private key; and the authorities that the other side's must be signed by. They are read for
// each connection.
type Files struct{ Cert, Key, CA string }

// Set reports whether there are all.
func (f Files) Set() bool { return f.Cert != "" && f.Key != "" && f.CA != "" }

// load reads the files.
func (f Files) load() (cert tls.Certificate, pool *x509.CertPool, err error) {
	if cert, err = f.certificate(); err != nil {
		return cert, nil, err
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return cert, nil, fmt.Errorf("load authorities: %w", err)
	}
	pool = x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return cert, nil, fmt.Errorf("no certificate in %s: %w", f.CA, block.ErrInvalid)
	}
	return cert, pool, nil
}

func (f Files) certificate() (tls.Certificate, error) {
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return cert, fmt.Errorf("load certificate %s with key %s: %w", f.Cert, f.Key, err)
	}
	return cert, nil
}

// Check tells whether the files can be used. Who may read the key is not looked at: see Private.
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
				NextProtos: []string{"http/1.1"}, SessionTicketsDisabled: true,
			}, nil
		},
	}
}

// ClientConfig is for who connects to host: its certificate must be for that name or address, and of the authorities as they are now.
func (f Files) ClientConfig(host string) (*tls.Config, error) {
	_, pool, err := f.load()
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: host,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := f.certificate()
			return &cert, err
		},
	}, nil
}

// Private returns block.ErrInvalid for a file that every user of this machine can read or change.
func Private(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&0o006 != 0 {
		return fmt.Errorf("%s has mode %04o, so every user can read or change it; chmod 600 %s, and use a new key if others were here: %w", path, mode, path, block.ErrInvalid)
	}
	return nil
}
