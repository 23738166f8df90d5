package nbd

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"sync/atomic"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/tlspsk"
)

// TLSOptions say how a door does TLS ("TLS support" in the protocol): with X.509 certificates (TLS 1.2 or later), with pre-shared keys (TLS 1.3), or with
// whichever of the two a client offers.
type TLSOptions struct {
	// CertFile and KeyFile are the server's certificate, with any intermediate ones behind it, and its private key, in PEM. Without them there are
	// pre-shared keys only.
	CertFile, KeyFile string
	// ClientCAFile holds the authorities, in PEM, of which one must have signed the client's certificate. Without it clients need none, and all
	// are alike.
	ClientCAFile string
	// PSKFile holds the pre-shared keys of clients, a line IDENTITY:HEX for each, as psktool writes it. A client that offers a key must have one of these,
	// whatever certificate it may have besides. Without the file nobody has a key.
	PSKFile string
	// Required refuses everything in plain text but STARTTLS and ABORT (FORCEDTLS). Otherwise a client may choose, unless the export itself
	// wants TLS (SELECTIVETLS, see ErrTLSRequired); whoever sits on the wire may then choose for the client.
	Required bool
	// PlainLoopback exempts clients with a loopback address from Required.
	PlainLoopback bool
	// ReloadFailed is told when files that have changed cannot be used; what was loaded before stays in use. Default: nobody is.
	ReloadFailed func(error)
}

// TLS is a door's certificate and its rules. It looks at the files at each handshake and takes up those that have changed, so a renewed certificate
// needs no restart; connections that exist are left alone.
type TLS struct {
	opts   TLSOptions
	loaded atomic.Pointer[loadedTLS]
}

// loadedTLS is what was made of the files as they were.
type loadedTLS struct {
	config *tls.Config   // nil without a certificate
	keys   *tlspsk.Keys  // nil without pre-shared keys
	files  []os.FileInfo // nil for one that was not there
}

// OpenTLS loads the files. An error wraps block.ErrInvalid if they can be read but not used.
func OpenTLS(o TLSOptions) (*TLS, error) {
	t := &TLS{opts: o}
	if o.CertFile == "" && o.PSKFile == "" {
		return nil, fmt.Errorf("nbd: TLS with neither a certificate nor pre-shared keys: %w", block.ErrInvalid)
	}
	loaded, err := t.load(t.stat())
	if err != nil {
		return nil, err
	}
	t.loaded.Store(loaded)
	return t, nil
}

// stat looks at the files. It comes before they are read, so a change in between is seen next time.
func (t *TLS) stat() []os.FileInfo {
	var files []os.FileInfo
	for _, name := range []string{t.opts.CertFile, t.opts.KeyFile, t.opts.ClientCAFile, t.opts.PSKFile} {
		if name != "" {
			info, err := os.Stat(name)
			if err != nil {
				info = nil
			}
			files = append(files, info)
		}
	}
	return files
}

// load reads the files, which looked like that before.
func (t *TLS) load(files []os.FileInfo) (*loadedTLS, error) {
	loaded, err := &loadedTLS{files: files}, error(nil)
	if t.opts.CertFile != "" {
		if loaded.config, err = t.loadCertificates(); err != nil {
			return nil, err
		}
	}
	if t.opts.PSKFile != "" {
		if loaded.keys, err = tlspsk.LoadKeys(t.opts.PSKFile); err != nil {
			return nil, fmt.Errorf("nbd: %w", err)
		}
	}
	return loaded, nil
}

// loadCertificates reads the files of X.509.
func (t *TLS) loadCertificates() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(t.opts.CertFile, t.opts.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("nbd: load certificate %s with key %s: %w", t.opts.CertFile, t.opts.KeyFile, orInvalid(err))
	}
	config := &tls.Config{
		Certificates: []tls.Certificate{cert},
		MinVersion:   tls.VersionTLS12,
		// A resumed session would outlive a change of the authorities.
		SessionTicketsDisabled: true,
		// The traffic is bulk data, which small first records only slow down.
		DynamicRecordSizingDisabled: true,
	}
	if t.opts.ClientCAFile == "" {
		return config, nil
	}
	pem, err := os.ReadFile(t.opts.ClientCAFile)
	if err != nil {
		return nil, fmt.Errorf("nbd: load authorities of clients: %w", err)
	}
	config.ClientCAs = x509.NewCertPool()
	if !config.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("nbd: no certificate in %s: %w", t.opts.ClientCAFile, block.ErrInvalid)
	}
	config.ClientAuth = tls.RequireAndVerifyClientCert
	return config, nil
}

// orInvalid marks errors that are not the file system's.
func orInvalid(err error) error {
	if _, ok := err.(*os.PathError); ok {
		return err
	}
	return fmt.Errorf("%w: %w", err, block.ErrInvalid)
}

// current returns what the files say now. A change that cannot be used is reported once.
func (t *TLS) current() *loadedTLS {
	old := t.loaded.Load()
	files := t.stat()
	if sameFiles(old.files, files) {
		return old
	}
	loaded, err := t.load(files)
	if err != nil {
		loaded = &loadedTLS{config: old.config, keys: old.keys, files: files}
	}
	swapped := t.loaded.CompareAndSwap(old, loaded)
	if err != nil && swapped && t.opts.ReloadFailed != nil {
		t.opts.ReloadFailed(err)
	}
	return loaded
}

func sameFiles(a, b []os.FileInfo) bool {
	for i := range a {
		if (a[i] == nil) != (b[i] == nil) {
			return false
		}
		if a[i] != nil && (!os.SameFile(a[i], b[i]) || !a[i].ModTime().Equal(b[i].ModTime()) || a[i].Size() != b[i].Size()) {
			return false
		}
	}
	return true
}

// requiredOf reports whether a client from addr may do nothing in plain text.
func (t *TLS) requiredOf(addr net.Addr) bool {
	if !t.opts.Required {
		return false
	}
	tcp, ok := addr.(*net.TCPAddr)
	return !(t.opts.PlainLoopback && ok && tcp.IP.IsLoopback())
}
