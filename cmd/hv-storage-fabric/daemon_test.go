package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/api"
	"github.com/hyper-nixos/hyper-nixos/control"
	"github.com/hyper-nixos/hyper-nixos/control/config"
)

// daemon is an hvd in this process, with a real store, sockets and HTTP.
type daemon struct {
	t        *testing.T
	dir      string
	endpoint string
	server   *api.Server
	control  *control.Control
}

// startDaemon serves a new store. Its directory has a name that is short enough for sockets.
func startDaemon(t *testing.T) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "hv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d := &daemon{t: t, dir: dir, endpoint: "unix:" + filepath.Join(dir, "hvd.sock")}
	d.start()
	t.Cleanup(d.stop)
	return d
}

func (d *daemon) start() {
	d.t.Helper()
	env := map[string]string{"HV_DATA_DIR": d.dir, "HV_LISTEN": "127.0.0.1:0", "HV_CONFIG": os.DevNull, "HV_STORE_LOG_CAP": "256MiB", "HV_MEMORY": "256MiB"}
	loaded, err := config.Load(nil, func(name string) string { return env[name] })
	if err != nil {
		d.t.Fatal(err)
	}
	d.control, err = control.Open(context.Background(), control.Options{Config: loaded, OpenEngine: control.OpenStore, Version: "test"})
	if err != nil {
		d.t.Fatal(err)
	}
	if d.server, err = api.Serve(d.control); err != nil {
		d.t.Fatal(err)
	}
}

func (d *daemon) stop() {
	if d.control == nil {
		return
	}
	d.server.Close()
	if err := d.control.Close(context.Background()); err != nil {
		d.t.Error(err)
	}
	d.control = nil
}

// result is what one run of the command left.
type result struct {
	code     int
	out, err string
}

// run executes the command against the daemon. Standard input is stdin.
func (d *daemon) run(stdin string, args ...string) result {
	return runWith(map[string]string{"HV_ENDPOINT": d.endpoint}, stdin, args...)
}

func runWith(env map[string]string, stdin string, args ...string) result {
	var out, err bytes.Buffer
	a := newApp(strings.NewReader(stdin), &out, &err, func(name string) string { return env[name] })
	code := run(context.Background(), a, args)
	return result{code, out.String(), err.String()}
}

// must is run that has to succeed.
func (d *daemon) must(args ...string) string {
	d.t.Helper()
	r := d.run("", args...)
	if r.code != exitDone {
		d.t.Fatalf("%q: exit code %d: %s", args, r.code, r.err)
	}
	return r.out
}

var (
	anyTime   = regexp.MustCompile(`\d{4}-\d\d-\d\dT[\d:.]+Z`)
	anyUUID   = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)
	anyPID    = regexp.MustCompile(`"pid": \d+`)
	anyToke   = regexp.MustCompile(`hvt_[A-Za-z0-9_-]{43}`)
	anyAuto   = regexp.MustCompile(`auto-\d{8}T\d{6}Z`)
	anySeq    = regexp.MustCompile(`"sequence": \d+`)
	anySurvey = regexp.MustCompile(`"(tookSeconds|freeBytes|metadataBytes)": [0-9.e-]+`)
	uptime    = regexp.MustCompile(`"uptimeSeconds": \d+`)
)

// fixed replaces what differs from run to run.
func (d *daemon) fixed(text string) string {
	text = strings.ReplaceAll(text, d.dir, "DIR")
	text = anyTime.ReplaceAllString(text, "TIME")
	text = anyUUID.ReplaceAllString(text, "UUID")
	text = anyPID.ReplaceAllString(text, `"pid": 0`)
	text = uptime.ReplaceAllString(text, `"uptimeSeconds": 0`)
	text = anyAuto.ReplaceAllString(text, "auto-TIME")
	text = anySeq.ReplaceAllString(text, `"sequence": 0`)
	text = anySurvey.ReplaceAllString(text, `"$1": 0`)
	return anyToke.ReplaceAllString(text, "SECRET")
}
