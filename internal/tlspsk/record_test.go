package tlspsk

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/tlspsk/tlspsktest"
)

// TestRecordsThatAreWrong: each ends the connection with its alert, and nothing of it reaches the reader.
func TestRecordsThatAreWrong(t *testing.T) {
	for name, tc := range map[string]struct {
		send  func(c *tlspsktest.Session) []byte
		alert alert
	}{
		"tampered":                   {func(c *tlspsktest.Session) []byte { return flip(1)(c.Seal(23, []byte("data"))) }, alertBadRecordMAC},
		"tampered header":            {func(c *tlspsktest.Session) []byte { r := c.Seal(23, []byte("data")); r[2] = 4; return r }, alertBadRecordMAC},
		"one left out":               {func(c *tlspsktest.Session) []byte { c.Seal(23, []byte("data")); return c.Seal(23, []byte("more")) }, alertBadRecordMAC},
		"too short":                  {func(*tlspsktest.Session) []byte { return []byte{23, 3, 3, 0, 4, 1, 2, 3, 4} }, alertBadRecordMAC},
		"empty":                      {func(*tlspsktest.Session) []byte { return []byte{23, 3, 3, 0, 0} }, alertBadRecordMAC},
		"too long":                   {func(*tlspsktest.Session) []byte { return []byte{23, 3, 3, 0x41, 1} }, alertRecordOverflow},
		"16 KiB and 1":               {func(c *tlspsktest.Session) []byte { return c.Seal(23, make([]byte, maxPlain+1)) }, alertRecordOverflow},
		"too much padding":           {func(c *tlspsktest.Session) []byte { return c.SealPadded(23, []byte("data"), maxPlain) }, alertRecordOverflow},
		"padding alone":              {func(c *tlspsktest.Session) []byte { return c.SealPadded(0, nil, 9) }, alertUnexpectedMessage},
		"plain text":                 {func(*tlspsktest.Session) []byte { return []byte{22, 3, 3, 0, 5, 24, 0, 0, 1, 0} }, alertUnexpectedMessage},
		"plain alert":                {func(*tlspsktest.Session) []byte { return []byte{21, 3, 3, 0, 2, 1, 0} }, alertUnexpectedMessage},
		"ChangeCipherSpec":           {func(*tlspsktest.Session) []byte { return []byte{20, 3, 3, 0, 1, 1} }, alertUnexpectedMessage},
		"protected ChangeCipherSpec": {func(c *tlspsktest.Session) []byte { return c.Seal(20, []byte{1}) }, alertUnexpectedMessage},
		"no TLS":                     {func(*tlspsktest.Session) []byte { return []byte("IHAVEOPT") }, alertUnexpectedMessage},
		"a ClientHello":              {func(c *tlspsktest.Session) []byte { return c.Seal(22, []byte{1, 0, 0, 1, 0}) }, alertUnexpectedMessage},
		"a long message":             {func(c *tlspsktest.Session) []byte { return c.Seal(22, []byte{24, 1, 0, 0}) }, alertUnexpectedMessage},
		"KeyUpdate of 2":             {func(c *tlspsktest.Session) []byte { return c.Seal(22, []byte{24, 0, 0, 1, 2}) }, alertIllegalParameter},
		"KeyUpdate and more":         {func(c *tlspsktest.Session) []byte { return c.Seal(22, []byte{24, 0, 0, 1, 0, 24}) }, alertUnexpectedMessage},
		"data in a message": {func(c *tlspsktest.Session) []byte {
			return append(c.Seal(22, []byte{24, 0}), c.Seal(23, []byte("data"))...)
		}, alertUnexpectedMessage},
		"half an alert": {func(c *tlspsktest.Session) []byte { return c.Seal(21, []byte{2}) }, alertDecodeError},
		"many empty ones": {func(c *tlspsktest.Session) []byte {
			var all []byte
			for range maxUseless + 1 {
				all = append(all, c.Seal(23, nil)...)
			}
			return all
		}, alertUnexpectedMessage},
	} {
		t.Run(name, func(t *testing.T) {
			server, client := connected(t, alice(t))
			if err := client.WriteRaw(tc.send(client)); err != nil {
				t.Fatal(err)
			}
			n, err := server.Read(make([]byte, 100))
			var why *failure
			if n != 0 || !errors.As(err, &why) || why.alert != tc.alert {
				t.Errorf("%d bytes, %v", n, err)
			}
			if _, again := server.Read(make([]byte, 100)); again != err {
				t.Errorf("and then %v", again)
			}
			if _, err := server.Write([]byte("data")); err == nil {
				t.Error("one can still write")
			}
			var told tlspsktest.Alert
			if _, err := client.Read(make([]byte, 1)); !errors.As(err, &told) || alert(told) != tc.alert {
				t.Errorf("the client is told %v", err)
			}
		})
	}
}

