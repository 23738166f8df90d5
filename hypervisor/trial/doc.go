// Package trial boots disks in a machine of QEMU that can reach nothing, and tells whether the guest on them answers: by what its serial console says, or by its guest agent.
//
// The disks are connections to NBD servers, handed over as open files; what the guest writes goes into a scratch file without a name, which QEMU makes, and nowhere else. There is no network, QEMU's own sandbox is on, and
// where this process is root, QEMU runs as somebody who owns nothing. What the guest says is hostile: it is bounded, stripped of what steers terminals, and only compared.
//
// Run returns when QEMU has ended and everything of it is gone, whatever happens meanwhile; if this process is killed, the kernel kills QEMU, too. Its goroutines: one that starts QEMU and waits for it, on a thread of its own, one that reads the console,
// one that talks to the agent. All have ended when Run returns.
package trial
