// Package tlspsktest is a client of TLS 1.3 with external pre-shared keys for tests. It shares no code with the server in tlspsk, believes nothing of what the server says without
// a check, and can be told to misbehave. Only tests import it.
package tlspsktest
