// Package secret keeps 32-byte secrets out of logs, derives keys from them, wraps them for age recipients, and reads the files that hold the identities which unwrap them.
//
// Keys are derived with HKDF-SHA256 (RFC 5869). Data is sealed with AES-256-GCM (NIST SP 800-38D). Wrapping is that of filippo.io/age: X25519, or its post-quantum hybrid.
//
// It holds no state, starts no goroutine, and writes nothing. Of a secret no verb of package fmt prints anything.
package secret
