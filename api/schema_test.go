package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/vektah/gqlparser/v2"
	"github.com/vektah/gqlparser/v2/ast"
	"github.com/vektah/gqlparser/v2/validator/rules"

	"github.com/hyper-nixos/hyper-nixos/api/generated"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control"
	"github.com/hyper-nixos/hyper-nixos/control/transfer"
)

// A field that somebody forgot to protect would be open to every token.
func TestEveryOperationNeedsAScope(t *testing.T) {
	schema := generated.NewExecutableSchema(generated.Config{}).Schema()
	for _, root := range []*ast.Definition{schema.Query, schema.Mutation} {
		for _, field := range root.Fields {
			if strings.HasPrefix(field.Name, "__") {
				continue
			}
			scope := field.Directives.ForName("scope")
			if scope == nil {
				t.Errorf("%s.%s has no @scope", root.Name, field.Name)
				continue
			}
			if needs := scope.Arguments.ForName("needs").Value.Raw; root == schema.Mutation && needs == "READ" {
				t.Errorf("%s.%s changes something with scope READ", root.Name, field.Name)
			}
		}
	}
}

func TestDepth(t *testing.T) {
	schema := generated.NewExecutableSchema(generated.Config{}).Schema()
	nested := func(n int) string {
		return "{ __type(name: \"Volume\") " + strings.Repeat("{ ofType ", n-1) + "{ name } " + strings.Repeat("} ", n-1) + "}"
	}
	for depth, want := range map[int]bool{2: false, maxDepth - 1: false, maxDepth: true, 100: true} {
		query, err := gqlparser.LoadQueryWithRules(schema, nested(depth), rules.NewDefaultRules())
		if err != nil {
			t.Fatal(err)
		}
		if got := deeper(query.Operations[0].SelectionSet, maxDepth); got != want {
			t.Errorf("%d levels under the root: refused %v, want %v", depth, got, want)
		}
	}
	query, err := gqlparser.LoadQueryWithRules(schema, "{ ...a } fragment a on Query { ... on Query { volumes { name } } }", rules.NewDefaultRules())
	if err != nil {
		t.Fatal(err)
	}
	if deeper(query.Operations[0].SelectionSet, 2) || !deeper(query.Operations[0].SelectionSet, 1) {
		t.Error("fragments do not count as what is in them")
	}
}

func TestCodes(t *testing.T) {
	for want, err := range map[string]error{
		"NOT_FOUND":       block.ErrNotFound,
		"EXISTS":          block.ErrExists,
		"IN_USE":          block.ErrInUse,
		"INVALID":         block.ErrInvalid,
		"NO_SPACE":        block.ErrNoSpace,
		"CORRUPT":         &block.CorruptError{Source: "x"},
		"REFUSED":         control.ErrRefused,
		"CUT_OFF":         &transfer.RemoteError{Message: "x"},
		"CLOSED":          block.ErrClosed,
		"UNAUTHENTICATED": errUnauthenticated,
		"FORBIDDEN":       errForbidden,
		"TIMEOUT":         context.DeadlineExceeded,
		"INTERNAL":        errors.New("something else"),
	} {
		if got, status := codeOf(fmt.Errorf("do it: %w", err)); got != want || status < 400 {
			t.Errorf("%v: %s %d, want %s", err, got, status, want)
		}
	}
}
