package guest

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestSmokeBootUnderTCG boots the initramfs alone: this is the trial by which KVM is judged, here where it must succeed.
func TestSmokeBootUnderTCG(t *testing.T) {
	took, err := smokeBoot(t.Context(), testImage(t), TCG, 3*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("first program after %v", took)
}

// TestDetectAccel checks that the answer is one that boots, that it is kept, and that the environment overrides it.
func TestDetectAccel(t *testing.T) {
	image := *testImage(t)
	image.CacheDir = t.TempDir()
	if err := os.MkdirAll(filepath.Join(image.CacheDir, "guest"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv(AccelVariable, "")
	accel, err := DetectAccel(t.Context(), &image)
	if err != nil {
		t.Fatal(err)
	}
	if accel != TCG {
		if _, err := smokeBoot(t.Context(), &image, accel, smokeLimit); err != nil {
			t.Errorf("detected %s, which does not boot: %v", accel, err)
		}
	}
	start := time.Now()
	again, err := DetectAccel(t.Context(), &image)
	if err != nil || again != accel {
		t.Errorf("second answer: %s, %v; first %s", again, err, accel)
	}
	t.Logf("%s; asked again: %v", accel, time.Since(start))

	t.Setenv(AccelVariable, "kvm")
	if forced, err := DetectAccel(t.Context(), &image); err != nil || forced != KVM {
		t.Errorf("forced kvm: got %s, %v", forced, err)
	}
	t.Setenv(AccelVariable, "magic")
	if _, err := DetectAccel(t.Context(), &image); err == nil {
		t.Error("an unknown accelerator was taken")
	}
}
