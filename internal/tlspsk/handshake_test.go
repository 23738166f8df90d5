package tlspsk

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/tlspsk/tlspsktest"
)

func keyOf(t testing.TB, digits string) []byte {
	t.Helper()
	key, err := hex.DecodeString(digits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// alice is an honest client.
func alice(t testing.TB) tlspsktest.Client {
	return tlspsktest.Client{Identity: "alice", Key: keyOf(t, testKey)}
}

// pair returns both ends of a socket.
func pair(t testing.TB) (server, client net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	for _, nc := range []net.Conn{server, client} {
		_ = nc.SetDeadline(time.Now().Add(2 * time.Minute))
		t.Cleanup(func() { _ = nc.Close() })
	}
	return server, client
}

// shake does a handshake and returns what came of it on both sides.
func shake(t testing.TB, c tlspsktest.Client) (server *Conn, serverErr error, client *tlspsktest.Session, clientErr error) {
	t.Helper()
	a, b := pair(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if server, serverErr = accept(a, testKeys(t)); serverErr != nil {
			_ = a.Close()
		}
	}()
	if client, clientErr = c.Handshake(b); clientErr == nil {
		<-done
		return server, serverErr, client, nil
	}
	_ = b.Close()
	<-done
	return server, serverErr, client, clientErr
}

// connected is shake of a client that must come in.
func connected(t testing.TB, c tlspsktest.Client) (*Conn, *tlspsktest.Session) {
	t.Helper()
	server, serverErr, client, err := shake(t, c)
	if serverErr != nil || err != nil {
		t.Fatalf("server: %v, client: %v", serverErr, err)
	}
	return server, client
}

func TestHandshakes(t *testing.T) {
	for name, tc := range map[string]struct {
		change  func(*tlspsktest.Client)
		who     string
		retried bool
	}{
		"plain":                 {func(*tlspsktest.Client) {}, "alice", false},
		"another identity":      {func(c *tlspsktest.Client) { c.Identity, c.Key = "bob", keyOf(t, "ffeeddccbbaa99887766554433221100") }, "bob", false},
		"P-256":                 {func(c *tlspsktest.Client) { c.Groups = []uint16{23} }, "alice", false},
		"P-256 shared first":    {func(c *tlspsktest.Client) { c.Groups = []uint16{23, 29} }, "alice", false},
		"retry for P-256":       {func(c *tlspsktest.Client) { c.Groups = []uint16{24, 23} }, "alice", true},
		"retry for X25519":      {func(c *tlspsktest.Client) { c.Groups, c.Share = []uint16{23, 24, 29}, 24 }, "alice", true},
		"no middleboxes":        {func(c *tlspsktest.Client) { c.NoCompat = true }, "alice", false},
		"retry, no middleboxes": {func(c *tlspsktest.Client) { c.NoCompat, c.Groups = true, []uint16{24, 29} }, "alice", true},
		"one byte a record":     {func(c *tlspsktest.Client) { c.Fragment = 1 }, "alice", false},
		"second identity":       {func(c *tlspsktest.Client) { c.Others = []string{"nobody"} }, "alice", false},
		"other suites too":      {func(c *tlspsktest.Client) { c.Suites = []uint16{0x1302, 0x1303, 0x1301, 0x00a8} }, "alice", false},
		"psk_ke too":            {func(c *tlspsktest.Client) { c.Modes = []byte{0, 1} }, "alice", false},
		"what nobody knows":     {func(c *tlspsktest.Client) { c.Extensions = extra(0x1234, []byte("?")) }, "alice", false},
		"a long hello":          {func(c *tlspsktest.Client) { c.Extensions = extra(21, make([]byte, maxHello-600)) }, "alice", false},
	} {
		t.Run(name, func(t *testing.T) {
			c := alice(t)
			tc.change(&c)
			server, client := connected(t, c)
			if server.Identity() != tc.who || client.Retried != tc.retried {
				t.Errorf("identity %q, retried %v", server.Identity(), client.Retried)
			}
			talk(t, server, client, 100_000)
		})
	}
}

// talk sends data both ways at once.
func talk(t *testing.T, server *Conn, client *tlspsktest.Session, size int) {
	t.Helper()
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i * i >> 3)
	}
	errs := make(chan error, 4)
	receive := func(from io.Reader) {
		got := make([]byte, size)
		_, err := io.ReadFull(from, got)
		if err == nil && !bytes.Equal(got, data) {
			err = errors.New("other bytes came than were sent")
		}
		errs <- err
	}
	send := func(to io.Writer) { _, err := to.Write(data); errs <- err }
	go send(server)
	go send(client)
	go receive(server)
	go receive(client)
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// extra adds an extension.
func extra(kind uint16, body []byte) func([]tlspsktest.Extension) []tlspsktest.Extension {
	return func(all []tlspsktest.Extension) []tlspsktest.Extension {
		return append(all, tlspsktest.Extension{Kind: kind, Body: body})
	}
}

// without takes an extension away.
func without(kind uint16) func([]tlspsktest.Extension) []tlspsktest.Extension { return with(kind, nil) }

// with changes the content of an extension, or takes it away.
func with(kind uint16, body []byte) func([]tlspsktest.Extension) []tlspsktest.Extension {
	return func(all []tlspsktest.Extension) []tlspsktest.Extension {
		var changed []tlspsktest.Extension
		for _, e := range all {
			if e.Kind == kind {
				if body == nil {
					continue
				}
				e.Body = body
			}
			changed = append(changed, e)
		}
		return changed
	}
}

// flip changes one bit, counted in bytes from the end.
func flip(fromEnd int) func([]byte) []byte {
	return func(m []byte) []byte {
		m = bytes.Clone(m)
		m[len(m)-fromEnd] ^= 1
		return m
	}
}

func TestHandshakesThatFail(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*tlspsktest.Client)
		alert  alert
		says   string
	}{
		"wrong key":        {func(c *tlspsktest.Client) { c.Key = make([]byte, 16) }, alertDecryptError, `a wrong key for identity "alice"`},
		"unknown identity": {func(c *tlspsktest.Client) { c.Identity = "eve" }, alertDecryptError, `no key for identity "eve"`},
		"key of another":   {func(c *tlspsktest.Client) { c.Identity = "bob" }, alertDecryptError, `a wrong key for identity "bob"`},
		"wrong binder":     {func(c *tlspsktest.Client) { c.Sign = flip(1) }, alertDecryptError, "wrong key"},
		"changed hello": {func(c *tlspsktest.Client) {
			c.Sign = func(m []byte) []byte { m = bytes.Clone(m); m[10] ^= 1; return m }
		}, alertDecryptError, "wrong key"},
		"changed second hello": {func(c *tlspsktest.Client) { c.Groups, c.Again = []uint16{24, 23}, flip(1) }, alertDecryptError, "wrong key"},
		"another second hello": {func(c *tlspsktest.Client) {
			c.Groups, c.Again = []uint16{24, 23}, func(m []byte) []byte { m = bytes.Clone(m); m[10] ^= 1; return m }
		}, alertIllegalParameter, "another one"},
		"TLS 1.2":                              {func(c *tlspsktest.Client) { c.Version = 0x0303 }, alertProtocolVersion, "TLS 1.3"},
		"no versions":                          {func(c *tlspsktest.Client) { c.Extensions = without(43) }, alertProtocolVersion, "TLS 1.3"},
		"psk_ke alone":                         {func(c *tlspsktest.Client) { c.Modes = []byte{0} }, alertHandshakeFailure, "psk_dhe_ke"},
		"no modes":                             {func(c *tlspsktest.Client) { c.Extensions = without(45) }, alertMissingExtension, "modes"},
		"no shares":                            {func(c *tlspsktest.Client) { c.Extensions = without(51) }, alertMissingExtension, "key_share"},
		"no groups":                            {func(c *tlspsktest.Client) { c.Extensions = without(10) }, alertMissingExtension, "supported_groups"},
		"no group that fits":                   {func(c *tlspsktest.Client) { c.Groups = []uint16{24, 25} }, alertHandshakeFailure, "X25519"},
		"SHA-384 alone":                        {func(c *tlspsktest.Client) { c.Suites = []uint16{0x1302} }, alertHandshakeFailure, "AES_128"},
		"share of a group that is not offered": {func(c *tlspsktest.Client) { c.Groups, c.Share = []uint16{24}, 29 }, alertIllegalParameter, "key share"},
		"share of zeroes": {func(c *tlspsktest.Client) {
			c.Extensions = with(51, append([]byte{0, 36, 0, 29, 0, 32}, make([]byte, 32)...))
		}, alertIllegalParameter, "key share"},
		"short share": {func(c *tlspsktest.Client) {
			c.Extensions = with(51, append([]byte{0, 35, 0, 29, 0, 31}, make([]byte, 31)...))
		}, alertIllegalParameter, "key share"},
		"share beyond its list": {func(c *tlspsktest.Client) { c.Extensions = with(51, []byte{0, 4, 0, 29, 0, 32}) }, alertDecodeError, "key_share"},
		"early data":            {func(c *tlspsktest.Client) { c.Extensions = extra(42, nil) }, alertIllegalParameter, "early data"},
		"an extension twice":    {func(c *tlspsktest.Client) { c.Extensions = extra(43, []byte{2, 3, 4}) }, alertIllegalParameter, "twice"},
		"too many extensions": {func(c *tlspsktest.Client) {
			c.Extensions = func(all []tlspsktest.Extension) []tlspsktest.Extension {
				for i := range uint16(maxExtensions) {
					all = append(all, tlspsktest.Extension{Kind: 1000 + i})
				}
				return all
			}
		}, alertDecodeError, "extensions"},
		"a hello of 17 KiB": {func(c *tlspsktest.Client) {
			c.Sign = func(m []byte) []byte { m = bytes.Clone(m); m[2] = 17 << 10 >> 8; return m }
		}, alertDecodeError, "bytes"},
		"something behind the hello": {func(c *tlspsktest.Client) { c.Sign = func(m []byte) []byte { return append(bytes.Clone(m), 1) } }, alertUnexpectedMessage, "behind"},
		"a list that is too short":   {func(c *tlspsktest.Client) { c.Sign = flip(33 + 1 + 1) }, alertDecodeError, "malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			c := alice(t)
			tc.change(&c)
			server, err, _, clientErr := shake(t, c)
			var why *failure
			if server != nil || !errors.As(err, &why) || why.alert != tc.alert || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("server: %v", err)
			}
			var told tlspsktest.Alert
			if !errors.As(clientErr, &told) || alert(told) != tc.alert {
				t.Errorf("client: %v", clientErr)
			}
		})
	}
}

