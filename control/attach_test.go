package control

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

func TestAttachmentIsThereAgainAfterARestart(t *testing.T) {
	cfg, engine := testConfig(t), newFakeEngine()
	c, stop := start(t, cfg, engine)
	newVolume(t, c, "web1")
	newVolume(t, c, "db1")
	first, _, err := c.Attach(t.Context(), AttachSpec{Volume: "web1"})
	if err != nil {
		t.Fatal(err)
	}
	if want := "nbd+unix:///web1?socket=" + cfg.NBD.Socket; first.URI != want {
		t.Errorf("URI %q, want %q", first.URI, want)
	}
	if _, _, err := c.Attach(t.Context(), AttachSpec{Volume: "db1", OwnSocket: true, Mode: "0660"}); err != nil {
		t.Fatal(err)
	}
	stop()
	c, _ = start(t, cfg, engine)
	if dialNBD(t, cfg.NBD.Socket, "web1") == nil {
		t.Error("web1 is not served")
	}
	if dialNBD(t, c.attachmentOf("db1").Socket, "db1") == nil {
		t.Error("db1 is not served on its own socket")
	}
	again, _, err := c.Attach(t.Context(), AttachSpec{Volume: "web1"})
	if err != nil || again.URI != first.URI {
		t.Errorf("attach again: %+v, %v", again, err)
	}
	if _, _, err := c.Attach(t.Context(), AttachSpec{Volume: "web1", OwnSocket: true}); !errors.Is(err, block.ErrInUse) {
		t.Errorf("attach otherwise: %v", err)
	}
}

func TestOwnSocketShowsItsVolumeOnly(t *testing.T) {
	c, _ := start(t, testConfig(t), newFakeEngine())
	newVolume(t, c, "mine")
	newVolume(t, c, "other")
	attached, _, err := c.Attach(t.Context(), AttachSpec{Volume: "mine", OwnSocket: true, Mode: "0660"})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Attach(t.Context(), AttachSpec{Volume: "other"}); err != nil {
		t.Fatal(err)
	}
	socket := socketOf(t, attached.URI)
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("socket: %v, %v", info, err)
	}
	if dialNBD(t, socket, "mine") == nil || dialNBD(t, socket, "") == nil {
		t.Error("its volume is not served")
	}
	if dialNBD(t, socket, "other") != nil {
		t.Error("another volume is served")
	}
}

func TestDetachSparesClientsUnlessForced(t *testing.T) {
	cfg := testConfig(t)
	c, _ := start(t, cfg, newFakeEngine())
	newVolume(t, c, "v")
	if _, _, err := c.Attach(t.Context(), AttachSpec{Volume: "v"}); err != nil {
		t.Fatal(err)
	}
	client := dialNBD(t, cfg.NBD.Socket, "v")
	if client == nil {
		t.Fatal("not served")
	}
	if err := c.Detach(t.Context(), "v", false); !errors.Is(err, block.ErrInUse) {
		t.Fatalf("detach with a client: %v", err)
	}
	for what, err := range map[string]error{
		"delete": c.DeleteVolume(t.Context(), "v"),
		"shrink": func() error {
			_, err := c.ResizeVolume(t.Context(), "v", ResizeSpec{SizeBytes: 512, Shrink: true})
			return err
		}(),
		"rename": func() error { _, err := c.RenameVolume(t.Context(), "v", "w"); return err }(),
	} {
		if !errors.Is(err, block.ErrInUse) && !errors.Is(err, ErrRefused) {
			t.Errorf("%s of an attached volume: %v", what, err)
		}
	}
	if err := c.Detach(t.Context(), "v", true); err != nil {
		t.Fatal(err)
	}
	gone(t, client)
	if dialNBD(t, cfg.NBD.Socket, "v") != nil {
		t.Error("still served")
	}
	if err := c.Detach(t.Context(), "v", true); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("detach again: %v", err)
	}
	if err := c.DeleteVolume(t.Context(), "v"); err != nil {
		t.Error(err)
	}
}

// A record of a volume that was replaced must not export the newcomer under the old name.
func TestAttachmentOfAnotherVolumeIsNotServed(t *testing.T) {
	cfg, engine := testConfig(t), newFakeEngine()
	c, stop := start(t, cfg, engine)
	newVolume(t, c, "v")
	if _, _, err := c.Attach(t.Context(), AttachSpec{Volume: "v"}); err != nil {
		t.Fatal(err)
	}
	stop()
	delete(engine.volumes, "v")
	if _, err := engine.CreateVolume(t.Context(), blockstore.VolumeSpec{Name: "v", SizeBytes: 512}); err != nil {
		t.Fatal(err)
	}
	c, _ = start(t, cfg, engine)
	if dialNBD(t, cfg.NBD.Socket, "v") != nil {
		t.Error("the newcomer is served")
	}
	if problems := c.Status().Problems; len(problems) != 1 || !strings.Contains(problems[0], "detach") {
		t.Errorf("problems %q", problems)
	}
	if err := c.Detach(t.Context(), "v", false); err != nil {
		t.Error(err)
	}
}

func TestDamagedAttachmentsStopTheStart(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want error
	}{
		"no JSON":       {"{", block.ErrCorrupt},
		"another file":  {`{"format":"x","version":1}`, block.ErrCorrupt},
		"newer version": {`{"format":"hyper-nixos attachments","version":2}`, block.ErrVersion},
		"unknown field": {`{"format":"hyper-nixos attachments","version":1,"extra":1}`, block.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			path := t.TempDir() + "/attachments.json"
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := readState(path, attachmentsHeader, &attachmentsFile{}); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// Golden bytes of attachments.json: versions to come must read this.
func TestAttachmentsFileStaysReadable(t *testing.T) {
	for name, check := range map[string]func([]attachmentRecord) bool{
		"attachments-1.json": func(list []attachmentRecord) bool { return list[1].Owner == "libvirt-qemu:kvm" && list[1].OwnSocket },
		"attachments-1-tcp.json": func(list []attachmentRecord) bool {
			return list[0].TCP && list[0].TCPWriteback && len(list[0].Clients) == 2 && list[0].UnflushedBoot != "" && list[1].ReadOnly && list[1].Inject != ""
		},
	} {
		file := attachmentsFile{}
		if err := readState("testdata/"+name, attachmentsHeader, &file); err != nil {
			t.Fatal(err)
		}
		if len(file.Attachments) != 2 || !check(file.Attachments) {
			t.Errorf("%s: got %+v", name, file)
		}
		copied := t.TempDir() + "/copy.json"
		if err := writeState(copied, file); err != nil {
			t.Fatal(err)
		}
		want, _ := os.ReadFile("testdata/" + name)
		got, _ := os.ReadFile(copied)
		if string(got) != string(want) {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
}
