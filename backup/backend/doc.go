// Package backend names what a repository needs of a place that keeps its objects: a directory, an object storage, another daemon.
//
// An object has a key and bytes, is stored whole or not at all, and never changes; a second object under its key is refused. So writers need no locks: who loses a race
// learns that the object is there. What an object holds is the business of packages pack and repository, and all of it is encrypted before it comes here.
//
// A place that can keep objects from being deleted before a time is a Locker, too.
//
// The package starts no goroutine. Implementations are in sub-packages; backendtest has the suite that each of them passes.
package backend
