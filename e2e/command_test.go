package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// result is what a program left.
type result struct {
	code           int // -1 when a signal ended it
	stdout, stderr string
}

// execute runs a program to its end. Only what keeps it from running at all is a failure here.
func execute(t *testing.T, stdin io.Reader, path string, args ...string) result {
	t.Helper()
	return executeWith(t, nil, stdin, path, args...)
}

// executeWith is execute with variables beside those of this process, which t.Setenv cannot give to a test that is parallel.
func executeWith(t *testing.T, env []string, stdin io.Reader, path string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	var stdout, stderr bytes.Buffer
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Errorf("%s %s does not end\n%s%s", path, strings.Join(args, " "), &stdout, &stderr)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Errorf("run %s: %v", path, err)
	}
	return result{code: cmd.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String()}
}

// try runs hv-storage-fabric against the daemon.
func (d *daemon) try(args ...string) result {
	d.t.Helper()
	return d.tryWith(nil, args...)
}

// tryWith is try with a standard input.
func (d *daemon) tryWith(stdin io.Reader, args ...string) result {
	d.t.Helper()
	return execute(d.t, stdin, fabricPath, append([]string{"--endpoint", "unix:" + d.dir + "/hvd.sock"}, args...)...)
}

// run is try for what must be done.
func (d *daemon) run(args ...string) {
	d.t.Helper()
	if got := d.try(args...); got.code != 0 {
		d.t.Fatalf("hv-storage-fabric %s ended with %d: %s", strings.Join(args, " "), got.code, got.stderr)
	}
}

// json runs a command with -o json and decodes its document.
func (d *daemon) json(into any, args ...string) {
	d.t.Helper()
	got := d.try(append([]string{"-o", "json"}, args...)...)
	if got.code != 0 {
		d.t.Fatalf("hv-storage-fabric %s ended with %d: %s", strings.Join(args, " "), got.code, got.stderr)
	}
	if err := json.Unmarshal([]byte(got.stdout), into); err != nil {
		d.t.Fatalf("hv-storage-fabric -o json %s: %v in %q", strings.Join(args, " "), err, got.stdout)
	}
}

// refuses expects an exit code, nothing on standard output, and one line of error that holds all of says.
func (d *daemon) refuses(code int, says []string, args ...string) {
	d.t.Helper()
	d.mustRefuse(d.try(args...), code, says, args...)
}

func (d *daemon) mustRefuse(got result, code int, says []string, args ...string) {
	d.t.Helper()
	what := strings.Join(args, " ")
	if len(what) > 120 {
		what = what[:120] + "…"
	}
	if got.code != code {
		d.t.Errorf("%q ended with %d, want %d: %s", what, got.code, code, got.stderr)
	}
	if got.stdout != "" {
		d.t.Errorf("%q failed and printed %q", what, got.stdout)
	}
	if strings.Count(got.stderr, "\n") != 1 || !strings.HasSuffix(got.stderr, "\n") {
		d.t.Errorf("%q: want one line of error, got %q", what, got.stderr)
	}
	d.saysAll(got.stderr, says)
}