func TestReplayedRecord(t *testing.T) {
	server, client := connected(t, alice(t))
	record := client.Seal(23, []byte("data"))
	if err := client.WriteRaw(append(bytes.Clone(record), record...)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 8)
	n, err := io.ReadFull(server, got)
	var why *failure
	if n != 4 || string(got[:4]) != "data" || !errors.As(err, &why) || why.alert != alertBadRecordMAC {
		t.Errorf("%q, %v", got[:n], err)
	}
}

// TestEnds: only close_notify is an end; anything else may be somebody who cuts the connection.
func TestEnds(t *testing.T) {
	server, client := connected(t, alice(t))
	if _, err := client.Write([]byte("data")); err != nil {
		t.Fatal(err)
	}
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(server); string(got) != "data" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := server.Write([]byte("answer")); err != nil { // the other half is still open
		t.Error(err)
	}
	if err := server.CloseWrite(); err != nil {
		t.Error(err)
	}
	if _, err := server.Write([]byte("more")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after CloseWrite: %v", err)
	}
	if got, err := io.ReadAll(client); string(got) != "answer" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	for name, rest := range map[string]string{"between records": "", "in a header": "\x17\x03", "in a record": "\x17\x03\x03\x00\x20abc"} {
		server, client := connected(t, alice(t))
		if _, err := client.Write([]byte("data")); err != nil {
			t.Fatal(err)
		}
		if err := client.WriteRaw([]byte(rest)); err != nil {
			t.Fatal(err)
		}
		_ = client.Close()
		if got, err := io.ReadAll(server); string(got) != "data" || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	server, client = connected(t, alice(t))
	if err := client.WriteRecord(21, []byte{2, 80}); err != nil {
		t.Fatal(err)
	}
	var told AlertError
	if _, err := server.Read(make([]byte, 1)); !errors.As(err, &told) || told != 80 {
		t.Errorf("another alert: %v", err)
	}
}

// TestKeyUpdates: either side may renew its keys at any time, and ask the other to.
func TestKeyUpdates(t *testing.T) {
	server, client := connected(t, alice(t))
	for i := range 3 {
		if err := client.KeyUpdate(i != 1); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Write([]byte("data")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(server, make([]byte, 4)); err != nil { // it has seen the request now
			t.Fatal(err)
		}
		talk(t, server, client, 50_000)
	}
	if client.KeyUpdates != 2 || client.Asked != 0 {
		t.Errorf("%d renewals by the server, which asked for %d", client.KeyUpdates, client.Asked)
	}
}

// TestKeysAreRenewed: both directions are renewed before too much was done under one key, and a client that does not care is left.
func TestKeysAreRenewed(t *testing.T) {
	server, client := connected(t, alice(t))
	server.renewAt = 10
	say := func() error {
		if _, err := client.Write([]byte("ping")); err != nil {
			return err
		}
		got := make([]byte, 4)
		if _, err := io.ReadFull(server, got); err != nil {
			return err
		}
		if _, err := server.Write(got); err != nil {
			return err
		}
		_, err := io.ReadFull(client, got)
		return err
	}
	for range 100 {
		asked := client.Asked
		if err := say(); err != nil {
			t.Fatal(err)
		}
		if client.Asked > asked {
			if err := client.KeyUpdate(false); err != nil {
				t.Fatal(err)
			}
		}
	}
	if client.KeyUpdates < 9 || client.Asked < 8 {
		t.Errorf("%d renewals by the server, which asked for %d", client.KeyUpdates, client.Asked)
	}
	var err error
	for i := 0; i < 30 && err == nil; i++ {
		err = say()
	}
	if err == nil || !strings.Contains(err.Error(), "renew") {
		t.Errorf("a client that does not renew its keys: %v", err)
	}
}

// TestRealClientsRenewTheirKeys when they are asked.
func TestRealClientsRenewTheirKeys(t *testing.T) {
	for _, name := range []string{"openssl", "gnutls"} {
		t.Run(name, func(t *testing.T) {
			port, clients := listen(t, testKeys(t))
			input, output, done := programs[name].start(t, port, "alice", testKey)
			client := <-clients
			if client.err != nil {
				t.Fatal(client.err)
			}
			client.conn.renewAt = 12 // GnuTLS allows 8 KeyUpdates a second
			for range 40 {
				if _, err := input.Write([]byte("0123456789abcde\n")); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, 16)
				if _, err := io.ReadFull(client.conn, got); err != nil {
					t.Fatal(err)
				}
				if _, err := client.conn.Write(got); err != nil {
					t.Fatal(err)
				}
			}
			_ = client.conn.Close()
			<-done
			if n := strings.Count(output.String(), "0123456789abcde"); n != 40 {
				t.Errorf("%d of 40 lines came back: %.300s", n, output)
			}
		})
	}
}

// TestReadInAnyPortions: the same bytes come whatever the reader asks for, also where a record goes straight to the reader's memory, and nothing beyond what it asked for is touched.
func TestReadInAnyPortions(t *testing.T) {
	sent := make([]byte, 300_000)
	for i := range sent {
		sent[i] = byte(i ^ i>>8)
	}
	for _, portion := range []int{1, 31, 4096, maxPlain, maxPlain + 1, maxPlain + 100, 1 << 20} {
		server, client := connected(t, alice(t))
		go func() {
			_, _ = client.Write(sent)
			_ = client.CloseWrite()
		}()
		var got []byte
		memory := bytes.Repeat([]byte{0xee}, portion+1000)
		for {
			n, err := server.Read(memory[:portion])
			got = append(got, memory[:n]...)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got, sent) {
			t.Errorf("%d at a time: other bytes came than were sent", portion)
		}
		if !bytes.Equal(memory[portion:], bytes.Repeat([]byte{0xee}, 1000)) {
			t.Errorf("%d at a time: memory behind was written", portion)
		}
	}
}

// TestReadAfterTimeout goes on where it was.
func TestReadAfterTimeout(t *testing.T) {
	server, client := connected(t, alice(t))
	record := client.Seal(23, []byte("data"))
	for _, cut := range []int{0, 3, 5, 9} {
		if err := client.WriteRaw(record[:cut]); err != nil {
			t.Fatal(err)
		}
		record = record[cut:]
		_ = server.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if n, err := server.Read(make([]byte, 9)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%d bytes, %v", n, err)
		}
	}
	_ = server.SetReadDeadline(time.Time{})
	if err := client.WriteRaw(record); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 9)
	if n, err := server.Read(got); string(got[:n]) != "data" || err != nil {
		t.Errorf("%q, %v", got[:n], err)
	}
}

// TestIdleHoldsNoBuffer: a connection with nothing to read gives its buffer back.
func TestIdleHoldsNoBuffer(t *testing.T) {
	server, client := connected(t, alice(t))
	if _, err := client.Write([]byte("data")); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if _, err := server.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if server.in.raw != nil {
		t.Error("the buffer is held")
	}
}
