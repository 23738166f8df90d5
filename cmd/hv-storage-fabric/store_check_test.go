package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// closedStore makes a store with a volume, a snapshot and some data.
func closedStore(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	ctx := context.Background()
	s, err := blockstore.Open(ctx, blockstore.Options{Dir: dir, LogCapBytes: 64 << 20, LogFileBytes: 1 << 20, MemoryBytes: 64 << 20, ReserveBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err = s.CreateVolume(ctx, blockstore.VolumeSpec{Name: "web1", SizeBytes: 32 << 20})
	must(err)
	d, err := s.OpenDevice("web1", "")
	must(err)
	must(d.Write(ctx, []block.Write{{Off: 4096, Data: bytes.Repeat([]byte("abcd"), 25_000*4)[:98304]}}, false))
	must(s.Settle(ctx, nil))
	_, err = s.CreateSnapshot(ctx, "web1", "s1")
	must(err)
	must(d.Close())
	must(s.Close())
	return dir
}

func runLocal(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(context.Background(), newApp(strings.NewReader(""), &o, &e, func(string) string { return "" }), args)
	return code, o.String(), e.String()
}

func TestStoreCheck(t *testing.T) {
	dir := closedStore(t)
	code, out, errs := runLocal(t, "store", "check", dir, "-o", "json")
	var rep struct {
		Errors   int
		Findings []struct{ Unit string }
	}
	if err := json.Unmarshal([]byte(out), &rep); err != nil || code != exitDone || errs != "" || rep.Errors != 0 {
		t.Fatalf("exit code %d, %v, %q, %q", code, err, out, errs)
	}
	segments, err := filepath.Glob(filepath.Join(dir, "segments", "*", "*.seg"))
	if err != nil || len(segments) == 0 {
		t.Fatal(segments, err)
	}
	data := segments[len(segments)-1] // the one before it holds metadata
	b, err := os.ReadFile(data)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-10] ^= 1
	if err := os.WriteFile(data, b, 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs = runLocal(t, "store", "check", dir)
	if code != exitFailed || !strings.Contains(out, "segments/") || !strings.Contains(out, "web1") || !strings.Contains(errs, "damaged") {
		t.Errorf("exit code %d, %q, %q", code, out, errs)
	}
	if code, _, errs = runLocal(t, "store", "check", t.TempDir()); code == exitDone || !strings.Contains(errs, "no superblock") {
		t.Errorf("exit code %d, %q", code, errs)
	}
}

func TestStoreDump(t *testing.T) {
	dir := closedStore(t)
	for _, c := range []struct{ args, says string }{
		{"super DIR", "boot epoch 1"},
		{"log DIR", "sealed"},
		{"log DIR 1", `name "web1"`},
		{"log DIR 00000001.log", "seq 2  write"},
		{"segment DIR", "chunks live"},
		{"segment DIR 2", "chunk 1 "}, // the first one holds metadata
		{"page DIR 1", "region 0"},
		{"volume DIR", `"web1"`},
		{"volume DIR web1", "closed+started"},
	} {
		args := append([]string{"store", "dump"}, strings.Fields(strings.Replace(c.args, "DIR", dir, 1))...)
		code, out, errs := runLocal(t, args...)
		if code != exitDone || !strings.Contains(out, c.says) || errs != "" {
			t.Errorf("%s: exit code %d, %q should say %q; %q", c.args, code, out, c.says, errs)
		}
		code, out, errs = runLocal(t, append(args, "-o", "json")...)
		if code != exitDone || !json.Valid([]byte(out)) || errs != "" {
			t.Errorf("%s: exit code %d, no JSON: %q; %q", c.args, code, out, errs)
		}
	}
	for _, args := range []string{"super", "page DIR", "page DIR x", "log DIR zz", "segment DIR 99", "volume DIR nope", "page DIR 999"} {
		if code, _, errs := runLocal(t, append([]string{"store", "dump"}, strings.Fields(strings.Replace(args, "DIR", dir, 1))...)...); code == exitDone || strings.Count(errs, "\n") != 1 {
			t.Errorf("%s: exit code %d, %q", args, code, errs)
		}
	}
}

// TestStoreDumpOfASealedHistory: the key opens what a file of history of an encrypted store holds, another one is refused, and none shows the frames alone.
func TestStoreDumpOfASealedHistory(t *testing.T) {
	dir, keys := t.TempDir(), t.TempDir()
	ctx := context.Background()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	keyFile := func(name string) (string, age.Identity) {
		id, err := age.GenerateX25519Identity()
		must(err)
		path := filepath.Join(keys, name)
		must(os.WriteFile(path, []byte(id.String()+"\n"), 0o600))
		return path, id
	}
	key, id := keyFile("store.key")
	other, _ := keyFile("other.key")
	s, err := blockstore.Open(ctx, blockstore.Options{Dir: dir, LogCapBytes: 64 << 20, LogFileBytes: 1 << 20, MemoryBytes: 64 << 20, ReserveBytes: 1, Keys: blockstore.Keys{Identities: []age.Identity{id}}})
	must(err)
	_, err = s.CreateVolume(ctx, blockstore.VolumeSpec{Name: "web1", SizeBytes: 32 << 20})
	must(err)
	must(s.SetHistory(ctx, "web1", blockstore.HistoryPolicy{Window: time.Hour}))
	d, err := s.OpenDevice("web1", "")
	must(err)
	must(d.Write(ctx, []block.Write{{Off: 4096, Data: bytes.Repeat([]byte("abcd"), 1024)}}, true))
	_, err = s.MarkHistory(ctx, "web1", "upgrade")
	must(err)
	must(errors.Join(d.Close(), s.Close()))
	files, err := filepath.Glob(filepath.Join(dir, "history", "*", "*.hist"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	for _, c := range []struct {
		args       []string
		code       int
		says, errs string
	}{
		{nil, exitDone, "--key-file opens it", ""},
		{[]string{"--key-file", key}, exitDone, `mark "upgrade"`, ""},
		{[]string{"--key-file", key, "--data-dir", dir, "-o", "json"}, exitDone, `"opened": true`, ""},
		{[]string{"--key-file", other}, exitFailed, "", "opens no slot"},
		{[]string{"--key-file", key + ".gone"}, exitNotFound, "", "no such file"},
		{[]string{"--key-file", key, "--data-dir", keys}, exitNotFound, "", "superblock"},
		{[]string{"--data-dir", dir}, exitUsage, "", "give both"},
	} {
		code, out, errs := runLocal(t, append([]string{"store", "dump", "history", files[0]}, c.args...)...)
		if code != c.code || !strings.Contains(out, c.says) || !strings.Contains(errs, c.errs) || (errs == "") != (c.errs == "") {
			t.Errorf("%v: exit code %d, %q should say %q; %q should say %q", c.args, code, out, c.says, errs, c.errs)
		}
	}
}
