package e2e

import (
	"os"
	"path/filepath"
	"testing"
)

// Files go into a repository by a name, share it with disks, and come back with their modes.
func TestBackupsOfFiles(t *testing.T) {
	r := newRepo(t)
	dir := t.TempDir()
	xml := filepath.Join(dir, "db1.xml")
	if err := os.WriteFile(xml, []byte("<domain/>"), 0o640); err != nil {
		t.Fatal(err)
	}
	var first, again backedUp
	r.json(&first, "run", "--files", "db1.conf", xml)
	r.json(&again, "run", "--files", "db1.conf", xml)
	if again.NewBytes != 0 {
		t.Errorf("the same files again have %d new bytes", again.NewBytes)
	}
	to := filepath.Join(t.TempDir(), "back")
	r.run("restore", "latest:db1.conf", "--to-dir", to)
	text, err := os.ReadFile(filepath.Join(to, xml))
	info, statErr := os.Stat(filepath.Join(to, xml))
	if err != nil || statErr != nil || string(text) != "<domain/>" || info.Mode() != 0o640 {
		t.Errorf("%q %v %v %v", text, info, err, statErr)
	}
	r.run("repo", "verify", "--read-data")
	image := writeFile(t, "disk.raw", "a disk")
	r.run("run", "--file", image)
	for _, c := range []struct {
		code int
		args []string
	}{
		{4, []string{"restore", "latest:db1.conf", "--to-dir", to}}, // not empty
		{2, []string{"restore", "latest:" + image, "--to-dir", t.TempDir()}},
		{2, []string{"restore", "latest:db1.conf", "--to-dir", to, "--to-file", to + ".raw"}},
		{2, []string{"run", "--files", "db1.conf"}},
		{3, []string{"run", "--files", "db1.conf", "/does/not/exist"}},
	} {
		if got := r.try(c.args...); got.code != c.code {
			t.Errorf("%v ends with %d: %s", c.args, got.code, got.stderr)
		}
	}
}
