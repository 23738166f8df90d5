package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// A quota belongs to the volume, whatever it is called, and lasts until it is cleared; what makes no sense changes nothing, and neither does a file that cannot be written.
func TestQuotasSurviveARestartAndARename(t *testing.T) {
	cfg, engine := testConfig(t), newFakeEngine()
	c, stop := start(t, cfg, engine)
	newVolume(t, c, "web1")
	most, kept, huge, own := uint64(1<<20), uint64(1<<19), uint64(1<<21), uint64(1<<16)
	if _, err := c.SetQuota(t.Context(), "web1", QuotaChange{ReferencedBytes: &most}); err != nil {
		t.Fatal(err)
	}
	want := blockstore.VolumeQuota{ReferencedBytes: most, ReservedBytes: kept, UniqueBytes: own}
	if v, err := c.SetQuota(t.Context(), "web1", QuotaChange{ReservedBytes: &kept, UniqueBytes: &own}); err != nil || v.Quota != want {
		t.Fatalf("%+v, %v", v.Quota, err)
	}
	if _, err := c.SetQuota(t.Context(), "web1", QuotaChange{ReservedBytes: &huge}); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("more kept than allowed: %v", err)
	}
	if _, err := c.SetQuota(t.Context(), "nope", QuotaChange{ReservedBytes: &kept}); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("no volume: %v", err)
	}
	blocker := c.quotasPath() + ".new"
	if err := os.Mkdir(blocker, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ClearQuota(t.Context(), "web1"); err == nil {
		t.Error("cleared although that cannot be noted")
	}
	if err := os.Remove(blocker); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RenameVolume(t.Context(), "web1", "web2"); err != nil {
		t.Fatal(err)
	}
	stop()
	for _, v := range engine.volumes {
		v.info.Quota = blockstore.VolumeQuota{} // the engine forgets them
	}
	c, stop = start(t, cfg, engine)
	if v, err := c.Volume("web2"); err != nil || v.Quota != want {
		t.Errorf("after a restart: %+v, %v", v.Quota, err)
	}
	if v, err := c.ClearQuota(t.Context(), "web2"); err != nil || !v.Quota.None() {
		t.Errorf("cleared: %+v, %v", v.Quota, err)
	}
	stop()
	c, _ = start(t, cfg, engine)
	if v, err := c.Volume("web2"); err != nil || !v.Quota.None() {
		t.Errorf("cleared, after a restart: %+v, %v", v.Quota, err)
	}
}

// The golden file is what this version writes, and stays readable.
func TestQuotasFileIsGolden(t *testing.T) {
	for version, quotas := range [][]quotaRecord{1: {{"web1", "56bb7db2-8c98-452f-888a-d4b95dae46e4", 16106127360, 1073741824, 0}}, 2: {{"web1", "56bb7db2-8c98-452f-888a-d4b95dae46e4", 16106127360, 0, 5368709120}}} {
		if quotas == nil {
			continue
		}
		golden := fmt.Sprintf("testdata/quotas-%d.json", version)
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "quotas.json")
		file := quotasFile{stateHeader: quotasHeader(quotas), Quotas: quotas}
		if err := writeState(path, file); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != string(want) {
			t.Errorf("got %s, %v", got, err)
		}
		if read, err := readQuotas(golden); err != nil || fmt.Sprint(read) != fmt.Sprint(file) {
			t.Errorf("%+v, %v", read, err)
		}
	}
	newer := filepath.Join(t.TempDir(), "quotas.json")
	if err := writeState(newer, quotasFile{stateHeader: stateHeader{"hyper-nixos quotas", 3}}); err != nil {
		t.Fatal(err)
	}
	if _, err := readQuotas(newer); !errors.Is(err, block.ErrVersion) {
		t.Errorf("a newer version: %v", err)
	}
}

// Alarms reach the log, status and whoever subscribed; a subscriber that does not read loses the oldest; a volume takes its alarm along when it is renamed.
func TestAlarmsReachEverybody(t *testing.T) {
	var text strings.Builder
	alarms := &Alarms{}
	events := engineEvents(slog.New(slog.NewTextHandler(&text, nil)), alarms, time.Now)
	events.SpaceState(blockstore.SpaceNearFull, 5<<30)
	events.QuotaState("v", blockstore.QuotaReferenced, blockstore.FillCritical, 96, 100)
	for _, says := range []string{"msg=space state=\"near full\"", "msg=quota volume=v state=\"nearly full\" usedBytes=96 limitBytes=100"} {
		if !strings.Contains(text.String(), says) {
			t.Errorf("the log has no %s: %s", says, text.String())
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	now, changes := alarms.Subscribe(ctx)
	if len(now) != 2 || now[0].Volume != "v" || now[1].Kind != "space" {
		t.Errorf("at first: %v", now)
	}
	alarms.rename("v", "w")
	for i := range 2 * alarmsHeld { // nobody reads
		events.QuotaState("x", blockstore.QuotaReferenced, blockstore.FillFull, uint64(i), 100)
	}
	events.QuotaState("x", blockstore.QuotaReferenced, blockstore.FillOK, 1, 100)
	last := Alarm{}
	for range alarmsHeld {
		last = <-changes
	}
	if last.State != "ok" || last.Volume != "x" {
		t.Errorf("the newest is %v", last)
	}
	if got := fmt.Sprint(alarms.Now()); !strings.Contains(got, "the quota of volume w is nearly full") || strings.Contains(got, "volume v") || strings.Contains(got, "volume x") {
		t.Errorf("now: %s", got)
	}
	cancel()
	if _, more := <-changes; more {
		t.Error("the subscription does not end with its context")
	}
}

// A client that is named by a key that nobody has is told about.
func TestClientsWithoutAKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.psk")
	if err := os.WriteFile(path, []byte("node1:00112233445566778899aabbccddeeff\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &Control{tcp: &tcpDoor{pskFile: path}}
	if got := c.keyless([]string{"psk:node1", "certified"}); got != "" {
		t.Errorf("all have what they need: %q", got)
	}
	if got := c.keyless([]string{"psk:node1", "psk:nodee2"}); !strings.Contains(got, "no key for psk:nodee2,") {
		t.Errorf("got %q", got)
	}
	if got := (&Control{}).keyless([]string{"psk:x"}); got != "" {
		t.Errorf("without a door: %q", got)
	}
}

// To attach a volume that is attached, and say nothing more, tells how it is attached; to ask for another way is refused as before.
func TestPlainAttachOfAnAttachedVolume(t *testing.T) {
	c, _ := start(t, testConfig(t), newFakeEngine())
	newVolume(t, c, "v")
	first, _, err := c.Attach(t.Context(), AttachSpec{Volume: "v", ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if again, _, err := c.Attach(t.Context(), AttachSpec{Volume: "v"}); err != nil || again.URI != first.URI || !again.ReadOnly {
		t.Errorf("%+v, %v", again, err)
	}
	if _, _, err := c.Attach(t.Context(), AttachSpec{Volume: "v", OwnSocket: true}); !errors.Is(err, block.ErrInUse) {
		t.Errorf("in another way: %v", err)
	}
}
