// Package unixsock opens listening unix sockets whose permissions are right from the first moment, and says who is at the other end.
package unixsock
