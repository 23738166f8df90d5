package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
)

// startProfile begins to take a CPU profile of hvd from its control socket, for as long as the job lasts, if the options ask for one. The function that it returns waits for it.
func (b *bench) startProfile(ctx context.Context, j job, s server, pair int) func() error {
	if b.o.profile == "" || s.hvd == nil || pair == 0 {
		return func() error { return nil }
	}
	seconds := max(2, b.duration(j)-1) // of a job that is not timed, the first seconds
	path := filepath.Join(b.o.profile, fmt.Sprintf("%s-%d.pprof", j.name, pair))
	done := make(chan error, 1)
	go func() { done <- fetchProfile(ctx, filepath.Join(s.hvd.dir, "hvd.sock"), seconds, path) }()
	return func() error { return <-done }
}

func fetchProfile(ctx context.Context, socket string, seconds int, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://hvd/debug/pprof/profile?seconds=%d", seconds), nil)
	if err != nil {
		return err
	}
	reply, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return fmt.Errorf("take a profile: %w", err)
	}
	defer reply.Body.Close()
	content, err := io.ReadAll(reply.Body)
	if err != nil || reply.StatusCode != http.StatusOK {
		return fmt.Errorf("take a profile: %s: %.200s: %w", reply.Status, content, err)
	}
	return os.WriteFile(path, content, 0o644)
}
