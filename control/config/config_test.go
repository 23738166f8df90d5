package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// load runs Load on a config file's text, an environment and arguments.
func load(t *testing.T, file string, env map[string]string, args ...string) (*Loaded, error) {
	t.Helper()
	flags := pflag.NewFlagSet("hvd", pflag.ContinueOnError)
	AddFlags(flags)
	path := filepath.Join(t.TempDir(), "hvd.yaml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := flags.Parse(append([]string{"--config", path}, args...)); err != nil {
		t.Fatal(err)
	}
	return Load(flags, func(name string) string { return env[name] })
}

func TestFlagsWinOverEnvironmentOverFileOverDefaults(t *testing.T) {
	file := "data-dir: /a\nlog:\n  level: warn\n  format: json\nmemory: 1GiB\nstore: {sync-every: 2s, workers: 3}\n"
	env := map[string]string{"HV_DATA_DIR": "/b", "HV_LOG_LEVEL": "error", "HV_STORE_WORKERS": "5"}
	got, err := load(t, file, env, "--data-dir", "/c", "--memory=256MiB")
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.DataDir, want.Log.Level, want.Log.Format, want.Memory = "/c", "error", "json", 256<<20
	want.Store.SyncEvery, want.Store.Workers = 2*time.Second, 5
	want.ControlSocket, want.NBD.Socket, want.NBD.VolumeSocketDir = "/c/hvd.sock", "/c/nbd.sock", "/c/nbd"
	if got.Config != want {
		t.Errorf("got  %+v\nwant %+v", got.Config, want)
	}
	if o := got.Origin["log.level"]; o != "environment HV_LOG_LEVEL" {
		t.Errorf("log.level comes from %q", o)
	}
}

func TestBadSettingsAreNamed(t *testing.T) {
	for _, c := range []struct{ file, want string }{
		{"log:\n  levle: info\n", `line 2: unknown key "log.levle"`},
		{"data-dri: /x\n", `unknown key "data-dri"`},
		{"log: [a]\n", `"log"`},
		{"memory: lots\n", "memory: size"},
		{"memory: 1MiB\n", "memory: 1MiB is not within"},
		{"store: {sync-every: 5}\n", "store.sync-every: duration"},
		{"log: {level: loud}\n", `log.level: "loud" is not one of`},
		{"listen: 0.0.0.0:8081\n", "is not loopback"},
		{"listen: example.org:8081\n", "is not loopback"},
		{"listen: 127.0.0.1\n", "want HOST:PORT"},
		{"listen: 127.0.0.1:99999\n", "is not a port"},
		{"data-dir: /" + strings.Repeat("d", 100) + "\n", "unix socket takes at most 107"},
		{"a: b: c\n", "config file"},
		{"- a\n", "config file"},
		{"nbd: {listen: 0.0.0.0:10809}\n", "set nbd.tls.cert"},
		{"nbd: {listen: example.org:10809}\n", "needs TLS"},
		{"nbd: {listen: '[::]:10809', tls: {cert: c, key: k}}\n", "nbd.tls.client-ca"},
		{"nbd: {listen: 127.0.0.1}\n", "want HOST:PORT"},
		{"nbd: {tls: {cert: c}}\n", "go together"},
		{"nbd: {tls: {client-ca: c}}\n", "nbd.tls.key"},
		{"nbd: {tls: {client-ca: c, psk-file: p}}\n", "nbd.tls.key"},
		{"nbd: {listen: '[::]:10809', tls: {cert: c, key: k, psk-file: p}}\n", "lets everybody in"},
		{"nbd: {tls: {ca: c}}\n", `unknown key "nbd.tls.ca"`},
		{"nbd: {max-requests: 0}\n", "nbd.max-requests: 0 is not within"},
		{"nbd: {max-requests: 65537}\n", "nbd.max-requests: 65537 is not within"},
		{"nbd: {handshake-timeout: 0s}\n", "nbd.handshake-timeout: 0s is not within"},
		{"nbd: {handshake-timeout: 2h}\n", "nbd.handshake-timeout: 2h0m0s is not within"},
		{"nbd: {stall-timeout: -1s}\n", "nbd.stall-timeout: -1s is not within"},
		{"alarms: {space-near: 96}\n", "alarms.space-near: 96 %"},
		{"alarms: {quota-critical: 101}\n", "alarms.quota-critical of 101 %"},
		{"alarms: {overcommit: -1}\n", "alarms.overcommit: -1"},
		{"alarms: {degraded-after: 1000h}\n", "alarms.degraded-after"},
		{"nbd: {socket: /x/s}\ncontrol-socket: /x/s\n", "nbd.socket"},
		{"repository: {listen: 0.0.0.0:8083}\n", "set repository.cert"},
		{"repository: {cert: c}\n", "go together"},
		{"repository: {listen: 0.0.0.0, cert: c, key: k, ca: a}\n", "want HOST:PORT"},
		{"repository: {listen: 'x:1', cert: c, key: k, ca: a, peers: a=all}\n", "repository.dir: not set"},
		{"repository: {listen: 'x:1', cert: c, key: k, ca: a, dir: /r}\n", "repository.peers: not set"},
		{"repository: {peers: web1}\n", "repository.peers"},
		{"repository: {peers: web1=write}\n", "no such right"},
		{"repository: {keep: -1s}\n", "repository.keep"},
		{"repository: {quotas: vms}\n", "repository.quotas"},
		{"repository: {quotas: 'vms=0'}\n", "no size"},
		{"repository: {quotas: '../x=1GiB'}\n", "no name"},
		{"repository: {quotas: 'a=1GiB,a=2GiB'}\n", "named twice"},
		{"repository: {peer-quotas: '=1GiB'}\n", "repository.peer-quotas"},
		{"repository: {keep: 100000h}\n", "repository.keep"},
		{"data-dir: /a\nrepository: {listen: 'x:1', cert: c, key: k, ca: a, peers: a=all, dir: /a/r}\n", "lies in the data directory"},
	} {
		_, err := load(t, c.file, nil)
		if !errors.Is(err, block.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, want %q", c.file, err, c.want)
		}
	}
	if _, err := load(t, "", map[string]string{"HV_MEMORY": "x"}); err == nil || !strings.Contains(err.Error(), "HV_MEMORY") {
		t.Errorf("environment: %v", err)
	}
	if _, err := load(t, "", nil, "--store-workers", "x"); err == nil || !strings.Contains(err.Error(), "--store-workers") {
		t.Errorf("flag: %v", err)
	}
}

