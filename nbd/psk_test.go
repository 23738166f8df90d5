package nbd

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/tlspsk/tlspsktest"
)

// Keys of the tests.
const (
	guestKey = "5f0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8"
	otherKey = "00112233445566778899aabbccddeeff"
)

// keyFile writes a file of keys as a whole, as one should with files that somebody watches.
func keyFile(t testing.TB, dir, lines string) string {
	t.Helper()
	path := filepath.Join(dir, "keys.psk")
	if err := os.WriteFile(path+".new", []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	return path
}

// withKeys is a door that takes keys and certificates.
func withKeys(t testing.TB) func(*TLSOptions) {
	return func(o *TLSOptions) {
		o.PSKFile = keyFile(t, shortDir(t), "guest:"+guestKey+"\nother:"+otherKey+"\n")
	}
}

// keysOnly is a door without certificates.
func keysOnly(t testing.TB) func(*TLSOptions) {
	return func(o *TLSOptions) {
		withKeys(t)(o)
		o.CertFile, o.KeyFile, o.ClientCAFile = "", "", ""
	}
}

// pskClient is an honest client.
func pskClient(t testing.TB, identity, digits string) tlspsktest.Client {
	t.Helper()
	key, err := hex.DecodeString(digits)
	if err != nil {
		t.Fatal(err)
	}
	return tlspsktest.Client{Identity: identity, Key: key}
}

// startPSK sends the option and shakes hands with a key.
func (g *guarded) startPSK(c *client, with tlspsktest.Client) error {
	c.t.Helper()
	c.sendOption(5, nil)
	if kind, text := c.optionReply(5); kind != 1 {
		c.t.Fatalf("STARTTLS refused: %#x %q", kind, text)
	}
	session, err := with.Handshake(c.nc)
	if err != nil {
		return err
	}
	c.goOn(session)
	return nil
}

func TestPreSharedKeys(t *testing.T) {
	for name, door := range map[string]func(*TLSOptions){"beside certificates": withKeys(t), "alone": keysOnly(t)} {
		t.Run(name, func(t *testing.T) {
			dev := newMemDevice(1 << 20)
			g := guard(t, oneDisk(dev), door)
			c := g.dial(t)
			c.greet(3)
			if err := g.startPSK(c, pskClient(t, "guest", guestKey)); err != nil {
				t.Fatal(err)
			}
			c.sendOption(5, nil)
			if kind, _ := c.optionReply(5); kind != 1<<31+3 {
				t.Errorf("STARTTLS again: %#x", kind)
			}
			c.sendOption(7, infoRequest("disk"))
			for kind := uint32(3); kind != 1; {
				kind, _ = c.optionReply(7)
			}
			data := strings.Repeat("0123456789abcdef", 8<<10)
			c.send(header(0, 1, 1, 0, uint32(len(data))), []byte(data))
			c.expect(1, 0)
			c.send(header(0, 0, 2, 0, uint32(len(data))))
			c.expect(2, 0)
			if got := c.recv(len(data)); string(got) != data {
				t.Error("other bytes were read than written")
			}
			if peers := g.connsOf("disk"); len(peers) != 1 || peers[0].peer().Identity != "psk:guest" || !peers[0].peer().Encrypted {
				t.Errorf("%d clients", len(peers))
			}
			c.send(header(0, 2, 3, 0, 0))
			if n, err := c.nc.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("after DISC: %d bytes, %v", n, err)
			}
		})
	}
}

func TestPreSharedKeysThatAreWrong(t *testing.T) {
	tab := oneDisk(newMemDevice(1 << 20))
	g := guard(t, tab, withKeys(t))
	for name, tc := range map[string]struct {
		who   tlspsktest.Client
		alert tlspsktest.Alert
		says  string
	}{
		"wrong key":        {pskClient(t, "guest", otherKey), 51, `a wrong key for identity "guest"`},
		"unknown identity": {pskClient(t, "nobody", guestKey), 51, `no key for identity "nobody"`},
		"TLS 1.2":          {func() tlspsktest.Client { c := pskClient(t, "guest", guestKey); c.Version = 0x0303; return c }(), 70, "TLS 1.3"},
	} {
		c := g.dial(t)
		c.greet(3)
		var alert tlspsktest.Alert
		if err := g.startPSK(c, tc.who); !errors.As(err, &alert) || alert != tc.alert {
			t.Errorf("%s: %v", name, err)
		}
		if err := <-g.fail; !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), tc.who.Identity) && strings.Contains(err.Error(), guestKey[:8]) {
			t.Errorf("%s: reported %v", name, err)
		}
	}
	if tab.heldOf("disk") != 0 {
		t.Error("an export was opened")
	}
}

