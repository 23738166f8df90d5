package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// parallelTests is how many tests that are parallel run at once. These wait for most of their time, so they are more than there are processors on a small machine. They run after all others, which nothing disturbs.
const parallelTests = 4

// The programs under test, built once by TestMain.
var hvdPath, fabricPath, backupPath string

func TestMain(m *testing.M) {
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	bin, err := os.MkdirTemp("", "hv-e2e-bin")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(bin)
	build := exec.Command("go", "build", "-o", bin, "./cmd/hvd", "./cmd/hv-storage-fabric", "./cmd/hv-backup")
	build.Dir = ".."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the programs: %v\n%s", err, text)
		return 1
	}
	// Other users run them too, and no daemon of this machine shall be meant by accident.
	if err := os.Chmod(bin, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for _, name := range []string{"HV_ENDPOINT", "HV_TOKEN", "HV_CONFIG", "HV_BACKUP_REPO", "HV_BACKUP_PASSWORD_FILE", "NOTIFY_SOCKET"} {
		os.Unsetenv(name)
	}
	hvdPath, fabricPath = filepath.Join(bin, "hvd"), filepath.Join(bin, "hv-storage-fabric")
	backupPath = filepath.Join(bin, "hv-backup")
	if err := runParallel(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// runParallel has go test run parallelTests at once, unless its command line says how many.
func runParallel() error {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if given {
		return nil
	}
	return flag.Set("test.parallel", strconv.Itoa(parallelTests))
}
