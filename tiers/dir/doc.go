// Package dir keeps segments in one directory of a file system:
//
//	DIR/xx/<16 hex digits of the id>.<8 of the generation>.seg
//
// where xx is the last two digits of the id, so that no folder grows without bound and neighbours in time spread over all of them.
//
// It owns the files below DIR whose names have that form, and ignores all others. A segment is created under its final name: nothing refers to it before its first sync, and what a
// crash leaves of an unsynced one is found by List and deleted by the caller, who knows which segments count. It keeps no file open by itself and starts no goroutine.
package dir
