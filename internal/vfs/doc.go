// Package vfs adds to Pebble's file system what a store of raw bytes needs: gathered writes, reads that refuse to wait, allocation that
// extends a file, and holes.
//
// Log, segments and Pebble share one FS, so that a test can cut the power of all of them at one moment: open the store on NewCrashableMem,
// wrap it in pebble's vfs/errorfs to count or fail operations, and go on with CrashClone.
//
// The functions use system calls of Linux when a File has a descriptor (File.Fd), and the methods of File otherwise. So errorfs sees data
// written through WriteVec only when it wraps a file system in memory. Nothing here keeps state or starts a goroutine. Errors are those of
// the file system, wrapped with block.ErrNoSpace or block.ErrWouldBlock where that is what they mean.
package vfs
