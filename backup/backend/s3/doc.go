// Package s3 keeps the objects of a repository in S3-compatible object storage, through minio-go.
//
// An object is one PUT with If-None-Match: *, so the storage itself sees to it that nothing is replaced. What may be mended by another try is tried again, with growing, random
// pauses: throttling, errors of the server, lost and silent connections. A PUT whose answer was lost and which is refused the next time is compared with what is there. Objects
// are at most as long as what the caller holds in memory anyway, and nothing else is kept. Keys are those of the backend behind a prefix.
//
// In a bucket with object lock it is a backend.Locker: locks are of compliance mode and are only ever extended (lock.go). Such a bucket keeps versions: a delete removes all of an object, and what somebody has put
// over a locked one is found and removed (versions.go).
//
// The package starts no goroutine that outlives a call but those of the connections, which Close ends.
package s3
