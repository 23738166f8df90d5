package console

import (
	"context"
	"errors"
	"syscall"
	"testing"
)

// A signal ends the context and decides the exit code.
func TestInterruptible(t *testing.T) {
	for s, want := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143, syscall.SIGHUP: 129} {
		ctx, stop := Interruptible(context.Background(), s)
		if err := syscall.Kill(syscall.Getpid(), s); err != nil {
			t.Fatal(err)
		}
		<-ctx.Done()
		var by *Interrupted
		if got := InterruptCode(ctx); got != want || !errors.As(context.Cause(ctx), &by) || by.Signal != s {
			t.Errorf("%v: code %d, want %d; cause %v", s, got, want, context.Cause(ctx))
		}
		stop()
	}
	ctx, stop := Interruptible(context.Background(), syscall.SIGUSR1)
	stop()
	if by := (*Interrupted)(nil); ctx.Err() == nil || errors.As(context.Cause(ctx), &by) {
		t.Errorf("stopped without a signal: %v", context.Cause(ctx))
	}
	if got := InterruptCode(ctx); got != 130 {
		t.Errorf("code %d", got)
	}
}
