package check

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestImports keeps the second reader apart from the first: whatever the two share can be wrong in both.
func TestImports(t *testing.T) {
	allowed := []string{
		"github.com/hyper-nixos/hyper-nixos/block", "github.com/cockroachdb/pebble/v2", "github.com/cockroachdb/pebble/v2/vfs", "github.com/zeebo/blake3",
		"github.com/klauspost/compress/s2", "github.com/klauspost/compress/zstd",
	}
	names, err := filepath.Glob("*.go")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			path, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if domain, _, _ := strings.Cut(path, "/"); strings.Contains(domain, ".") && !slices.Contains(allowed, path) {
				t.Errorf("%s imports %s", name, path)
			}
		}
	}
}
