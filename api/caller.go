package api

import (
	"context"
	"fmt"

	"github.com/99designs/gqlgen/graphql"

	"github.com/hyper-nixos/hyper-nixos/control"
)

// caller is who sent a request, as the door found out.
type caller struct {
	scope control.Scope
	name  string // of the token, or what the kernel says
}

type callerKey struct{}

func withCaller(ctx context.Context, c caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// allow returns errForbidden unless the caller of ctx has at least that scope. Without a caller nothing is allowed.
func allow(ctx context.Context, needs control.Scope) error {
	c, _ := ctx.Value(callerKey{}).(caller)
	if c.scope < needs || needs == control.ScopeNone {
		return fmt.Errorf("needs scope %v, and %s has %v: %w", needs, c.name, c.scope, errForbidden)
	}
	return nil
}

// requireScope is the @scope directive.
func requireScope(ctx context.Context, _ any, next graphql.Resolver, needs control.Scope) (any, error) {
	if err := allow(ctx, needs); err != nil {
		return nil, err
	}
	return next(ctx)
}
