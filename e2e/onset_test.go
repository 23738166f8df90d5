package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// A guest writes its logs; then something encrypts its disk. The moment is found, and the state before it has everything.
func TestFindOnset(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 20 s of a guest's ordinary work")
	}
	t.Parallel() // it waits
	d := startDaemon(t)
	uri := d.disk("web1", "256M")
	d.run("volume", "history", "set", "web1", "--window", "1h")
	text := bytes.Repeat([]byte("an ordinary line of an ordinary log\n"), 4<<20/36+1)[:4<<20]
	plain := writeFile(t, "plain", string(text))
	for off := range 16 {
		qemuIO(t, uri, fmt.Sprintf("write -s %s %dM 4M", plain, 4*off))
	}
	find := func() (found struct {
		Onsets []struct {
			At     time.Time
			Before uint64
			Bytes  uint64
		}
	}) {
		t.Helper()
		d.cdpJSON(&found, "find-onset", "web1", "--stretch", "1s")
		return found
	}
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		qemuIO(t, uri, fmt.Sprintf("write -s %s 8M 4M", plain))
	}
	if got := find(); len(got.Onsets) != 0 {
		t.Errorf("ordinary work is an onset: %+v", got)
	}
	noise := make([]byte, 4<<20)
	rng := rand.New(rand.NewPCG(5, 5))
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	secret := writeFile(t, "noise", string(noise))
	begin := time.Now()
	for off := range 16 {
		qemuIO(t, uri, fmt.Sprintf("write -s %s %dM 4M", secret, 4*off))
	}
	end := time.Now()
	got := find()
	if len(got.Onsets) == 0 || got.Onsets[0].At.After(end) || got.Onsets[0].At.Before(begin.Add(-2*time.Second)) || got.Onsets[0].Bytes < 16<<20 {
		t.Fatalf("it began %v and ended %v, and found is %+v", begin, end, got)
	}
	var before moment
	d.cdpJSON(&before, "attach", "web1", "--at", strconv.FormatUint(got.Onsets[0].Before, 10))
	copied := t.TempDir() + "/before.raw"
	if got := execute(t, nil, "qemu-img", "convert", "-f", "raw", "-O", "raw", before.URI, copied); got.code != 0 {
		t.Fatal(got.stderr)
	}
	content, err := os.ReadFile(copied)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(content[:64<<20], bytes.Repeat(text, 16)) {
		t.Error("the state before the onset has other content than before it")
	}
}
