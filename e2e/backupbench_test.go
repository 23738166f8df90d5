package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend/s3/s3test"
)

// benched is what `bench -o json` prints.
type benched struct {
	Data *struct {
		SourceBytes, SampledBytes, NonZeroBytes, UniqueBytes, CompressedBytes uint64
		Ratio, ReadBytesPerSecond, CutAndHashBytesPerSecond                   float64
		CompressBytesPerSecond, SealBytesPerSecond, OpenBytesPerSecond        float64
	}
	Storage []struct {
		Operation       string
		InFlight, Count int
		Bytes           uint64
		BytesPerSecond  float64
		Milliseconds    struct{ P50, P99, Slowest float64 }
	}
	Restore *struct {
		Backup         string
		Bytes          uint64
		BytesPerSecond float64
	}
	FirstBackup *struct {
		BytesPerSecond float64
		HeldBy         string
	}
}

// What is measured is there, right in its sums, and leaves nothing behind: of a volume, of an image, in a directory and in object storage.
func TestBackupBench(t *testing.T) {
	d, r := startDaemon(t), newRepo(t)
	data := string(noise(31, 20<<20))
	image := writeFile(t, "disk.raw", data+data+strings.Repeat("\x00", 88<<20))
	d.run("volume", "import", "web1", image)
	endpoint := "unix:" + d.dir + "/hvd.sock"
	few := []string{"--requests", "1,3", "--most", "24MiB", "--object", "4MiB", "--read", "128KiB", "--time", "2s"}
	var first benched
	r.json(&first, append([]string{"bench", "--volume", "web1", "--endpoint", endpoint}, few...)...)
	if s := first.Data; s == nil || s.SourceBytes != 128<<20 || s.NonZeroBytes < 40<<20-1<<20 || s.NonZeroBytes > 41<<20 || s.UniqueBytes > 22<<20 || s.Ratio < 1.8 || s.Ratio > 2.1 || s.ReadBytesPerSecond <= 0 ||
		s.CutAndHashBytesPerSecond <= 0 || s.CompressBytesPerSecond <= 0 || s.SealBytesPerSecond <= 0 || s.OpenBytesPerSecond <= 0 {
		t.Errorf("40 MiB of noise, each twice: %+v", s)
	}
	if len(first.Storage) != 6 || first.Restore != nil || first.FirstBackup == nil || first.FirstBackup.BytesPerSecond <= 0 || first.FirstBackup.HeldBy == "" {
		t.Errorf("%+v", first)
	}
	for i, s := range first.Storage {
		if s.Operation != []string{"put", "get", "delete"}[i%3] || s.InFlight != []int{1, 3}[i/3] || s.Count == 0 || s.Operation != "delete" && (s.Bytes == 0 || s.BytesPerSecond <= 0) || s.Milliseconds.P50 <= 0 || s.Milliseconds.Slowest < s.Milliseconds.P99 {
			t.Errorf("%+v", s)
		}
	}
	var left []struct{ Name string }
	if d.json(&left, "snapshot", "list", "web1"); len(left) > 0 {
		t.Errorf("snapshots %v are left", left)
	}
	d.run("snapshot", "create", "web1@s")
	var named benched
	r.json(&named, append([]string{"bench", "--volume", "web1@s", "--endpoint", endpoint}, few...)...)
	if named.Data == nil || named.Data.NonZeroBytes != first.Data.NonZeroBytes {
		t.Errorf("of a snapshot: %+v", named.Data)
	}
	if got := r.try("bench", "--volume", "web1@none", "--endpoint", endpoint); got.code != 3 {
		t.Errorf("of a snapshot that is not there: %+v", got)
	}
	var made backedUp
	r.json(&made, "run", "web1", "--endpoint", endpoint)
	var second benched
	r.json(&second, append([]string{"bench"}, few...)...)
	if second.Data != nil || second.Restore == nil || second.Restore.Backup != made.Backup || second.Restore.Bytes < 39<<20 || second.Restore.BytesPerSecond <= 0 {
		t.Errorf("without data, with a backup: %+v", second)
	}
	if got := r.run(append([]string{"bench", "--file", image}, few...)...); !strings.Contains(got, "a first backup of such data is held up by the ") || !strings.Contains(got, "IN FLIGHT") {
		t.Errorf("in plain text: %s", got)
	}
	alone := execute(t, nil, backupPath, "bench", "--file", image, "-o", "json")
	var third benched
	if err := json.Unmarshal([]byte(alone.stdout), &third); alone.code != 0 || err != nil || third.Data == nil || len(third.Storage) > 0 {
		t.Errorf("without a repository: %+v, %v", alone, err)
	}
	for _, args := range []string{"bench", "bench --file x --volume y", "bench --file x --sample 1MiB"} {
		if got := execute(t, nil, backupPath, strings.Fields(args)...); got.code != 2 {
			t.Errorf("%s: %+v", args, got)
		}
	}
	if got := r.try("bench", "--requests", "100"); got.code != 2 {
		t.Errorf("too many requests: %+v", got)
	}
	interruptedBench(t, r)
	r.run("repo", "verify", "--read-data")

	g := s3test.Start(t)
	t.Setenv("AWS_REGION", "us-east-1")
	t.Setenv("AWS_ACCESS_KEY_ID", g.Access)
	t.Setenv("AWS_SECRET_ACCESS_KEY", g.Secret)
	far := &repo{t: t, dir: "s3+http://" + g.Host + "/" + g.Bucket + "/vms", passwords: r.passwords}
	far.run("repo", "init")
	var fourth benched
	far.json(&fourth, append([]string{"bench"}, few...)...)
	if len(fourth.Storage) != 6 || fourth.Storage[0].BytesPerSecond <= 0 {
		t.Errorf("in object storage: %+v", fourth)
	}
}

// interruptedBench interrupts a measurement while it stores.
func interruptedBench(t *testing.T, r *repo) {
	t.Helper()
	stored := func() (n int) {
		all, err := filepath.Glob(filepath.Join(r.dir, "bench", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	if n := stored(); n > 0 {
		t.Errorf("%d objects are left", n)
	}
	cmd := exec.Command(backupPath, r.args("bench", "--requests", "1", "--object", "64KiB", "--most", "8GiB", "--time", "10m")...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); stored() < 10; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			_ = cmd.Process.Kill()
			t.Fatal("it stores nothing")
		}
	}
	_ = cmd.Process.Signal(syscall.SIGINT)
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 || stored() > 0 {
		t.Errorf("it ends with %d, and %d objects are left", code, stored())
	}
}
