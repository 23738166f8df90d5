package tlspsktest

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
)

// Client says what a client offers. The zero value of a field is what an honest one would say.
type Client struct {
	Identity string
	Key      []byte

	Version  uint16   // offered in supported_versions; 1.3
	Suites   []uint16 // TLS_AES_128_GCM_SHA256
	Groups   []uint16 // X25519, P-256
	Share    uint16   // the group that a share is sent of at first; the first of Groups
	Modes    []byte   // psk_dhe_ke
	Others   []string // identities before Identity, with binders of zeroes
	NoCompat bool     // no session id, so no ChangeCipherSpec

	// Extensions changes the list of extensions before the one of the keys, which are pairs of a number and its content.
	Extensions func([]Extension) []Extension
	// Sign changes the ClientHello behind its binder, Again the second one.
	Sign, Again func(message []byte) []byte
	// Fragment cuts handshake messages into records of so many bytes.
	Fragment int
	// Finish changes the content of Finished.
	Finish func(content []byte) []byte
}

// Extension is one of the ClientHello.
type Extension struct {
	Kind uint16
	Body []byte
}

const (
	helloRetry      = "\xcf\x21\xad\x74\xe5\x9a\x61\x11\xbe\x1d\x8c\x02\x1e\x65\xb8\x91\xc2\xa2\x11\x16\x7a\xbb\x8c\x5e\x07\x9e\x09\xe2\xc8\xa8\x33\x9c"
	recordCCS       = 20
	recordAlert     = 21
	recordHandshake = 22
	recordData      = 23
)

// Alert is an alert that the server sent.
type Alert byte

func (a Alert) Error() string { return fmt.Sprintf("alert %d", byte(a)) }

func u16(b []byte, n int) []byte { return binary.BigEndian.AppendUint16(b, uint16(n)) }

// with8 and with16 put a length before a list.
func with8(b []byte) []byte  { return append([]byte{byte(len(b))}, b...) }
func with16(b []byte) []byte { return append(u16(nil, len(b)), b...) }

func list(numbers []uint16) (b []byte) {
	for _, n := range numbers {
		b = u16(b, int(n))
	}
	return b
}

// orElse returns a, or b if that is the zero value.
func orElse(a, b []uint16) []uint16 {
	if a == nil {
		return b
	}
	return a
}

// state is a handshake under way.
type state struct {
	Client
	random, session []byte
	keys            map[uint16]*ecdh.PrivateKey
	early           []byte
}

func (s *state) share(group uint16) ([]byte, error) {
	curves := map[uint16]ecdh.Curve{29: ecdh.X25519(), 23: ecdh.P256()}
	if curves[group] == nil {
		return bytes.Repeat([]byte{4}, 97), nil // of a group that is only named
	}
	key, err := curves[group].GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	s.keys[group] = key
	return key.PublicKey().Bytes(), nil
}

// hello makes a ClientHello with a share of a group. before is what the transcript holds before it.
func (s *state) hello(group uint16, before []byte) ([]byte, error) {
	share, err := s.share(group)
	if err != nil {
		return nil, err
	}
	version := s.Version
	if version == 0 {
		version = 0x0304
	}
	modes := s.Modes
	if modes == nil {
		modes = []byte{1}
	}
	extensions := []Extension{
		{10, with16(list(orElse(s.Groups, []uint16{29, 23})))},
		{43, with8(list([]uint16{version}))},
		{45, with8(modes)},
		{51, with16(append(u16(nil, int(group)), with16(share)...))},
	}
	if s.Extensions != nil {
		extensions = s.Extensions(extensions)
	}
	var identities, binders []byte
	for _, other := range s.Others {
		identities = append(append(identities, with16([]byte(other))...), 0, 0, 0, 0)
		binders = append(binders, with8(make([]byte, 32))...)
	}
	identities = append(append(identities, with16([]byte(s.Identity))...), 0, 0, 0, 0)
	binders = append(binders, with8(make([]byte, 32))...)
	extensions = append(extensions, Extension{41, append(with16(identities), with16(binders)...)})

	body := append(u16(nil, 0x0303), s.random...)
	body = append(body, with8(s.session)...)
	body = append(body, with16(list(orElse(s.Suites, []uint16{0x1301})))...)
	body = append(body, 1, 0)
	var all []byte
	for _, e := range extensions {
		all = append(append(all, u16(nil, int(e.Kind))...), with16(e.Body)...)
	}
	body = append(body, with16(all)...)
	message := append([]byte{1, 0, byte(len(body) >> 8), byte(len(body))}, body...)
	cut := len(message) - len(binders) - 2
	binder := proof(label(s.early, "ext binder", hash(), 32), hash(before, message[:cut]))
	copy(message[len(message)-32:], binder)
	return message, nil
}

