package main

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// The JSON documents are an interface: scripts read them. Each step is one command, its output a golden file.
func TestJSONOutput(t *testing.T) {
	d := startDaemon(t)
	for _, step := range []struct{ name, args string }{
		{"status", "status --wait 5s"},
		{"volume-list-empty", "volume list"},
		{"volume-create", "volume create web1 --size 20GiB"},
		{"volume-create-durable", "volume create db1 --size 1GiB --chunking fixed:64KiB --mode durable"},
		{"volume-attach", "volume attach web1"},
		{"volume-attach-again", "volume attach web1"},
		{"volume-attach-own", "volume attach db1 --socket-per-volume --mode 0600"},
		{"volume-show-attached", "volume show web1"},
		{"volume-qos-set", "volume qos set web1 --write-iops 2000 --write-bytes 100MB/s"},
		{"volume-qos-set-more", "volume qos set web1 --read-bytes 64MiB/s --burst 2s --write-iops 0"},
		{"volume-show-limited", "volume show web1"},
		{"volume-qos-show", "volume qos show web1"},
		{"volume-qos-clear", "volume qos clear web1"},
		{"volume-qos-show-none", "volume qos show web1"},
		{"volume-quota-set", "volume quota set web1 --referenced 15GiB"},
		{"volume-quota-set-more", "volume quota set web1 --reserve 16MiB"},
		{"volume-show-bounded", "volume show web1"},
		{"volume-quota-show", "volume quota show web1"},
		{"volume-quota-clear", "volume quota clear web1"},
		{"store-alarms", "store alarms"},
		{"volume-detach", "volume detach db1"},
		{"volume-resize", "volume resize db1 --size 2GiB"},
		{"volume-rename", "volume rename db1 db2"},
		{"snapshot-create", "snapshot create web1@s1"},
		{"snapshot-create-two-words", "snapshot create web1 s2"},
		{"volume-group-set", "volume group set shop web1 db2"},
		{"volume-group-list", "volume group list"},
		{"snapshot-create-group", "snapshot create @shop@g1"},
		{"snapshot-create-set", "snapshot create web1@g2 db2@g3"},
		{"volume-group-delete", "volume group delete shop"},
		{"snapshot-diff-none", "snapshot diff web1@s1"},
		{"snapshot-rename", "snapshot rename web1@s2 s3"},
		{"snapshot-protect", "snapshot protect web1@s3"},
		{"snapshot-list", "snapshot list web1"},
		{"snapshot-unprotect", "snapshot unprotect web1@s3"},
		{"volume-bitmap-add", "volume bitmap add web1 monday"},
		{"volume-bitmap-clear-dry-run", "volume bitmap clear web1 monday --dry-run"},
		{"volume-bitmap-clear", "volume bitmap clear web1 monday"},
		{"volume-show-bitmap", "volume show web1"},
		{"volume-bitmap-list", "volume bitmap list web1"},
		{"volume-bitmap-remove", "volume bitmap remove web1 monday"},
		{"volume-attach-snapshot", "volume attach web1@s1"},
		{"volume-attach-options", "volume attach db2 --read-only --inject delay=1ms,error=0.5"},
		{"status-with-faults", "status"},
		{"volume-clone", "volume clone web1@s1 web2"},
		{"snapshot-delete", "snapshot delete web1@s3"},
		{"volume-detach-web1", "volume detach web1"},
		{"snapshot-rollback", "snapshot rollback web1@s1"},
		{"volume-list", "volume list"},
		{"volume-delete", "volume delete web2 --yes"},
		{"store-settle", "store settle --wait"},
		{"store-settle-cold", "store settle --wait --class cold"},
		{"store-explain", "store explain"},
		{"store-explain-volume", "store explain web1"},
		{"snapshot-schedule-set", "snapshot schedule set db2 --every 1d --keep-last 2 --keep-daily 7"},
		{"snapshot-schedule-list", "snapshot schedule list"},
		{"snapshot-list-scheduled", "snapshot list db2"},
		{"snapshot-schedule-dry-run", "snapshot schedule set db2 --keep-weekly 1 --dry-run"},
		{"snapshot-schedule-delete", "snapshot schedule delete db2"},
		{"token-create", "token create ci --scope operate --expires 90d"},
		{"token-list", "token list"},
		{"token-revoke", "token revoke ci"},
		{"version", "version"},
	} {
		args := append(strings.Fields(step.args), "-o", "json")
		r := d.run("", args...)
		if r.code != exitDone || r.err != "" && !strings.HasPrefix(r.err, "note: ") && !strings.HasPrefix(r.err, "FAULTS ") {
			t.Fatalf("%s: exit code %d, errors %q", step.args, r.code, r.err)
		}
		if !json.Valid([]byte(r.out)) {
			t.Errorf("%s: no JSON document: %s", step.args, r.out)
		}
		compare(t, filepath.Join("testdata", step.name+".json"), d.fixed(r.out))
	}
}

func compare(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; go test ./cmd/hv-storage-fabric -update makes it", err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%swant\n%s", path, got, want)
	}
}
