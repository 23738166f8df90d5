package api

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/99designs/gqlgen/graphql/handler"
	"github.com/99designs/gqlgen/graphql/handler/extension"
	"github.com/99designs/gqlgen/graphql/handler/lru"
	"github.com/99designs/gqlgen/graphql/handler/transport"
	"github.com/vektah/gqlparser/v2/ast"

	"github.com/hyper-nixos/hyper-nixos/api/generated"
	"github.com/hyper-nixos/hyper-nixos/control"
)

// requestTime bounds a GraphQL request: reading it, answering it, and writing the answer.
const requestTime = time.Minute

// errPanic is what a caller learns of a bug; the log has the rest.
var errPanic = errors.New("internal error; see the log of hvd")

// newGraphQL returns the handler of POST /graphql. Who calls is in the request's context.
func newGraphQL(c *control.Control, d *door, log *slog.Logger) http.Handler {
	schema := generated.NewExecutableSchema(generated.Config{
		Resolvers:  &resolver{control: c, door: d},
		Directives: generated.DirectiveRoot{Scope: requireScope},
	})
	server := handler.New(schema)
	server.AddTransport(transport.POST{})
	server.SetQueryCache(lru.New[*ast.QueryDocument](maxQueries))
	server.SetParserTokenLimit(maxTokensRead)
	server.Use(extension.Introspection{})
	server.Use(depthLimit{maxDepth})
	server.Use(extension.FixedComplexityLimit(maxComplexity))
	server.SetErrorPresenter(present(log))
	server.SetRecoverFunc(func(_ context.Context, reason any) error {
		log.Error("panic in a request", "reason", reason, "stack", string(debug.Stack()))
		return errPanic
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		deadline := time.Now().Add(requestTime)
		connection := http.NewResponseController(w)
		if err := errors.Join(connection.SetReadDeadline(deadline), connection.SetWriteDeadline(deadline)); err != nil {
			fail(w, err)
			return
		}
		ctx, cancel := context.WithDeadline(r.Context(), deadline)
		defer cancel()
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		server.ServeHTTP(w, r.WithContext(ctx))
	})
}