// Handshake does a handshake. An alert of the server is an Alert.
func (c Client) Handshake(nc net.Conn) (*Session, error) {
	s := &state{Client: c, random: make([]byte, 32), keys: map[uint16]*ecdh.PrivateKey{}, early: extract(nil, c.Key)}
	_, _ = rand.Read(s.random)
	if !c.NoCompat {
		s.session = bytes.Repeat([]byte{7}, 32)
	}
	t := &Session{Conn: nc, fragment: c.Fragment}
	group := c.Share
	if group == 0 {
		group = orElse(c.Groups, []uint16{29})[0]
	}
	message, err := s.hello(group, nil)
	if err != nil {
		return nil, err
	}
	if c.Sign != nil {
		message = c.Sign(message)
	}
	if err := t.WriteHandshake(message); err != nil {
		return nil, err
	}
	answer, err := t.readHandshake(2)
	if err != nil {
		return nil, err
	}
	var before []byte
	if bytes.HasPrefix(answer[6:], []byte(helloRetry)) {
		t.Retried = true
		digest := hash(message)
		before = append(append([]byte{254, 0, 0, 32}, digest...), answer...)
		extensions, err := s.check(answer)
		if err != nil {
			return nil, err
		}
		if len(extensions[51]) != 2 {
			return nil, fmt.Errorf("retry with key share % x", extensions[51])
		}
		group = binary.BigEndian.Uint16(extensions[51])
		if message, err = s.hello(group, before); err != nil {
			return nil, err
		}
		if c.Again != nil {
			message = c.Again(message)
		}
		if !c.NoCompat {
			if err := t.WriteRaw([]byte{recordCCS, 3, 3, 0, 1, 1}); err != nil {
				return nil, err
			}
		}
		if err := t.WriteHandshake(message); err != nil {
			return nil, err
		}
		if answer, err = t.readHandshake(2); err != nil {
			return nil, err
		}
	}
	return t, s.finish(t, append(before, message...), answer)
}

// check takes a ServerHello apart.
func (s *state) check(m []byte) (extensions map[uint16][]byte, err error) {
	n := len(s.session)
	switch {
	case len(m) < 4+2+32+1+n+2+1+2 || binary.BigEndian.Uint16(m[4:]) != 0x0303:
		return nil, fmt.Errorf("ServerHello: % x", m)
	case !bytes.Equal(m[38:39+n], with8(s.session)):
		return nil, errors.New("ServerHello has another session id")
	case binary.BigEndian.Uint16(m[39+n:]) != 0x1301 || m[41+n] != 0:
		return nil, fmt.Errorf("ServerHello chooses % x", m[39+n:42+n])
	}
	extensions = map[uint16][]byte{}
	rest := m[44+n:]
	for len(rest) >= 4 {
		size := int(binary.BigEndian.Uint16(rest[2:]))
		extensions[binary.BigEndian.Uint16(rest)] = rest[4 : 4+size]
		rest = rest[4+size:]
	}
	if !bytes.Equal(extensions[43], []byte{3, 4}) {
		return nil, fmt.Errorf("ServerHello chooses version % x", extensions[43])
	}
	return extensions, nil
}

// finish does what comes after the ServerHello.
func (s *state) finish(t *Session, said, answer []byte) error {
	extensions, err := s.check(answer)
	if err != nil {
		return err
	}
	if want := u16(nil, len(s.Others)); !bytes.Equal(extensions[41], want) {
		return fmt.Errorf("the server chose identity % x", extensions[41])
	}
	share := extensions[51]
	if len(share) < 4 {
		return fmt.Errorf("key share % x", share)
	}
	key := s.keys[binary.BigEndian.Uint16(share)]
	if key == nil {
		return fmt.Errorf("the server chose group % x", share[:2])
	}
	theirs, err := key.Curve().NewPublicKey(share[4:])
	if err != nil {
		return err
	}
	shared, err := key.ECDH(theirs)
	if err != nil {
		return err
	}
	said = append(said, answer...)
	handshake := extract(label(s.early, "derived", hash(), 32), shared)
	server, client := label(handshake, "s hs traffic", hash(said), 32), label(handshake, "c hs traffic", hash(said), 32)
	t.in = newDirection(server)
	encrypted, err := t.readHandshake(8)
	if err != nil {
		return err
	}
	said = append(said, encrypted...)
	finished, err := t.readHandshake(20)
	if err != nil {
		return err
	}
	if !bytes.Equal(finished[4:], proof(server, hash(said))) {
		return errors.New("the server's Finished does not fit")
	}
	said = append(said, finished...)
	master := extract(label(handshake, "derived", hash(), 32), make([]byte, 32))
	if !s.NoCompat && !t.Retried {
		if err := t.WriteRaw([]byte{recordCCS, 3, 3, 0, 1, 1}); err != nil {
			return err
		}
	}
	t.out = newDirection(client)
	content := proof(client, hash(said))
	if s.Finish != nil {
		content = s.Finish(content)
	}
	if err := t.WriteHandshake(append([]byte{20, 0, 0, byte(len(content))}, content...)); err != nil {
		return err
	}
	t.in, t.out = newDirection(label(master, "s ap traffic", hash(said), 32)), newDirection(label(master, "c ap traffic", hash(said), 32))
	return nil
}