// TestWrongFinished: a client that knows the key and not what was said, as one in the middle would.
func TestWrongFinished(t *testing.T) {
	for name, finish := range map[string]func([]byte) []byte{
		"changed": flip(1), "short": func(c []byte) []byte { return c[1:] }, "empty": func([]byte) []byte { return nil },
	} {
		c := alice(t)
		c.Finish = finish
		_, err, client, clientErr := shake(t, c)
		var why *failure
		if clientErr != nil || !errors.As(err, &why) || why.alert != alertDecryptError {
			t.Errorf("%s: %v, %v", name, err, clientErr)
		}
		_ = client
	}
}

// TestHelloIsUnread: what does not offer a key can be read again from the start.
func TestHelloIsUnread(t *testing.T) {
	server, client := pair(t)
	sent := append([]byte{22, 3, 1, 0, 47, 1, 0, 0, 43, 3, 3}, make([]byte, 32)...)
	sent = append(sent, 0, 0, 2, 0x00, 0x2f, 1, 0, 0, 0)
	if _, err := client.Write(append(bytes.Clone(sent), "rest"...)); err != nil {
		t.Fatal(err)
	}
	hello, err := ReadHello(server)
	if err != nil || hello.OffersKey() {
		t.Fatalf("%v", err)
	}
	got := make([]byte, len(sent)+4)
	if _, err := io.ReadFull(hello.Unread(), got); err != nil || string(got) != string(sent)+"rest" {
		t.Errorf("% x, %v", got, err)
	}
	server, client = pair(t)
	if _, err := client.Write(sent); err != nil {
		t.Fatal(err)
	}
	if _, err := accept(server, testKeys(t)); err == nil || !strings.Contains(err.Error(), "protocol_version") {
		t.Errorf("a client of TLS 1.2: %v", err)
	}
	if told, err := io.ReadAll(io.LimitReader(client, 7)); err != nil || string(told) != "\x15\x03\x03\x00\x02\x02\x46" {
		t.Errorf("told % x, %v", told, err)
	}
}