// TestWithoutPreSharedKeys: a key that nobody asked for is ignored, and with it a client that has nothing else.
func TestWithoutPreSharedKeys(t *testing.T) {
	g := guard(t, oneDisk(newMemDevice(1<<20)), nil)
	c := g.dial(t)
	c.greet(3)
	var alert tlspsktest.Alert
	if err := g.startPSK(c, pskClient(t, "guest", guestKey)); !errors.As(err, &alert) {
		t.Errorf("a key where there are none: %v", err)
	}
	g = guard(t, oneDisk(newMemDevice(1<<20)), keysOnly(t))
	c = g.dial(t)
	c.greet(3)
	if err := g.startTLS(c, g.ca.Client("guest")); err == nil {
		t.Error("a certificate where there are none")
	}
	g = guard(t, oneDisk(newMemDevice(1<<20)), withKeys(t))
	for range 2 {
		c = g.dial(t)
		c.greet(3)
		if err := g.startTLS(c, g.ca.Client("guest")); err != nil {
			t.Errorf("a certificate beside keys: %v", err)
		}
	}
}

// TestPlainTextBehindStartTLS on a door with keys.
func TestPlainTextBehindStartTLS(t *testing.T) {
	tab := oneDisk(newMemDevice(1 << 20))
	g := guard(t, tab, keysOnly(t))
	c := g.dial(t)
	c.greet(3)
	c.sendOption(5, nil)
	c.optionReply(5)
	c.sendOption(7, infoRequest("disk"))
	if got, _ := io.ReadAll(c.nc); len(got) != 7 || got[0] != 21 || got[6] != 10 {
		t.Errorf("answered % x", got)
	}
	if err := <-g.fail; !strings.Contains(err.Error(), "no TLS") || tab.heldOf("disk") != 0 {
		t.Errorf("reported %v", err)
	}
}

// TestSlowPSKHandshake: the limit on the handshake holds, whatever the client has sent of it.
func TestSlowPSKHandshake(t *testing.T) {
	g := guardWith(t, oneDisk(newMemDevice(1<<20)), keysOnly(t), Options{HandshakeTimeout: 2 * time.Second}) // enough to come as far as each of these does
	var running sync.WaitGroup
	defer running.Wait()
	for _, sent := range []string{"", "\x16", "\x16\x03\x01\x01\x00\x01\x00\x00", "\x16\x03\x01\x00\x01\x01"} {
		c := g.dial(t)
		c.greet(3)
		c.sendOption(5, nil)
		c.optionReply(5)
		c.send([]byte(sent))
		running.Go(func() {
			if _, err := io.ReadAll(c.nc); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("after %q the client may stay", sent)
			}
		})
	}
}

// TestPSKThatIsCutOff: an end without close_notify is told apart from one that the client wanted.
func TestPSKThatIsCutOff(t *testing.T) {
	left := make(chan error, 1)
	g := guardWith(t, oneDisk(newMemDevice(1<<20)), keysOnly(t), Options{Events: Events{Disconnected: func(_ Peer, err error) { left <- err }}})
	for _, orderly := range []bool{true, false} {
		c := g.dial(t)
		c.greet(3)
		if err := g.startPSK(c, pskClient(t, "guest", guestKey)); err != nil {
			t.Fatal(err)
		}
		c.sendOption(7, infoRequest("disk"))
		for kind := uint32(3); kind != 1; {
			kind, _ = c.optionReply(7)
		}
		if orderly {
			if err := c.nc.(*tlspsktest.Session).CloseWrite(); err != nil {
				t.Error(err)
			}
		}
		_ = c.nc.Close()
		if err := <-left; (err == nil) != orderly || !orderly && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("orderly %v: %v", orderly, err)
		}
	}
}

func TestPreSharedKeysAreReloaded(t *testing.T) {
	failed := make(chan error, 16)
	dir := shortDir(t)
	g := guard(t, oneDisk(newMemDevice(1<<20)), func(o *TLSOptions) {
		o.PSKFile = keyFile(t, dir, "guest:"+guestKey+"\n")
		o.ReloadFailed = func(err error) { failed <- err }
	})
	comesIn := func(identity, key string) bool {
		c := g.dial(t)
		c.greet(3)
		return g.startPSK(c, pskClient(t, identity, key)) == nil
	}
	if !comesIn("guest", guestKey) || comesIn("other", otherKey) {
		t.Error("the first file does not count")
	}
	keyFile(t, dir, "other:"+otherKey+"\n")
	if comesIn("guest", guestKey) || !comesIn("other", otherKey) {
		t.Error("the second file does not count")
	}
	keyFile(t, dir, "other:"+otherKey+"\nguest:"+guestKey[1:]+"\n")
	if !comesIn("other", otherKey) {
		t.Error("a file that is no good took the keys away")
	}
	if err := <-failed; !errors.Is(err, block.ErrInvalid) || !strings.Contains(err.Error(), "line 2") || strings.Contains(err.Error(), guestKey[1:9]) {
		t.Errorf("reported: %v", err)
	}
}

// TestNamesOfClients: what a certificate bears never reads as the identity of a key.
func TestNamesOfClients(t *testing.T) {
	named := func(name string) Client {
		return Client{Certificate: &x509.Certificate{Subject: pkix.Name{CommonName: name}}}
	}
	for want, c := range map[string]Client{
		"": {}, "guest": named("guest"), "psk:guest": {PSK: "guest"}, "x509:psk:guest": named("psk:guest"), "x509:x509:psk:guest": named("x509:psk:guest"), "psk:psk:guest": {PSK: "psk:guest"},
	} {
		if got := c.Identity(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
