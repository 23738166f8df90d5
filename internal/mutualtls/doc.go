// Package mutualtls is TLS 1.3 with certificates on both sides, between programs of this system: the PEM files, configurations for who listens and for who connects, and the names in a peer's certificate.
//
// Files are read again for each connection, so a renewed certificate needs no restart. No session is resumed: it would outlive a change of the authorities. It keeps no state and starts no goroutine.
package mutualtls