// TestWhatIsNoHello ends with an alert, and reads no more than it must.
func TestWhatIsNoHello(t *testing.T) {
	for name, tc := range map[string]struct {
		sent  string
		alert alert
	}{
		"plain text":           {"IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x00", alertUnexpectedMessage},
		"data":                 {"\x17\x03\x03\x00\x01x", alertUnexpectedMessage},
		"an empty record":      {"\x16\x03\x01\x00\x00", alertUnexpectedMessage},
		"ChangeCipherSpec":     {"\x14\x03\x01\x00\x01\x01", alertUnexpectedMessage},
		"Finished":             {"\x16\x03\x01\x00\x04\x14\x00\x00\x00", alertUnexpectedMessage},
		"too long a record":    {"\x16\x03\x01\x40\x01", alertRecordOverflow},
		"16 MiB":               {"\x16\x03\x01\x00\x04\x01\xff\xff\xff", alertDecodeError},
		"an empty ClientHello": {"\x16\x03\x01\x00\x04\x01\x00\x00\x00", alertDecodeError},
	} {
		server, client := pair(t)
		if _, err := client.Write([]byte(tc.sent)); err != nil {
			t.Fatal(err)
		}
		_, err := ReadHello(server)
		var why *failure
		if !errors.As(err, &why) || why.alert != tc.alert {
			t.Errorf("%s: %v", name, err)
		}
		told := make([]byte, 7)
		if _, err := io.ReadFull(client, told); err != nil || told[0] != 21 || alert(told[6]) != tc.alert {
			t.Errorf("%s: told % x, %v", name, told, err)
		}
	}
	server, client := pair(t)
	_, _ = client.Write([]byte("\x16\x03\x01\x00\x40\x01\x00"))
	_ = client.Close()
	if _, err := ReadHello(server); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a ClientHello that was cut off: %v", err)
	}
}
