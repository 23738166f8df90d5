package tlspsktest

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
)

// Session is a connection after the handshake, or during it. It may be read and written by one goroutine each.
type Session struct {
	net.Conn         // the socket
	Retried    bool  // the server asked for another key share
	KeyUpdates int   // of the server
	Asked      int   // how many of those wanted one back
	Sizes      []int // lengths of the records with data that were read

	in, out  *direction
	fragment int
	messages []byte // handshake messages that were read
	data     []byte
}

// Seal makes a protected record, and the next one will have the next number whether this is sent or not.
func (s *Session) Seal(kind byte, content []byte) []byte { return s.SealPadded(kind, content, 0) }

// SealPadded is Seal with so many bytes of padding.
func (s *Session) SealPadded(kind byte, content []byte, padding int) []byte {
	inner := append(append([]byte{}, content...), kind)
	inner = append(inner, make([]byte, padding)...)
	record := []byte{recordData, 3, 3}
	record = binary.BigEndian.AppendUint16(record, uint16(len(inner)+16))
	return append(record, s.out.aead.Seal(nil, s.out.nonce(), inner, record)...)
}

// WriteRaw sends bytes as they are.
func (s *Session) WriteRaw(p []byte) error {
	_, err := s.Conn.Write(p)
	return err
}

// WriteRecord sends a record, protected if there are keys.
func (s *Session) WriteRecord(kind byte, content []byte) error {
	if s.out != nil {
		return s.WriteRaw(s.Seal(kind, content))
	}
	record := binary.BigEndian.AppendUint16([]byte{kind, 3, 1}, uint16(len(content)))
	return s.WriteRaw(append(record, content...))
}

// WriteHandshake sends handshake messages, in pieces if the client wants that.
func (s *Session) WriteHandshake(p []byte) error {
	for s.fragment > 0 && len(p) > s.fragment {
		if err := s.WriteRecord(recordHandshake, p[:s.fragment]); err != nil {
			return err
		}
		p = p[s.fragment:]
	}
	return s.WriteRecord(recordHandshake, p)
}

// Write sends data.
func (s *Session) Write(p []byte) (int, error) {
	for n := 0; n < len(p); {
		m := min(len(p)-n, 16<<10)
		if err := s.WriteRecord(recordData, p[n:n+m]); err != nil {
			return n, err
		}
		n += m
	}
	return len(p), nil
}

// KeyUpdate sends one, and goes on with the next key.
func (s *Session) KeyUpdate(request bool) error {
	message := []byte{24, 0, 0, 1, 0}
	if request {
		message[4] = 1
	}
	err := s.WriteHandshake(message)
	s.out = s.out.next()
	return err
}

// CloseWrite sends close_notify.
func (s *Session) CloseWrite() error { return s.WriteRecord(recordAlert, []byte{1, 0}) }

// ReadRecord reads one record and takes its protection off.
func (s *Session) ReadRecord() (kind byte, content []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(s.Conn, head[:]); err != nil {
		return 0, nil, err
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(s.Conn, body); err != nil {
		return 0, nil, err
	}
	if s.in == nil || head[0] != recordData {
		return head[0], body, nil
	}
	inner, err := s.in.aead.Open(nil, s.in.nonce(), body, head[:])
	if err != nil {
		return 0, nil, err
	}
	for len(inner) > 0 && inner[len(inner)-1] == 0 {
		inner = inner[:len(inner)-1]
	}
	if len(inner) == 0 || len(inner) > 16<<10+1 {
		return 0, nil, fmt.Errorf("a record of %d bytes", len(inner))
	}
	return inner[len(inner)-1], inner[:len(inner)-1], nil
}

// readHandshake reads one handshake message of a type.
func (s *Session) readHandshake(want byte) ([]byte, error) {
	for len(s.messages) < 4 || len(s.messages) < 4+int(binary.BigEndian.Uint32(s.messages)&0xffffff) {
		kind, content, err := s.ReadRecord()
		switch {
		case err != nil:
			return nil, err
		case kind == recordAlert && len(content) == 2:
			return nil, Alert(content[1])
		case kind == recordCCS:
		case kind != recordHandshake:
			return nil, fmt.Errorf("a record of type %d in the handshake", kind)
		default:
			s.messages = append(s.messages, content...)
		}
	}
	size := 4 + int(binary.BigEndian.Uint32(s.messages)&0xffffff)
	message := s.messages[:size:size]
	s.messages = s.messages[size:]
	if message[0] != want {
		return nil, fmt.Errorf("a handshake message of type %d, want %d", message[0], want)
	}
	return message, nil
}

// Read reads data. close_notify is io.EOF, another alert an Alert.
func (s *Session) Read(p []byte) (int, error) {
	for len(s.data) == 0 {
		kind, content, err := s.ReadRecord()
		if err != nil {
			return 0, err
		}
		switch {
		case kind == recordData:
			s.Sizes = append(s.Sizes, len(content))
			s.data = content
		case kind == recordAlert && len(content) == 2 && content[1] == 0:
			return 0, io.EOF
		case kind == recordAlert && len(content) == 2:
			return 0, Alert(content[1])
		case kind == recordHandshake && len(content) == 5 && content[0] == 24:
			s.in = s.in.next()
			s.KeyUpdates++
			s.Asked += int(content[4])
		default:
			return 0, fmt.Errorf("a record of type %d: % x", kind, content)
		}
	}
	n := copy(p, s.data)
	s.data = s.data[n:]
	return n, nil
}
