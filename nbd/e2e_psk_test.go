package nbd

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
)

func (g *guarded) uriPSK(identity, keys string) string {
	return "nbds://" + identity + "@" + g.tcp + "/disk?tls-psk-file=" + keys
}

// qemuPSK are the arguments with which QEMU's tools open the export. The keys are in keys.psk of a folder.
func (g *guarded) qemuPSK(identity, keys string) []string {
	host, port, _ := net.SplitHostPort(g.tcp)
	return []string{
		"--object", "tls-creds-psk,id=tls0,endpoint=client,username=" + identity + ",dir=" + filepath.Dir(keys),
		"--image-opts", "driver=nbd,server.type=inet,server.host=" + host + ",server.port=" + port + ",export=disk,tls-creds=tls0",
	}
}

// TestRealClientsWithKeys moves data both ways with a pre-shared key, on a door that has certificates too and on one that has not.
func TestRealClientsWithKeys(t *testing.T) {
	for name, door := range map[string]func(*TLSOptions){"beside certificates": withKeys(t), "alone": keysOnly(t)} {
		t.Run(name, func(t *testing.T) {
			dev := newMemDevice(24 << 20)
			file := image(t, dev)
			g := guard(t, oneDisk(dev), door)
			keys := keyFile(t, shortDir(t), "guest:"+guestKey+"\n")
			uri := g.uriPSK("guest", keys)
			if out := tool(t, "nbdinfo", uri); !strings.Contains(out, "with TLS") || !strings.Contains(out, "base:allocation") {
				t.Errorf("nbdinfo: %s", out)
			}
			out := filepath.Join(t.TempDir(), "out.raw")
			tool(t, "nbdcopy", "--connections=4", uri, out)
			mustEqualFiles(t, file, out)
			dev.fill(func(int) byte { return 0xff })
			tool(t, "nbdcopy", "--connections=4", "--flush", file, uri)
			qcow := filepath.Join(t.TempDir(), "out.qcow2")
			tool(t, "qemu-img", append([]string{"convert", "-O", "qcow2"}, append(g.qemuPSK("guest", keys), qcow)...)...)
			tool(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", file, qcow)
			args := append([]string{"-c", "write -P 0x5a 1000 300000", "-c", "read -P 0x5a 1000 300000", "-c", "discard 8M 4M", "-c", "flush"}, g.qemuPSK("guest", keys)...)
			if got := tool(t, "qemu-io", args...); strings.Contains(got, "failed") || strings.Contains(got, "rror") {
				t.Errorf("qemu-io: %s", got)
			}
			host, port, _ := net.SplitHostPort(g.tcp)
			through := filepath.Join(t.TempDir(), "through.raw")
			nbdkit(t, "nbdcopy $uri "+through, "nbd", "hostname="+host, "port="+port, "export=disk", "tls=require", "tls-psk="+keys, "tls-username=guest")
		})
	}
}

// TestRealClientsWithWrongKeys are turned away before an export is opened.
func TestRealClientsWithWrongKeys(t *testing.T) {
	tab := oneDisk(newMemDevice(1 << 20))
	g := guard(t, tab, withKeys(t))
	wrong := keyFile(t, shortDir(t), "guest:"+otherKey+"\nnobody:"+guestKey+"\n")
	for _, identity := range []string{"guest", "nobody"} {
		if out, err := tryTool(t, "nbdinfo", g.uriPSK(identity, wrong)); err == nil {
			t.Errorf("%s: nbdinfo succeeds: %s", identity, out)
		}
		if out, err := tryTool(t, "qemu-img", append([]string{"info"}, g.qemuPSK(identity, wrong)...)...); err == nil {
			t.Errorf("%s: qemu-img succeeds: %s", identity, out)
		}
	}
	if out, err := tryTool(t, "nbdinfo", "nbd://"+g.tcp+"/disk"); err == nil {
		t.Errorf("plain text: nbdinfo succeeds: %s", out)
	}
	if tab.heldOf("disk") != 0 || g.Stats().Read.Requests != 0 {
		t.Error("an export was opened")
	}
	alone := guard(t, oneDisk(newMemDevice(1<<20)), keysOnly(t))
	if out, err := tryTool(t, "nbdinfo", alone.uriTLS(wallet(t, alone, nil))); err == nil {
		t.Errorf("a certificate where there are keys only: nbdinfo succeeds: %s", out)
	}
	certificates := guard(t, oneDisk(newMemDevice(1<<20)), nil)
	if out, err := tryTool(t, "nbdinfo", certificates.uriPSK("guest", keyFile(t, shortDir(t), "guest:"+guestKey+"\n"))); err == nil {
		t.Errorf("a key where there are certificates only: nbdinfo succeeds: %s", out)
	}
}
