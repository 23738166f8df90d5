package trial

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// FindProgram returns where QEMU is on this machine. block.ErrNotFound with what to install if it is not.
func FindProgram() (string, error) {
	for _, name := range []string{"qemu-system-x86_64", "qemu-kvm", "/usr/libexec/qemu-kvm"} { // the last two are Red Hat's
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("qemu-system-x86_64: %w; install it (Debian: apt install qemu-system-x86)", block.ErrNotFound)
}

// FindUEFI returns a file with UEFI firmware for QEMU that needs no variables to be kept. block.ErrNotFound with what to install if there is none.
func FindUEFI() (string, error) {
	for _, path := range []string{
		"/usr/share/ovmf/OVMF.fd", "/usr/share/OVMF/OVMF.fd", // Debian, Ubuntu
		"/usr/share/edk2/x64/OVMF.4m.fd", "/usr/share/qemu/ovmf-x86_64.bin", // Arch, openSUSE
	} {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("UEFI firmware for QEMU: %w; install it (Debian: apt install ovmf), or say where it is with --firmware", block.ErrNotFound)
}

// kvmDevice is what KVM is used through.
const kvmDevice = "/dev/kvm"

// Unprivileged returns who QEMU should run as: nobody, in the group that may use KVM, if this process is root; else nil, which is who runs this process.
func Unprivileged() *syscall.Credential {
	if os.Geteuid() != 0 {
		return nil
	}
	c := &syscall.Credential{Uid: 65534, Gid: 65534}
	if who, err := user.Lookup("nobody"); err == nil {
		uid, errUID := strconv.ParseUint(who.Uid, 10, 32)
		gid, errGID := strconv.ParseUint(who.Gid, 10, 32)
		if errUID == nil && errGID == nil && uid != 0 {
			c.Uid, c.Gid = uint32(uid), uint32(gid)
		}
	}
	var stat unix.Stat_t
	if unix.Stat(kvmDevice, &stat) == nil && stat.Mode&0o060 == 0o060 && stat.Gid != 0 {
		c.Groups = []uint32{stat.Gid}
	}
	return c
}

// As returns the user of that name, to run QEMU as.
func As(name string) (*syscall.Credential, error) {
	who, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("user %s: %w", name, block.ErrNotFound)
	}
	uid, err := strconv.ParseUint(who.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(who.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	c := &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	groups, err := who.GroupIds()
	for _, group := range groups {
		if id, err := strconv.ParseUint(group, 10, 32); err == nil {
			c.Groups = append(c.Groups, uint32(id))
		}
	}
	return c, err
}

// mayUseKVM reports whether a user, nil for that of this process, may open KVM's device.
func mayUseKVM(as *syscall.Credential) bool {
	if as == nil {
		return unix.Access(kvmDevice, unix.R_OK|unix.W_OK) == nil
	}
	var stat unix.Stat_t
	if unix.Stat(kvmDevice, &stat) != nil {
		return false
	}
	switch {
	case as.Uid == 0:
		return true
	case as.Uid == stat.Uid:
		return stat.Mode&0o600 == 0o600
	case as.Gid == stat.Gid || slices.Contains(as.Groups, stat.Gid):
		return stat.Mode&0o060 == 0o060
	}
	return stat.Mode&0o006 == 0o006
}
