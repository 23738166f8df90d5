package api

import (
	"context"

	"github.com/99designs/gqlgen/graphql"
	"github.com/vektah/gqlparser/v2/ast"
	"github.com/vektah/gqlparser/v2/gqlerror"
)

// Bounds of what a caller may send. The commands and the usual introspection query stay well inside.
const (
	maxBody       = 1 << 20 // bytes
	maxTokensRead = 4096    // lexical tokens of a query
	maxDepth      = 16      // nested selections
	maxComplexity = 1000    // selected fields, those of fragments counted each time
	maxQueries    = 128     // parsed queries that are remembered
)

// depthLimit refuses queries that nest too deep.
type depthLimit struct{ most int }

var (
	_ graphql.HandlerExtension        = depthLimit{}
	_ graphql.OperationContextMutator = depthLimit{}
)

// ExtensionName implements graphql.HandlerExtension.
func (depthLimit) ExtensionName() string { return "DepthLimit" }

// Validate implements graphql.HandlerExtension.
func (depthLimit) Validate(graphql.ExecutableSchema) error { return nil }

// MutateOperationContext implements graphql.OperationContextMutator. The query is valid by now, so fragments have no cycles.
func (l depthLimit) MutateOperationContext(_ context.Context, op *graphql.OperationContext) *gqlerror.Error {
	if deeper(op.Operation.SelectionSet, l.most) {
		return gqlerror.Errorf("query nests deeper than %d", l.most)
	}
	return nil
}

// deeper reports whether selections nest deeper than most. It stops there, so its own work is bounded.
func deeper(set ast.SelectionSet, most int) bool {
	if len(set) > 0 && most == 0 {
		return true
	}
	for _, selection := range set {
		switch s := selection.(type) {
		case *ast.Field:
			if deeper(s.SelectionSet, most-1) {
				return true
			}
		case *ast.InlineFragment:
			if deeper(s.SelectionSet, most) {
				return true
			}
		case *ast.FragmentSpread:
			if deeper(s.Definition.SelectionSet, most) {
				return true
			}
		}
	}
	return false
}
