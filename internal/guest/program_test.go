package guest

import (
	"strings"
	"testing"
)

// TestMissingProgramNamesItsPackage is what a user of a fresh machine reads.
func TestMissingProgramNamesItsPackage(t *testing.T) {
	_, err := command{}.run(t.Context(), "no-such-program")
	if err == nil || !strings.Contains(err.Error(), "apt-get install no-such-program") {
		t.Errorf("got %v", err)
	}
	for program, want := range map[string]string{"qemu-system-x86_64": "qemu-system-x86", "debugfs": "e2fsprogs", "debootstrap": "debootstrap"} {
		if got := packageOf(program); got != want {
			t.Errorf("%s is in %s, want %s", program, got, want)
		}
	}
}

// TestFailureIsOneLine checks that the reason a program gave reaches the user, and that an allowed exit code is no failure.
func TestFailureIsOneLine(t *testing.T) {
	script := []string{"-c", "echo first >&2; echo reason >&2; exit 3"}
	_, err := command{}.run(t.Context(), "sh", script...)
	if err == nil || !strings.HasSuffix(err.Error(), "exit status 3: reason") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v", err)
	}
	if _, err := (command{okay: func(exitCode int) bool { return exitCode == 3 }}).run(t.Context(), "sh", script...); err != nil {
		t.Errorf("an allowed exit code: %v", err)
	}
}
