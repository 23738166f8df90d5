// Package client speaks to hvd: GraphQL through the functions that genqlient made of operations.graphql, and streams of volume data.
package client
