package config

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// maxFile bounds the size of a config file, in bytes.
const maxFile = 1 << 20

// entry is one scalar of a config file.
type entry struct {
	path string
	text string
	line int
}

// readFile returns the settings of a config file. Errors name the file and the line.
func readFile(path string) ([]entry, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("config file: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read config file %s: %w", path, err)
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("config file %s is larger than 1 MiB: %w", path, block.ErrInvalid)
	}
	entries, err := parse(text)
	if err != nil {
		return nil, fmt.Errorf("config file %s: %w", path, err)
	}
	return entries, nil
}

func parse(text []byte) ([]entry, error) {
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", firstLine(yaml.FormatError(err, false, false)), block.ErrInvalid)
	}
	if len(file.Docs) > 1 {
		return nil, fmt.Errorf("more than one document: %w", block.ErrInvalid)
	}
	if len(file.Docs) == 0 || file.Docs[0].Body == nil {
		return nil, nil
	}
	return flatten(nil, "", file.Docs[0].Body)
}

// flatten turns nested mappings into paths with dots.
func flatten(into []entry, prefix string, node ast.Node) ([]entry, error) {
	line := 0
	if token := node.GetToken(); token != nil {
		line = token.Position.Line
	}
	switch node := node.(type) {
	case *ast.MappingNode:
		for _, value := range node.Values {
			var err error
			if into, err = flatten(into, prefix, value); err != nil {
				return nil, err
			}
		}
		return into, nil
	case *ast.MappingValueNode:
		path := node.Key.GetToken().Value
		if prefix != "" {
			path = prefix + "." + path
		}
		return flatten(into, path, node.Value)
	case *ast.CommentGroupNode, *ast.NullNode:
		return into, nil // a key without a value leaves the default
	case *ast.StringNode:
		return append(into, entry{prefix, node.Value, line}), nil
	case *ast.LiteralNode:
		return append(into, entry{prefix, strings.TrimSpace(node.Value.Value), line}), nil
	case ast.ScalarNode:
		return append(into, entry{prefix, node.GetToken().Value, line}), nil
	}
	return nil, fmt.Errorf("line %d: %q: want a plain value: %w", line, prefix, block.ErrInvalid)
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return line
}
