package lint

import (
	"bufio"
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// root is the module's folder, as seen from this package's.
const root = "../.."

const modulePath = "github.com/hyper-nixos/hyper-nixos"

// file is one text file of the module.
type file struct {
	path      string // with slashes, from the root
	body      []byte
	generated bool
}

// goFile reports whether the rules of hand-written Go apply.
func (f file) goFile() bool { return strings.HasSuffix(f.path, ".go") && !f.generated }

// lines counts as wc does.
func (f file) lines() int { return bytes.Count(f.body, []byte("\n")) }

var generatedLine = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

// readFiles returns all text files, without what is hidden (but for .ci), built, or test data.
func readFiles(t *testing.T) []file {
	t.Helper()
	var all []file
	err := fs.WalkDir(os.DirFS(root), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name == ".git" && !d.IsDir() { // of a work tree beside the repository
			return nil
		}
		if d.IsDir() {
			hidden := strings.HasPrefix(d.Name(), ".") && name != "." && name != ".ci"
			if hidden || name == "bin" || d.Name() == "testdata" {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		body, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return err
		}
		if bytes.IndexByte(body, 0) < 0 {
			all = append(all, file{path: name, body: body, generated: generatedLine.Match(body)})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 100 {
		t.Fatalf("found only %d files under %s", len(all), root)
	}
	return all
}

// pkg is one Go package, by what its files that are no tests say.
type pkg struct {
	name     string            // of the package clause
	docFile  string            // the file with the package comment
	imports  map[string]string // package of this module, by path from the root, and a file that imports it
	testOnly bool
}

// readPackages returns the module's packages by their path from the root.
func readPackages(t *testing.T) map[string]*pkg {
	t.Helper()
	packages := map[string]*pkg{}
	for _, f := range readFiles(t) {
		if !strings.HasSuffix(f.path, ".go") {
			continue
		}
		dir := path.Dir(f.path)
		if packages[dir] == nil {
			packages[dir] = &pkg{imports: map[string]string{}, testOnly: true}
		}
		if strings.HasSuffix(f.path, "_test.go") {
			continue
		}
		tree, err := parser.ParseFile(token.NewFileSet(), f.path, f.body, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		packages[dir].add(f.path, tree)
	}
	return packages
}

func (p *pkg) add(filePath string, tree *ast.File) {
	p.testOnly, p.name = false, tree.Name.Name
	if tree.Doc != nil {
		p.docFile = filePath
	}
	for _, spec := range tree.Imports {
		imported, _ := strconv.Unquote(spec.Path.Value) // the parser took it for a string
		if inside, ok := strings.CutPrefix(imported, modulePath+"/"); ok {
			p.imports[inside] = filePath
		}
	}
}

// scanLines calls visit with each line and its number.
func scanLines(body []byte, visit func(number int, line string)) {
	scanner := bufio.NewScanner(bytes.NewReader(body))
	scanner.Buffer(nil, len(body)+1)
	for number := 1; scanner.Scan(); number++ {
		visit(number, scanner.Text())
	}
}
