// Package seal has the keys of a repository and what they do: it seals what writers put in, and opens it for those who may read.
//
// A repository has three secrets. Those who write know two: the domain key, which makes the ids of chunks, and the index key, which seals what lists ids and places, so that
// a writer finds out what is there already. Data and manifests are sealed with the key of a session, random for each run of a writer, which is wrapped by age for the
// repository's own recipient (X25519 with ML-KEM-768) and put into each object: only owners have the identity that unwraps it. So who steals the keys of a writer can
// append, and see ids and sizes, and test whether data that it knows is there; it can read nothing. That it cannot delete either is for the backend to see to.
//
// The secrets lie in the repository, sealed in key slots: under a passphrase (argon2id, RFC 9106, then XChaCha20-Poly1305) or for age recipients. Objects are sealed with
// AES-256-GCM under a key of their own, HKDF-SHA256 (RFC 5869) of the session's or the index key with the object's random salt, so numbers serve as nonces.
//
// The package does no I/O, starts no goroutine and holds no lock. No secret prints itself.
package seal
