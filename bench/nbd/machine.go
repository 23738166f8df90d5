package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// machine is where and with what was measured.
type machine struct {
	Date       string   `json:"date"`
	CPU        string   `json:"cpu"`
	CPUs       int      `json:"cpus"`
	Memory     string   `json:"memory"`
	Kernel     string   `json:"kernel"`
	System     string   `json:"system"`
	FileSystem string   `json:"fileSystem"`
	Go         string   `json:"go"`
	Versions   []string `json:"versions"`
}

func describeMachine(ctx context.Context, o options, dir string) (machine, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return machine{}, err
	}
	m := machine{
		Date: time.Now().UTC().Format("2006-01-02 15:04 UTC"), CPU: lineOf("/proc/cpuinfo", "model name\t: "), CPUs: runtime.NumCPU(), Go: runtime.Version(),
		Kernel: "Linux " + unix.ByteSliceToString(name.Release[:]), System: strings.Trim(lineOf("/etc/os-release", "PRETTY_NAME="), `"`), FileSystem: fileSystemOf(dir),
	}
	var kib uint64
	if _, err := fmt.Sscan(lineOf("/proc/meminfo", "MemTotal:"), &kib); err == nil {
		m.Memory = units.Size(kib << 10).Human()
	}
	for _, command := range append([]string{"fio", "hvd"}, o.peers...) {
		path := command
		if command == "hvd" {
			path = o.bin + "/hvd"
		}
		text, err := exec.CommandContext(ctx, path, "--version").Output()
		if err != nil {
			return m, fmt.Errorf("ask %s for its version: %w; make setup bench installs what is missing", command, err)
		}
		first, _, _ := strings.Cut(string(text), "\n")
		m.Versions = append(m.Versions, first)
	}
	return m, nil
}

// lineOf returns what follows a prefix on the first line that has it.
func lineOf(path, prefix string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if rest, found := strings.CutPrefix(line, prefix); found {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

// fileSystemOf names the file system that a folder lies on.
func fileSystemOf(dir string) string {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return ""
	}
	found, longest := "", -1
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 4 {
			continue
		}
		if at := strings.TrimSuffix(f[1], "/") + "/"; strings.HasPrefix(dir+"/", at) && len(at) >= longest {
			found, longest = f[2]+" ("+f[3]+")", len(at)
		}
	}
	return found
}

// loadAverage is that of the last minute.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "?"
	}
	first, _, _ := strings.Cut(string(text), " ")
	return first
}
