package main

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

func newToken(a *app) *cobra.Command {
	c := group(&cobra.Command{Use: "token", Short: "Make, list and revoke bearer tokens of the control API over TCP"})
	c.AddCommand(newTokenCreate(a), newTokenList(a), newTokenRevoke(a))
	return c
}

// tokenView is a token with -o json.
type tokenView struct {
	Name      string     `json:"name"`
	Scope     string     `json:"scope"`
	CreatedAt time.Time  `json:"createdAt"`
	ExpiresAt *time.Time `json:"expiresAt"` // null: never
	Expired   bool       `json:"expired"`
}

// createdTokenView is a new token with -o json.
type createdTokenView struct {
	Name      string     `json:"name"`
	Scope     string     `json:"scope"`
	ExpiresAt *time.Time `json:"expiresAt"` // null: never
	Token     string     `json:"token"`
}

func newTokenCreate(a *app) *cobra.Command {
	var scope, expires string
	c := &cobra.Command{
		Use:   "create NAME --scope read|operate|admin",
		Short: "Make a token and print its secret, this once",
		Long: `Make a token and print its secret, this once: hvd keeps only a hash. While a token exists that has not expired, the control API
listens on loopback TCP too.

read: look. operate: change volumes, snapshots, attachments and data. admin: everything, tokens included.`,
		Example: "  hv-storage-fabric token create ci --scope operate --expires 90d -o json | jq -r .token",
		Args:    exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			lifetime, err := parseSpan("--expires", expires)
			if err != nil {
				return err
			}
			granted := client.Scope(strings.ToUpper(scope))
			if scope != strings.ToLower(scope) || granted != client.ScopeRead && granted != client.ScopeOperate && granted != client.ScopeAdmin {
				return usagef("--scope %q: use read, operate or admin", scope)
			}
			api, err := a.connect()
			if err != nil {
				return err
			}
			reply, err := client.CreateToken(c.Context(), api, client.CreateTokenInput{Name: args[0], Scope: granted, LifetimeSeconds: lifetime})
			if err != nil {
				return err
			}
			made := reply.CreateToken
			if made.Warning != "" {
				a.note("warning: %s", made.Warning)
			}
			return a.show(createdTokenView{made.Name, scope, made.ExpiresAt, made.Token}, func() { a.say("%s", made.Token) })
		},
	}
	c.Flags().StringVar(&scope, "scope", "", "what the token may do: read, operate or admin (required)")
	c.Flags().StringVar(&expires, "expires", "", "lifetime, such as 90d or 12h (default: it does not expire)")
	_ = c.RegisterFlagCompletionFunc("scope", cobra.FixedCompletions([]string{"read", "operate", "admin"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// parseSpan reads the value of a flag, and returns whole seconds; 0 of nothing.
func parseSpan(flag, text string) (seconds uint64, err error) {
	if text == "" {
		return 0, nil
	}
	span, err := units.ParseSpan(text)
	if err != nil {
		return 0, usagef("%s %s", flag, strings.TrimSuffix(err.Error(), ": "+block.ErrInvalid.Error()))
	}
	return uint64(span), nil
}

func newTokenList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Example: "  hv-storage-fabric token list",
		Short:   "List the tokens, without their secrets",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := a.connect()
			if err != nil {
				return err
			}
			reply, err := client.ListTokens(c.Context(), api)
			if err != nil {
				return err
			}
			views := make([]tokenView, 0, len(reply.Tokens))
			rows := make([][]string, 0, len(reply.Tokens))
			for _, t := range reply.Tokens {
				view := tokenView{t.Name, strings.ToLower(string(t.Scope)), t.CreatedAt, t.ExpiresAt, t.Expired}
				views = append(views, view)
				rows = append(rows, []string{view.Name, view.Scope, view.CreatedAt.Local().Format(time.DateTime), expiryText(view)})
			}
			return a.show(views, func() { a.table([]string{"NAME", "SCOPE", "CREATED", "EXPIRES"}, rows) })
		},
	}
}

func expiryText(t tokenView) string {
	switch {
	case t.ExpiresAt == nil:
		return "never"
	case t.Expired:
		return "expired"
	}
	return t.ExpiresAt.Local().Format(time.DateTime)
}

func newTokenRevoke(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "revoke NAME",
		Example: "  hv-storage-fabric token revoke ci",
		Short:   "End a token at once",
		Args:    exactly("NAME"),

		ValidArgsFunction: a.completeTokens,
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.connect()
			if err != nil {
				return err
			}
			if _, err := client.RevokeToken(c.Context(), api, args[0]); err != nil {
				return err
			}
			return a.show(map[string]any{"name": args[0], "revoked": true}, func() { a.say("revoked token %s", args[0]) })
		},
	}
}
