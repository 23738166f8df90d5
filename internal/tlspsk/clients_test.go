package tlspsk

import (
	"bytes"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const testKey = "00112233445566778899aabbccddeeff"

func testKeys(t testing.TB) *Keys {
	t.Helper()
	keys, err := ParseKeys([]byte("alice:" + testKey + "\nbob:ffeeddccbbaa99887766554433221100\n"))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// accepted is what became of one client.
type accepted struct {
	conn *Conn
	err  error
}

// listen accepts clients on a port of loopback, one after the other.
func listen(t *testing.T, keys *Keys) (port string, clients <-chan accepted) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	_, port, _ = net.SplitHostPort(l.Addr().String())
	all := make(chan accepted, 16)
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			_ = nc.SetDeadline(time.Now().Add(2 * time.Minute))
			conn, err := accept(nc, keys)
			if err != nil {
				_ = nc.Close()
			}
			all <- accepted{conn, err}
		}
	}()
	return port, all
}

func accept(nc net.Conn, keys *Keys) (*Conn, error) {
	hello, err := ReadHello(nc)
	if err != nil {
		return nil, err
	}
	return hello.Accept(keys)
}

// program is a client that sends what it reads and prints what it receives.
type program struct {
	name string
	args []string // PORT, NAME and KEY stand for what they say
}

var programs = map[string]program{
	"openssl":     {"openssl", []string{"s_client", "-quiet", "-tls1_3", "-psk_identity", "NAME", "-psk", "KEY", "-connect", "127.0.0.1:PORT"}},
	"openssl any": {"openssl", []string{"s_client", "-quiet", "-psk_identity", "NAME", "-psk", "KEY", "-connect", "127.0.0.1:PORT"}},
	"openssl, a retry": {"openssl", []string{
		"s_client", "-quiet", "-tls1_3", "-groups", "P-521:P-256", "-psk_identity", "NAME", "-psk", "KEY", "-connect", "127.0.0.1:PORT",
	}},
	"openssl, no middlebox": {"openssl", []string{
		"s_client", "-quiet", "-tls1_3", "-no_middlebox", "-psk_identity", "NAME", "-psk", "KEY", "-connect", "127.0.0.1:PORT",
	}},
	"gnutls": {"gnutls-cli", []string{
		"--logfile=/dev/null", "--pskusername", "NAME", "--pskkey", "KEY", "--priority", "NORMAL:+ECDHE-PSK:+DHE-PSK:+PSK", "-p", "PORT", "127.0.0.1",
	}},
	"gnutls, a retry": {"gnutls-cli", []string{
		"--logfile=/dev/null", "--pskusername", "NAME", "--pskkey", "KEY", "--priority", "NORMAL:-GROUP-ALL:+GROUP-SECP521R1:+GROUP-X448:+GROUP-X25519:+ECDHE-PSK:+DHE-PSK:+PSK", "--single-key-share",
		"-p", "PORT", "127.0.0.1",
	}},
}

// start starts the program. Its output is complete when done is closed.
func (p program) start(t *testing.T, port, name, key string) (input io.WriteCloser, output *bytes.Buffer, done <-chan error) {
	t.Helper()
	if _, err := exec.LookPath(p.name); err != nil {
		t.Skipf("%s is not installed (scripts/setup does it)", p.name)
	}
	fill := strings.NewReplacer("PORT", port, "NAME", name, "KEY", key)
	args := make([]string, len(p.args))
	for i, a := range p.args {
		args[i] = fill.Replace(a)
	}
	output = &bytes.Buffer{}
	command := exec.CommandContext(t.Context(), p.name, args...)
	command.Stdout, command.Stderr = output, output
	input, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	return input, output, ended
}

// TestRealClients moves data both ways with clients that others wrote.
func TestRealClients(t *testing.T) {
	sent := bytes.Repeat([]byte("0123456789abcde\n"), 8000) // s_client takes some other letters for orders
	for name, p := range programs {
		t.Run(name, func(t *testing.T) {
			port, clients := listen(t, testKeys(t))
			input, output, done := p.start(t, port, "alice", testKey)
			client := <-clients
			if client.err != nil {
				<-done
				t.Fatalf("%v\n%s", client.err, output)
			}
			if client.conn.Identity() != "alice" {
				t.Errorf("identity %q", client.conn.Identity())
			}
			go func() { _, _ = input.Write(sent) }()
			got := make([]byte, len(sent))
			if _, err := io.ReadFull(client.conn, got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, sent) {
				t.Error("other bytes came than were sent")
			}
			if _, err := client.conn.Write(got); err != nil {
				t.Fatal(err)
			}
			if err := client.conn.Close(); err != nil {
				t.Error(err)
			}
			<-done
			if !strings.Contains(output.String(), string(sent)) {
				t.Errorf("the client got %d bytes: %.300s", output.Len(), output)
			}
		})
	}
}
