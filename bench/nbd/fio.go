package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// dataArgs make fio fill each buffer anew: of each 512 bytes, 256 random ones and 256 zeroes. checkData measures what comes of it.
var dataArgs = []string{"--buffer_compress_percentage=50", "--refill_buffers"}

// fioResult is what fio measured in one run.
type fioResult struct {
	IOPS           float64 `json:"iops"`
	BytesPerSecond float64 `json:"bytesPerSecond"`
	Bytes          uint64  `json:"bytes"`
	P50            float64 `json:"p50us"` // completion latency, microseconds
	P99            float64 `json:"p99us"`
	ClientCPU      float64 `json:"clientCPU"` // of one core that fio used, percent: near 100 it measures itself
}

// fioSide is one direction of a job in fio's JSON.
type fioSide struct {
	IOBytes uint64  `json:"io_bytes"`
	BWBytes float64 `json:"bw_bytes"`
	IOPS    float64 `json:"iops"`
	Clat    struct {
		Percentile map[string]float64 `json:"percentile"`
	} `json:"clat_ns"`
}

type fioOutput struct {
	Jobs []struct {
		Name   string  `json:"jobname"`
		Error  int     `json:"error"`
		User   float64 `json:"usr_cpu"`
		System float64 `json:"sys_cpu"`
		Read   fioSide `json:"read"`
		Write  fioSide `json:"write"`
	} `json:"jobs"`
}

// parseFio reads fio's JSON and returns its jobs in order. The nbd engine may say something before it.
func parseFio(text []byte) ([]fioResult, error) {
	start := bytes.IndexByte(text, '{')
	if start < 0 {
		return nil, fmt.Errorf("no JSON from fio: %q", text[:min(len(text), 200)])
	}
	var out fioOutput
	if err := json.NewDecoder(bytes.NewReader(text[start:])).Decode(&out); err != nil {
		return nil, fmt.Errorf("read fio's JSON: %w", err)
	}
	var all []fioResult
	for _, j := range out.Jobs {
		side := j.Write
		if j.Read.IOBytes > j.Write.IOBytes {
			side = j.Read
		}
		if j.Error != 0 || side.IOBytes == 0 {
			return nil, fmt.Errorf("fio's job %s moved %d bytes, error %d", j.Name, side.IOBytes, j.Error)
		}
		all = append(all, fioResult{
			IOPS: side.IOPS, BytesPerSecond: side.BWBytes, Bytes: side.IOBytes,
			P50: side.Clat.Percentile["50.000000"] / 1000, P99: side.Clat.Percentile["99.000000"] / 1000,
			ClientCPU: j.User + j.System,
		})
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("fio's JSON has no job")
	}
	return all, nil
}

// fio runs one command line of fio, and returns its jobs.
func (b *bench) fio(ctx context.Context, args []string) ([]fioResult, error) {
	b.outputs++
	path := filepath.Join(b.dir, fmt.Sprintf("fio-%d.json", b.outputs))
	cmd := exec.CommandContext(ctx, "fio", append(args, "--output-format=json", "--output="+path)...)
	cmd.Dir = b.dir // where it leaves its state
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	said, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("fio %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(said))
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	defer os.Remove(path)
	return parseFio(text)
}

// fioArgs are the common part of a command line.
func fioArgs(uri string, seed int, args ...string) []string {
	all := []string{"--name=bench", "--ioengine=nbd", "--uri=" + uri, fmt.Sprintf("--randseed=%d", seed)}
	return append(append(all, args...), dataArgs...)
}