func TestLoopbackIsAccepted(t *testing.T) {
	for _, address := range []string{"off", "127.0.0.1:8081", "[::1]:0", "localhost:80", "127.8.8.8:1"} {
		if err := CheckListen(address); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestNBDOverTCPIsAccepted(t *testing.T) {
	for _, file := range []string{
		"nbd: {listen: 127.0.0.1:10809}\n",
		"nbd: {listen: 'localhost:0', tls: {cert: /c, key: /k}}\n",
		"nbd: {listen: ':10809', tls: {cert: /c, key: /k, client-ca: /a}}\n",
		"nbd:\n  listen: storage1.example:10809\n  tls:\n    cert: /c\n    key: /k\n    client-ca: /a\n",
	} {
		if _, err := load(t, file, nil); err != nil {
			t.Errorf("%q: %v", file, err)
		}
	}
}

func TestShowReadsBack(t *testing.T) {
	first, err := load(t, "data-dir: /a\nlisten: off\nnbd: {drain-timeout: 1m30s, tls: {cert: /c, key: /k}}\n", nil)
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := first.Show(&text); err != nil {
		t.Fatal(err)
	}
	second, err := load(t, text.String(), nil)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text.String())
	}
	if first.Config != second.Config {
		t.Errorf("got  %+v\nwant %+v", second.Config, first.Config)
	}
}

func TestSchemaKnowsEverySettingAndNoOther(t *testing.T) {
	var text bytes.Buffer
	if err := Schema(&text); err != nil {
		t.Fatal(err)
	}
	type object struct {
		Additional *bool `json:"additionalProperties"`
		Properties map[string]object
	}
	var root object
	if err := json.Unmarshal(text.Bytes(), &root); err != nil {
		t.Fatal(err)
	}
	if root.Additional == nil || *root.Additional {
		t.Error("unknown keys are allowed")
	}
	c := Default()
	for _, f := range fields(&c) {
		at, found := root, true
		for word := range strings.SplitSeq(f.path, ".") {
			if at, found = at.Properties[word]; !found {
				t.Errorf("%s is missing", f.path)
			}
		}
		if f.doc == "" {
			t.Errorf("%s has no description", f.path)
		}
	}
}
