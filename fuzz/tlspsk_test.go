package fuzz

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/tlspsk"
	"github.com/hyper-nixos/hyper-nixos/internal/tlspsk/tlspsktest"
)

const fuzzKey = "00112233445566778899aabbccddeeff"

// typed is a connection whose peer has typed everything beforehand.
type typed struct {
	net.Conn // nil: what is not below is not used
	in       *bytes.Reader
	out      bytes.Buffer
}

func (c *typed) Read(p []byte) (int, error)       { return c.in.Read(p) }
func (c *typed) Write(p []byte) (int, error)      { return c.out.Write(p) }
func (c *typed) SetWriteDeadline(time.Time) error { return nil }

// FuzzTLSPSKHello sends anything to a server of pre-shared keys, as a stranger can. Nobody gets in, what comes back is a HelloRetryRequest and an alert at most, and what is no offer
// of a key can be read again as it was.
func FuzzTLSPSKHello(f *testing.F) {
	keys, err := tlspsk.ParseKeys([]byte("alice:" + fuzzKey))
	if err != nil {
		f.Fatal(err)
	}
	for _, groups := range [][]uint16{{29, 23}, {24, 23}} {
		c := &typed{in: bytes.NewReader(nil)}
		_, _ = tlspsktest.Client{Identity: "alice", Key: make([]byte, 16), Groups: groups}.Handshake(c) // fails for want of an answer
		f.Add(bytes.Clone(c.out.Bytes()))
		f.Add(append(bytes.Clone(c.out.Bytes()), c.out.Bytes()...))
	}
	f.Add([]byte("IHAVEOPT\x00\x00\x00\x07"))
	f.Add([]byte("\x16\x03\x01\x00\x04\x01\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, input []byte) {
		c := &typed{in: bytes.NewReader(input)}
		hello, err := tlspsk.ReadHello(c)
		if err == nil && !hello.OffersKey() {
			again, err := io.ReadAll(hello.Unread())
			if err != nil || !bytes.Equal(again, input) {
				t.Fatalf("read again: % x, %v", again, err)
			}
			c.in.Reset(nil)
		}
		if err == nil {
			if _, err := hello.Accept(keys); err == nil {
				t.Fatal("a stranger got in")
			}
		}
		for p := c.out.Bytes(); len(p) > 0; {
			if len(p) < 5 || len(p) < 5+int(binary.BigEndian.Uint16(p[3:])) {
				t.Fatalf("half a record: % x", p)
			}
			size := int(binary.BigEndian.Uint16(p[3:]))
			if p[0] < 20 || p[0] > 22 || size > 200 {
				t.Fatalf("a record of type %d and %d bytes", p[0], size)
			}
			p = p[5+size:]
		}
	})
}

// FuzzTLSPSKRecords changes what an honest client sends after its handshake. What the server reads is a beginning of what was said.
func FuzzTLSPSKRecords(f *testing.F) {
	keys, err := tlspsk.ParseKeys([]byte("alice:" + fuzzKey))
	if err != nil {
		f.Fatal(err)
	}
	key, _ := hex.DecodeString(fuzzKey)
	f.Add(uint16(0), byte(0), uint16(100), []byte{})
	f.Add(uint16(7), byte(1), uint16(0), []byte("\x17\x03\x03\x00\x05hello"))
	f.Add(uint16(30), byte(0x80), uint16(40), []byte("\x14\x03\x03\x00\x01\x01"))
	f.Fuzz(func(t *testing.T, at uint16, change byte, cut uint16, more []byte) {
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		_ = a.SetDeadline(time.Now().Add(2 * time.Minute))
		_ = b.SetDeadline(time.Now().Add(2 * time.Minute))
		client := make(chan *tlspsktest.Session, 1)
		go func() {
			session, _ := tlspsktest.Client{Identity: "alice", Key: key}.Handshake(b)
			client <- session
		}()
		hello, err := tlspsk.ReadHello(a)
		if err != nil {
			t.Fatal(err)
		}
		server, err := hello.Accept(keys)
		if err != nil {
			t.Fatal(err)
		}
		session := <-client
		said := []byte("one record and another")
		sent := append(session.Seal(23, said[:10]), session.SealPadded(23, said[10:], 3)...)
		sent[int(at)%len(sent)] ^= change
		whole := int(cut) >= len(sent)
		sent = append(sent[:min(int(cut), len(sent))], more...)
		go func() {
			go func() { _, _ = io.Copy(io.Discard, b) }()
			_ = session.WriteRaw(sent)
			_ = b.Close()
		}()
		got, err := io.ReadAll(server)
		if err == nil {
			t.Fatal("an end that nobody meant")
		}
		if !bytes.HasPrefix(said, got) || whole && change == 0 && !bytes.Equal(got, said) {
			t.Fatalf("said %q, read %q", said, got)
		}
	})
}
