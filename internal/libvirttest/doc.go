// Package libvirttest runs a libvirtd of its own for a test: in session mode, with all of its folders below a temporary one, so that it never meets the machine's. Where the test is root, it and its guests run as nobody, since a libvirtd of root is the system's.
package libvirttest
