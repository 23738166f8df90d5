// Package api is the door of hvd: GraphQL (schema.graphql), the streams of volume data, health and profiles, over a unix socket and, while
// a usable token exists, over loopback TCP.
//
// It decides who may call what, bounds what a caller may send, and translates errors into codes. What is done is done by package control;
// a resolver is one call.
//
// On the unix socket the kernel says who calls: root and the daemon's own user may do everything, others nothing. On TCP a bearer token
// says it, and the Host and Origin headers must be those of this door, so that a web page in the user's browser cannot speak to it.
//
// generated/ and client/generated.go come from schema.graphql and client/operations.graphql: `make generate`.
//
// Goroutines: one per listener, and those of net/http. Close ends all of them.
package api

//go:generate go run github.com/99designs/gqlgen generate
//go:generate go run github.com/Khan/genqlient client/genqlient.yaml
