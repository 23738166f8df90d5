package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// AccelVariable overrides DetectAccel: "kvm" or "tcg".
const AccelVariable = "HV_ACCEL"

// smokeLimit is how long a guest may take under KVM to reach its first program. Real KVM needs well under a second.
const smokeLimit = 4 * time.Second

// DetectAccel returns KVM if a small guest really boots under it, else TCG.
//
// A trial is needed because neither an open /dev/kvm nor a working KVM API says that a stock kernel runs: on some nested
// hosts it never leaves its decompressor. The outcome is kept in the image's cache folder, for this combination of
// host kernel, QEMU, processor and guest kernel. A trial takes up to four seconds.
func DetectAccel(ctx context.Context, image *Image) (Accel, error) {
	switch forced := Accel(os.Getenv(AccelVariable)); forced {
	case KVM, TCG:
		return forced, nil
	case "":
	default:
		return "", fmt.Errorf("detect accelerator: %s=%q, want %q or %q", AccelVariable, forced, KVM, TCG)
	}
	// Not kept: access to the device is often granted a moment later.
	if unix.Access("/dev/kvm", unix.R_OK|unix.W_OK) != nil {
		return TCG, nil
	}
	key, err := accelKey(ctx, image)
	if err != nil {
		return "", fmt.Errorf("detect accelerator: %w", err)
	}
	path := filepath.Join(image.CacheDir, "guest", "accel.json")
	known := map[string]Accel{}
	if err := readJSON(path, &known); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("detect accelerator: %w", err)
	}
	if accel := known[key]; accel == KVM || accel == TCG {
		return accel, nil
	}
	accel, err := trialBoot(ctx, image)
	if err != nil {
		return "", fmt.Errorf("detect accelerator: %w", err)
	}
	known[key] = accel
	if err := writeJSON(path, known); err != nil {
		return "", fmt.Errorf("keep accelerator: %w", err)
	}
	return accel, nil
}

// trialBoot boots the initramfs alone under KVM. Only the end of ctx, or a machine without qemu, is an error.
func trialBoot(ctx context.Context, image *Image) (Accel, error) {
	if _, err := smokeBoot(ctx, image, KVM, smokeLimit); err != nil {
		if _, missing := findProgram("qemu-system-x86_64"); missing != nil {
			return "", missing
		}
		return TCG, ctx.Err()
	}
	return KVM, nil
}

// smokeBoot boots the initramfs with no disk and returns how long it took to its first program.
func smokeBoot(ctx context.Context, image *Image, accel Accel, limit time.Duration) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	options, err := BootOptions{Image: image, Accel: accel, Task: taskSmoke}.withDefaults()
	if err != nil {
		return 0, err
	}
	args, err := options.qemuArgs(image.Initramfs, "")
	if err != nil {
		return 0, err
	}
	start := time.Now()
	machine, err := startMachine(ctx, "", "", args)
	if err != nil {
		return 0, err
	}
	_, err = machine.WaitMarker(ctx, "GUEST-SMOKE")
	took := time.Since(start)
	return took, errors.Join(err, machine.Kill())
}

// accelKey names everything that the outcome of a trial depends on.
func accelKey(ctx context.Context, image *Image) (string, error) {
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		return "", fmt.Errorf("uname: %w", err)
	}
	version, err := command{}.run(ctx, "qemu-system-x86_64", "--version")
	if err != nil {
		return "", err
	}
	qemu, _, _ := strings.Cut(string(version), "\n")
	return strings.Join([]string{unix.ByteSliceToString(host.Release[:]), qemu, processorModel(), image.KernelRelease}, " | "), nil
}

// processorModel returns the processor's name as /proc/cpuinfo has it.
func processorModel() string {
	body, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	for line := range strings.Lines(string(body)) {
		if name, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}
