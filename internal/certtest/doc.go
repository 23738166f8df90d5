// Package certtest makes certificates for tests of TLS. Only tests import it.
package certtest
