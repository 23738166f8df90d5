// Package nbdtest is an NBD client for tests: raw, so that it can send what no good client would, and with extended headers, which the clients of Debian 12 do not speak.
// It shares no code with the server. Only tests import it.
//
// Conn is a connection and its handshake, Extended what comes after it, Nbdkit a server that is not ours. Everything unexpected ends the test. Numbers are those of the protocol's text
// (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md).
package nbdtest
