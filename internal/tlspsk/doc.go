// Package tlspsk is the server's half of TLS 1.3 with external pre-shared keys (RFC 8446), which crypto/tls has not, and of nothing else of TLS.
//
// It speaks one way of the protocol: version 1.3, key exchange psk_dhe_ke over X25519 or P-256, cipher suite TLS_AES_128_GCM_SHA256, SHA-256 for the
// keys as RFC 8446, 4.2.11 wants it for keys without a hash of their own. There are no certificates, no resumption and no tickets, no early data, no
// client's half, and no older version: who offers less than the above gets the protocol's alert. The primitives are those of the standard library.
//
//	client                                        server
//	ClientHello, identity, binder   ────────────> ReadHello, Hello.Accept
//	                                <──────────── HelloRetryRequest, only if no share of a group we have was sent
//	ClientHello again               ────────────>
//	                                              the binder is checked; nothing is computed for who cannot make it
//	                                <──────────── ServerHello, {EncryptedExtensions, Finished}
//	{Finished}                      ────────────> checked; Conn is ready
//	[data, KeyUpdate, close_notify] <───────────> Conn.Read, Conn.Write
//
// # What a stranger learns
//
// A wrong key and an unknown identity take the same way: for an identity that is not known a secret is made up, which no binder fits, and both end with the
// alert decrypt_error. Whoever offers a key is held to it: a [Hello] that does not offer one can be handed to crypto/tls (Hello.Unread), one that does cannot come in
// by a certificate instead.
//
// # What a stranger can make it hold
//
// One ClientHello of 16 KiB. Deadlines are the caller's: they are those of the connection below.
//
// # Locks
//
// Conn.in is held over a Read, Conn.out over a Write. The reader never waits for the writer: a KeyUpdate that the peer asks for is left for the next Write, and an
// alert is not sent while a Write is under way.
package tlspsk
