package trial

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// probeTime is how long KVM may take from QEMU's start to a loader's first word. It needs a third of a second.
const probeTime = 3 * time.Second

// probeWord is what the loader of a probe says.
const probeWord = "KVM-RUNS"

// BestAccel returns KVM if a machine really runs under it, for that user, nil for this process; else TCG. That the device can be opened does not say so: where this host is a guest itself, KVM may crawl, or hang. It boots a loader that says one word, which
// takes a third of a second, or three where KVM does not work. program is QEMU.
func BestAccel(ctx context.Context, program string, as *syscall.Credential) (Accel, error) {
	if !mayUseKVM(as) {
		return TCG, nil
	}
	disk, err := probeDisk()
	if err != nil {
		return "", err
	}
	_, err = Run(ctx, Options{
		Disks: []*os.File{disk}, plain: true, Expect: regexp.MustCompile(probeWord), Timeout: probeTime, MemoryBytes: 64 << 20, Accel: KVM, Program: program, User: as,
	})
	switch {
	case err == nil:
		return KVM, nil
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	}
	return TCG, nil
}

// probeDisk returns a disk in memory, with a loader on it that says the word.
func probeDisk() (*os.File, error) {
	fd, err := unix.MemfdCreate("probe", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "probe")
	defer f.Close()
	if _, err := f.Write(sector("\r\n"+probeWord+"\r\n", halt...)); err != nil {
		return nil, fmt.Errorf("memory for a disk: %w", err)
	}
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", fd)) // QEMU takes it for reading only if it is open for that alone
}

// halt is the end of a loader: hlt, and jump back to it.
var halt = []byte{0xf4, 0xeb, 0xfd}

// sector returns a disk with a loader that writes text, of at most 253 bytes, to the first serial port and then does what the last instructions say.
func sector(text string, then ...byte) []byte {
	code := []byte{
		0xfa,       // cli
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0xbe, 0x00, 0x7d, // mov si, 7d00h: the text
		0xba, 0xf8, 0x03, // mov dx, 3f8h: the port
		0xac,       // next: lodsb
		0x84, 0xc0, // test al, al
		0x74, 0x03, // jz then
		0xee,       // out dx, al
		0xeb, 0xf8, // jmp next
	}
	disk := make([]byte, 1<<20)
	copy(disk, append(code, then...))
	copy(disk[256:509], text)
	disk[510], disk[511] = 0x55, 0xaa
	return disk
}
