package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Two backups of a disk differ where it was written to.
func TestBackupDiff(t *testing.T) {
	needs(t, "qemu-io")
	r := newRepo(t)
	image := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(image, append(noise(11, 20<<20), make([]byte, 20<<20)...), 0o600); err != nil {
		t.Fatal(err)
	}
	var first, second backedUp
	r.json(&first, "run", "--file", image)
	tool(t, "qemu-io", "-f", "raw", "-c", "write -P 7 5M 4k", "-c", "write -z 8M 64k", "-c", "write -P 9 30M 512", image)
	if err := os.Truncate(image, 41<<20); err != nil {
		t.Fatal(err)
	}
	r.json(&second, "run", "--file", image)
	type change struct {
		Offset, Length int
		Kind           string
	}
	var got struct {
		Backups []string
		Ranges  []change
		Total   struct {
			Ranges, Bytes int
			Kinds         map[string]int
		}
	}
	r.json(&got, "diff", first.Backup, second.Backup)
	end := 0
	for _, c := range got.Ranges {
		if c.Offset < end || c.Length == 0 {
			t.Errorf("%+v comes after %d", c, end)
		}
		end = c.Offset + c.Length
	}
	if got.Backups[0] != first.Backup || got.Total.Bytes != 4096+65536+512+1<<20 || got.Total.Kinds["added"] != 1<<20 || got.Total.Kinds["filled"] != 512 {
		t.Errorf("diff says %+v", got)
	}
	text := r.run("diff", first.Backup, second.Backup)
	if !strings.Contains(text, "OFFSET") || !strings.Contains(text, "5242880") || !strings.Contains(text, "1.07 MiB in ") {
		t.Errorf("diff prints %s", text)
	}
	if text = r.run("diff", "--quick", "--summary", first.Backup, first.Backup); text != "0 B in 0 ranges; looked into 0 regions of 16 MiB\n" {
		t.Errorf("a backup and itself: %q", text)
	}
	if got := r.try("diff", first.Backup); got.code != 2 {
		t.Errorf("one backup: %d %s", got.code, got.stderr)
	}
}
