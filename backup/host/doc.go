// Package host keeps backup repositories for other machines: a folder with a directory for each, served over HTTP to clients that a certificate has let in. docs/format/repository-host.md has the requests; backup/backend/remote is a client.
//
// It decides by the client's names, the kind of an object (package access) and the object's age, and never by what an object holds, which is sealed. It listens nowhere itself, and trusts that whoever serves it has verified certificates.
//
// Bounded are: requests at once, in all and of a client; the length of objects and lists; how long a client may be silent, and how slow it may be. Memory: 256 KiB for each request, and a MiB more while it stores an object of a MiB or more, which is written around the page cache. It starts no goroutine and holds no lock while it waits for a
// client. Lock order: Host.deleting, the gate of a repository, ledger.mu; Host.mu by itself. Where quotas bound a repository it is counted once after the start, when somebody first needs that, and again before something is refused, at most every ten minutes: a look at each file, while which no object gets its name.
package host
