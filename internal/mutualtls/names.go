package mutualtls

import (
	"crypto/tls"
	"errors"
)

// Errors of Names.
var (
	ErrNoCertificate = errors.New("a certificate is needed")
	ErrNoName        = errors.New("a certificate without a name")
)

// Names returns the names in the verified certificate of a peer: its common name, which is first if there is one, and its DNS names.
func Names(state *tls.ConnectionState) ([]string, error) {
	if state == nil || len(state.VerifiedChains) == 0 || len(state.PeerCertificates) == 0 {
		return nil, ErrNoCertificate
	}
	leaf := state.PeerCertificates[0]
	names := leaf.DNSNames
	if leaf.Subject.CommonName != "" {
		names = append([]string{leaf.Subject.CommonName}, names...)
	}
	if len(names) == 0 {
		return nil, ErrNoName
	}
	return names, nil
}
