package guest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// kernelMetaPackage always depends on the current kernel package of the release that the machine runs.
const kernelMetaPackage = "linux-image-cloud-amd64"

// currentKernelPackage asks apt's lists which package holds the current cloud kernel, such as linux-image-6.1.0-56-cloud-amd64.
func currentKernelPackage(ctx context.Context) (string, error) {
	out, err := command{}.run(ctx, "apt-cache", "depends", kernelMetaPackage)
	if err != nil {
		return "", fmt.Errorf("find the current kernel package: %w (run: apt-get update)", err)
	}
	for line := range strings.Lines(string(out)) {
		name, isDependency := strings.CutPrefix(strings.TrimSpace(line), "Depends: ")
		if isDependency && strings.HasPrefix(name, "linux-image-") {
			return name, nil
		}
	}
	return "", fmt.Errorf("find the current kernel package: %s is not in apt's lists, run: apt-get update", kernelMetaPackage)
}

// unpackPackage downloads one package into dir through the configured apt and unpacks its files into dir/NAME.
// Nothing is installed and no maintainer script runs. It returns the folder of the files.
func unpackPackage(ctx context.Context, dir, name string) (string, error) {
	download := filepath.Join(dir, "download-"+name)
	if err := os.MkdirAll(download, 0o755); err != nil {
		return "", err
	}
	defer os.RemoveAll(download)
	if _, err := (command{dir: download}).run(ctx, "apt-get", "download", "-q", name); err != nil {
		return "", fmt.Errorf("download package %s: %w (if apt's lists are old, run: apt-get update)", name, err)
	}
	archives, err := filepath.Glob(filepath.Join(download, "*.deb"))
	if err != nil || len(archives) != 1 {
		return "", fmt.Errorf("download package %s: want one archive, got %d", name, len(archives))
	}
	files := filepath.Join(dir, name)
	if _, err := (command{}).run(ctx, "dpkg-deb", "-x", archives[0], files); err != nil {
		return "", fmt.Errorf("unpack package %s: %w", name, err)
	}
	return files, nil
}
