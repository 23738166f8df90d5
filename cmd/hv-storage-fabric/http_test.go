package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// What a caller may send over the control socket is bounded, and never ends the daemon.
func TestHTTPLimits(t *testing.T) {
	d := startDaemon(t)
	unix := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(d.dir, "hvd.sock"))
	}}}
	defer unix.CloseIdleConnections()
	const graphqlType = "application/json"
	query := func(text string) string { return `{"query":"` + text + `"}` }
	for name, c := range map[string]struct {
		method, path, contentType, body string
		says                            string
	}{
		"a query":             {"POST", "/graphql", graphqlType, query("{ volumes { name } }"), `"volumes":[]`},
		"introspection":       {"POST", "/graphql", graphqlType, query("{ __schema { types { name fields { name type { name ofType { name } } } } } }"), `"__schema"`},
		"too deep":            {"POST", "/graphql", graphqlType, query("{ __type(name: \\\"Volume\\\") " + strings.Repeat("{ ofType ", 20) + "{ name } " + strings.Repeat("} ", 20) + "}"), "deeper"},
		"too complex":         {"POST", "/graphql", graphqlType, query("{ " + aliases(600) + " }"), "COMPLEXITY"},
		"too many words":      {"POST", "/graphql", graphqlType, query("{ " + strings.Repeat("volumes { name } ", 2000) + " }"), "token limit"},
		"too large":           {"POST", "/graphql", graphqlType, query("{ status { pid } } #" + strings.Repeat("x", 1<<20)), "errors"},
		"no JSON":             {"POST", "/graphql", graphqlType, "{", "errors"},
		"a form":              {"POST", "/graphql", "application/x-www-form-urlencoded", "query=%7Bvolumes%7Bname%7D%7D", "errors"},
		"unknown field":       {"POST", "/graphql", graphqlType, query("{ secrets }"), "GRAPHQL_VALIDATION_FAILED"},
		"size below zero":     {"POST", "/graphql", graphqlType, query("mutation { createVolume(input: {name: \\\"v\\\", sizeBytes: -1}) { name } }"), "errors"},
		"size beyond 64 bits": {"POST", "/graphql", graphqlType, query("mutation { createVolume(input: {name: \\\"v\\\", sizeBytes: 99999999999999999999999}) { name } }"), "errors"},
		"a query by GET":      {"GET", "/graphql?query=%7Bvolumes%7Bname%7D%7D", "", "", "Method Not Allowed"},
		"raw import":          {"PUT", "/v1/volumes/v/data", "application/octet-stream", "x", "INVALID"},
		"garbage import":      {"PUT", "/v1/volumes/v/data", "application/vnd.hyper-nixos.stream", strings.Repeat("garbage!", 100), "CORRUPT"},
		"empty import":        {"PUT", "/v1/volumes/v/data", "application/vnd.hyper-nixos.stream", "", "CUT_OFF"},
		"import of a path":    {"PUT", "/v1/volumes/..%2fv/data", "application/vnd.hyper-nixos.stream", "", "INVALID"},
		"export of nothing":   {"GET", "/v1/volumes/v/data", "", "", "NOT_FOUND"},
		"changes of nothing":  {"GET", "/v1/changes?from=v@s&to=v", "", "", "NOT_FOUND"},
		"changes to nothing":  {"GET", "/v1/changes?from=v@s", "", "", "INVALID"},
		"changes of a path":   {"GET", "/v1/changes?from=..%2fv@s&to=v", "", "", "INVALID"},
		"metrics":             {"GET", "/metrics", "", "", "hv_alarm{name=\"damage\"} 0"},
		"a hello of nobody":   {"POST", "/v1/replicas/v", "application/json", "{", "INVALID"},
		"a hello of no pair":  {"POST", "/v1/replicas/v", "application/json", `{"pair":"../x","epoch":1,"sizeBytes":4096,"create":true}`, "INVALID"},
		"a long hello":        {"POST", "/v1/replicas/v", "application/json", `{"pair":"` + strings.Repeat("a", 70<<10) + `"}`, "INVALID"},
		"a raw point":         {"PUT", "/v1/replicas/v/points/x", "application/octet-stream", "x", "INVALID"},
		"a point of nothing":  {"PUT", "/v1/replicas/v/points/" + strings.Repeat("a", 26) + "?pair=" + strings.Repeat("b", 26) + "&epoch=1&base=empty&from=0&at=2026-01-02T03:04:05Z", "application/vnd.hyper-nixos.replica", "", "NOT_FOUND"},
		"replicate nothing":   {"PUT", "/v1/replications/v", "application/json", `{"target":"hvd+unix:///v?socket=/x"}`, "NOT_FOUND"},
		"replicate to no URL": {"PUT", "/v1/replications/v", "application/json", `{"target":"file:///x"}`, "INVALID"},
		"replicate too often": {"PUT", "/v1/replications/v", "application/json", `{"target":"hvd+unix:///v?socket=/x","intervalSeconds":0.01}`, "INVALID"},
		"health":              {"GET", "/healthz", "", "", `"ok"`},
		"profiles":            {"GET", "/debug/pprof/goroutine?debug=1", "", "", "goroutine profile"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := http.NewRequestWithContext(t.Context(), c.method, "http://hvd"+c.path, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", c.contentType)
			reply, err := unix.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer reply.Body.Close()
			text, err := io.ReadAll(reply.Body)
			if err != nil || !strings.Contains(string(text), c.says) {
				t.Errorf("status %d, %v: %.300s; want %q", reply.StatusCode, err, text, c.says)
			}
		})
	}
	if list := d.must("volume", "list", "-o", "json"); list != "[]\n" {
		t.Errorf("left: %s", list)
	}
}

// aliases asks n times for the same.
func aliases(n int) string {
	var text strings.Builder
	for i := range n {
		text.WriteString("a" + strings.Repeat("b", i%7) + string(rune('a'+i%26)) + strings.Repeat("c", i/182) + ": volumes { name } ")
	}
	return text.String()
}

// The TCP door has no profiles and nothing without a token.
func TestTCPDoorOverHTTP(t *testing.T) {
	d := startDaemon(t)
	token := strings.TrimSpace(d.must("token", "create", "admin", "--scope", "admin"))
	base := "http://" + d.server.TCPAddress()
	for path, want := range map[string][2]int{ // without a token, with it
		"/healthz":         {401, 200},
		"/debug/pprof/":    {401, 404},
		"/v1/support":      {401, 200},
		"/v1/volumes/data": {401, 404},

		"/v1/changes?from=v@s&to=v": {401, 404},
	} {
		for i, auth := range []string{"", "Bearer " + token} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if auth != "" {
				r.Header.Set("Authorization", auth)
			}
			reply, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			reply.Body.Close()
			if reply.StatusCode != want[i] {
				t.Errorf("%s with %q: status %d, want %d", path, auth, reply.StatusCode, want[i])
			}
		}
	}
	http.DefaultClient.CloseIdleConnections()
}
