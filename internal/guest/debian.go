package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// debianPackages is what a minimal Debian needs besides its essential packages to boot with systemd.
const debianPackages = "systemd,systemd-sysv,udev,dbus,kmod"

// fillDebianTree unpacks a debootstrapped Debian and adds the unit that runs the guest's task.
func fillDebianTree(ctx context.Context, parent, tree string, spec Spec) error {
	if os.Geteuid() != 0 {
		return errors.New("debootstrap needs root: run as root, or use the busybox guest")
	}
	// The archive is kept apart from the disks, so that a new size or variant costs no network.
	dir, err := buildFolder(parent, fmt.Sprintf("debootstrap-%s-%d", spec.Suite, recipe), func(dir string) error {
		return debootstrap(ctx, dir, spec.Suite)
	})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return err
	}
	if _, err := (command{}).run(ctx, "tar", "-C", tree, "--numeric-owner", "-xf", filepath.Join(dir, "root.tar")); err != nil {
		return err
	}
	return configureDebian(tree)
}

// debootstrap leaves root.tar in dir: a minimal Debian from the mirror that the machine's apt is configured with.
func debootstrap(ctx context.Context, dir, suite string) error {
	mirror, err := aptMirror(ctx)
	if err != nil {
		return err
	}
	env, err := aptProxy(ctx)
	if err != nil {
		return err
	}
	tree := filepath.Join(dir, "tree")
	defer os.RemoveAll(tree)
	_, err = command{env: env}.run(ctx, "debootstrap", "--variant=minbase", "--include="+debianPackages, suite, tree, mirror)
	if err != nil {
		return fmt.Errorf("%w (to see why: debootstrap --variant=minbase %s DIR %s)", err, suite, mirror)
	}
	if err := os.RemoveAll(filepath.Join(tree, "var/cache/apt/archives")); err != nil {
		return err
	}
	_, err = command{}.run(ctx, "tar", "-C", tree, "--numeric-owner", "-cf", filepath.Join(dir, "root.tar"), ".")
	return err
}

// configureDebian makes the default target one that runs the task after multi-user.target, and frees the serial console.
func configureDebian(tree string) error {
	units := "etc/systemd/system/"
	files := map[string][]byte{
		units + "hv-guest.service": script("debian-task.service"),
		units + "hv-guest.target":  script("debian-task.target"),
		"etc/fstab":                []byte("/dev/vda / ext4 noatime 0 0\n"),
		"etc/machine-id":           nil,
	}
	for name, body := range files {
		if err := writeTreeFile(tree, name, 0o644, body); err != nil {
			return err
		}
	}
	links := map[string]string{
		units + "default.target":             "hv-guest.target",
		units + "serial-getty@ttyS0.service": "/dev/null", // it would read the lines that are meant for the task
	}
	for name, target := range links {
		path := filepath.Join(tree, name)
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		if err := os.Symlink(target, path); err != nil {
			return err
		}
	}
	return nil
}

// aptMirror returns the site of the main Debian archive that apt is configured with.
func aptMirror(ctx context.Context) (string, error) {
	out, err := command{}.run(ctx, "apt-get", "indextargets", "--format", "$(SITE) $(ORIGIN) $(LABEL) $(COMPONENT)", "Identifier: Packages")
	if err != nil {
		return "", fmt.Errorf("find apt's Debian mirror: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		if site, rest, _ := strings.Cut(strings.TrimSpace(line), " "); rest == "Debian Debian main" {
			return site, nil
		}
	}
	return "", errors.New("find apt's Debian mirror: no Debian archive in apt's lists, run: apt-get update")
}

// aptProxy returns the environment that gives debootstrap the proxy of apt's configuration, if it has one.
func aptProxy(ctx context.Context) ([]string, error) {
	out, err := command{}.run(ctx, "apt-config", "shell", "PROXY", "Acquire::http::Proxy")
	if err != nil {
		return nil, fmt.Errorf("read apt's proxy: %w", err)
	}
	value, found := strings.CutPrefix(strings.TrimSpace(string(out)), "PROXY=")
	proxy := strings.Trim(value, "'")
	if !found || proxy == "" || proxy == "DIRECT" {
		return nil, nil
	}
	return []string{"http_proxy=" + proxy}, nil
}

// machineSuite returns the release of this machine if it is a Debian, else "bookworm".
func machineSuite() string {
	body, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "bookworm"
	}
	facts := map[string]string{}
	for line := range strings.Lines(string(body)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		facts[key] = strings.Trim(value, `"`)
	}
	if facts["ID"] != "debian" || facts["VERSION_CODENAME"] == "" {
		return "bookworm"
	}
	return facts["VERSION_CODENAME"]
}
