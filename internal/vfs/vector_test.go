package vfs

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

func vectorOf(bufs [][]byte) []unix.Iovec {
	var iov []unix.Iovec
	for _, b := range bufs {
		v := unix.Iovec{Base: &b[0]}
		v.SetLen(len(b))
		iov = append(iov, v)
	}
	return iov
}

func bytesOf(v unix.Iovec) []byte { return unsafe.Slice(v.Base, v.Len) }
