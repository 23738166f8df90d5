package guest

import (
	"fmt"
	"io"
)

// File types of a cpio entry, the S_IFMT bits of a mode.
const (
	cpioDir     = 0o040000
	cpioFile    = 0o100000
	cpioLink    = 0o120000
	cpioCharDev = 0o020000

	cpioTrailer   = "TRAILER!!!"
	cpioAlignment = 4 // bytes; header with name, and body, are each padded to it
)

// cpioWriter writes the "newc" archive that the Linux kernel unpacks as its initramfs
// (Documentation/driver-api/early-userspace/buffer-format.rst). All entries belong to root and have time 0, so equal input
// gives equal bytes. A parent folder must be added before what is in it. The first error sticks and Close returns it.
type cpioWriter struct {
	w     io.Writer
	inode int
	err   error
}

func newCPIOWriter(w io.Writer) *cpioWriter { return &cpioWriter{w: w} }

// dir adds a folder with mode 0755.
func (c *cpioWriter) dir(name string) { c.entry(name, cpioDir|0o755, 0, 0, nil) }

// file adds a regular file; perm holds permission bits only.
func (c *cpioWriter) file(name string, perm int, body []byte) {
	c.entry(name, cpioFile|perm, 0, 0, body)
}

// link adds a symbolic link to target.
func (c *cpioWriter) link(name, target string) { c.entry(name, cpioLink|0o777, 0, 0, []byte(target)) }

// charDev adds a character device node with mode 0600.
func (c *cpioWriter) charDev(name string, major, minor int) {
	c.entry(name, cpioCharDev|0o600, major, minor, nil)
}

// Close ends the archive. It does not close the underlying writer.
func (c *cpioWriter) Close() error {
	c.entry(cpioTrailer, 0, 0, 0, nil)
	return c.err
}

func (c *cpioWriter) entry(name string, mode, major, minor int, body []byte) {
	c.inode++
	// Fields: magic, inode, mode, uid, gid, links, mtime, size, device (2), rdevice (2), name size with its NUL, check.
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		c.inode, mode, 0, 0, 1, 0, len(body), 0, 0, major, minor, len(name)+1, 0)
	c.padded([]byte(header + name + "\x00"))
	c.padded(body)
}

// padded writes data and zeroes up to the alignment. Every part starts aligned, so its own length decides.
func (c *cpioWriter) padded(data []byte) {
	for _, part := range [][]byte{data, make([]byte, -len(data)&(cpioAlignment-1))} {
		if c.err == nil {
			_, c.err = c.w.Write(part)
		}
	}
}
