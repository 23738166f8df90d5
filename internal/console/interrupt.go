package console

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
)

// Interrupted is the cause of a context that a signal has ended.
type Interrupted struct{ Signal syscall.Signal }

// Error says what it was.
func (e *Interrupted) Error() string {
	switch e.Signal {
	case syscall.SIGTERM:
		return "terminated"
	case syscall.SIGHUP:
		return "ended, as its terminal has gone"
	}
	return "interrupted"
}

// Interruptible returns a context that ends with the first of these signals, with *Interrupted as its cause. stop lets the signals do again what they do by themselves.
func Interruptible(parent context.Context, signals ...os.Signal) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	got := make(chan os.Signal, 1)
	signal.Notify(got, signals...)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case s := <-got:
			number, _ := s.(syscall.Signal)
			cancel(&Interrupted{number})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(got)
		cancel(context.Canceled)
		<-ended
	}
}

// InterruptCode is the exit code of a command that a signal has ended, as shells have it: 128 and the signal's number; 130 for an interrupt. A context that ended otherwise counts as interrupted.
func InterruptCode(ctx context.Context) int {
	var by *Interrupted
	if errors.As(context.Cause(ctx), &by) && by.Signal > 0 {
		return 128 + int(by.Signal)
	}
	return 128 + int(syscall.SIGINT)
}
