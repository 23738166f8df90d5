// Package generated is what gqlgen makes of schema.graphql: models, and the server that calls the resolvers of package api.
// Everything but this file is overwritten by `make generate`.
package generated
