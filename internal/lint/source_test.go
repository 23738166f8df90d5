package lint

import (
	"bytes"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Lengths above which a file or function holds more than one idea.
const (
	maxFileLines     = 600
	maxFunctionLines = 120
)

func TestFormatted(t *testing.T) {
	for _, f := range readFiles(t) {
		if !f.goFile() {
			continue
		}
		formatted, err := format.Source(f.body)
		if err != nil {
			t.Errorf("%s: %v", f.path, err)
		} else if !bytes.Equal(formatted, f.body) {
			t.Errorf("%s is not formatted: run make fmt", f.path)
		}
	}
}

func TestFileLength(t *testing.T) {
	for _, f := range readFiles(t) {
		if f.goFile() && f.lines() > maxFileLines {
			t.Errorf("%s has %d lines, more than %d: it holds more than one idea", f.path, f.lines(), maxFileLines)
		}
	}
}

// TestFunctions looks at the length of functions, and for init, which makes an import do something.
func TestFunctions(t *testing.T) {
	for _, f := range readFiles(t) {
		if !f.goFile() {
			continue
		}
		files := token.NewFileSet()
		tree, err := parser.ParseFile(files, f.path, f.body, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, declaration := range tree.Decls {
			function, ok := declaration.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if lines := files.Position(function.End()).Line - files.Position(function.Pos()).Line + 1; lines > maxFunctionLines {
				t.Errorf("%s: function %s has %d lines, more than %d", f.path, function.Name.Name, lines, maxFunctionLines)
			}
			if function.Name.Name == "init" && function.Recv == nil {
				t.Errorf("%s: func init: whoever needs something sets it up where it is seen", f.path)
			}
		}
	}
}

// TestPackageDoc wants to be told what each package is, in doc.go, or in main.go of a program.
func TestPackageDoc(t *testing.T) {
	vague := []string{"util", "utils", "common", "helpers", "types", "manager", "misc"}
	for name, p := range readPackages(t) {
		if slices.Contains(vague, path.Base(name)) {
			t.Errorf("package %s: a name that says nothing", name)
		}
		want := "doc.go"
		if p.name == "main" {
			want = "main.go"
		}
		if !p.testOnly && path.Base(p.docFile) != want {
			t.Errorf("package %s: its package comment is in %q, want it in %s", name, p.docFile, want)
		}
	}
}

// leftovers are things that were meant to go before a change was done. They are written so that this file has none.
var leftovers = map[string]*regexp.Regexp{
	"a mark of unfinished work": regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X|HA` + `CK)\b`),
	"a path of one machine":     regexp.MustCompile(`(^|[\s"'=:(])/(home|root|Users|work|workspace|builds)/[A-Za-z0-9_.]`),
	"a conflict mark":           regexp.MustCompile(`^(<{7}|>{7}) `),
}

func TestNoLeftovers(t *testing.T) {
	for _, f := range readFiles(t) {
		if f.path == "go.sum" {
			continue
		}
		scanLines(f.body, func(number int, line string) {
			for what, pattern := range leftovers {
				if pattern.MatchString(line) {
					t.Errorf("%s:%d: %s: %s", f.path, number, what, strings.TrimSpace(line))
				}
			}
		})
	}
}
