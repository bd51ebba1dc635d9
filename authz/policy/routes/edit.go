package routes

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// indent is how much deeper a level stands where the file does not show it.
const indent = 2

// insert writes routes of one method and number of segments into a catalogue's text.
func insert(raw []byte, group []Route) ([]byte, error) {
	root, err := rootOf(raw)
	if err != nil {
		return nil, err
	}
	at := &place{lines: strings.SplitAfter(string(raw), "\n"), end: "\n"}
	if last := len(at.lines) - 1; at.lines[last] == "" {
		at.lines = at.lines[:last]
	} else if len(at.lines) > 0 {
		at.lines[last] += "\n"
	}
	if strings.Contains(string(raw), "\r\n") {
		at.end = "\r\n"
	}
	method, size := group[0].Method, strconv.Itoa(group[0].size())

	path := []string{"routes", method, strconv.Quote(size)}
	node, depth := root, 0
	at.next = len(at.lines) + 1 // behind everything
	for i, name := range []string{"routes", method, size} {
		key, value := child(node, name)
		if key == nil {
			break
		}
		if next := sibling(node, key); next != nil {
			at.next = next.Line
		}
		at.column, node, depth = key.Column-1, value, i+1
		if !block(value) {
			return nil, fmt.Errorf("line %d: %w", key.Line, errForm)
		}
	}
	if depth == 0 {
		return nil, errors.New("it has no routes, where they could be entered")
	}
	column := at.column + indent
	if len(node.Content) > 0 {
		column = node.Content[0].Column - 1
	}
	at.own = column
	if depth == 2 { // numbers of segments stand in their order
		each(node, func(key, _ *yaml.Node) {
			if n, err := strconv.Atoi(key.Value); err == nil && n > group[0].size() && key.Line < at.next {
				at.next, at.own = key.Line, column+1
			}
		})
	}
	var text strings.Builder
	for ; depth < len(path); depth++ {
		fmt.Fprintf(&text, "%*s%s:%s", column, "", path[depth], at.end)
		column += indent
	}
	for _, r := range group {
		fmt.Fprintf(&text, "%*s%s: {scopes: [%s]}%s", column, "", r.Template, list(r.Scopes), at.end)
	}
	return []byte(at.insert(text.String())), nil
}

// place is where text is inserted.
type place struct {
	lines []string
	end   string
	// next is the line of what comes behind, counted from 1; column is of what it goes into.
	next, column int
	// own is from which column on a comment above next belongs to what is before it.
	own int
}

// insert puts text before next and before the comments and blank lines that belong to that.
func (p *place) insert(text string) string {
	i := p.next - 1
	for i > 0 {
		line := strings.TrimRight(p.lines[i-1], "\r\n")
		inner := strings.TrimLeft(line, " ")
		if inner != "" && (inner[0] != '#' || len(line)-len(inner) >= p.own) {
			break
		}
		i--
	}
	return strings.Join(p.lines[:i], "") + text + strings.Join(p.lines[i:], "")
}

// rootOf is the one mapping of a file.
func rootOf(raw []byte) (*yaml.Node, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	var document, more yaml.Node
	if err := decoder.Decode(&document); err != nil {
		return nil, err
	}
	if err := decoder.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, errors.New("the file has more than one document")
	}
	if len(document.Content) != 1 || document.Content[0].Kind != yaml.MappingNode || document.Content[0].Style&yaml.FlowStyle != 0 {
		return nil, errForm
	}
	return document.Content[0], nil
}

// block tells that a mapping stands a line each, or is not there yet.
func block(node *yaml.Node) bool {
	switch node.Kind {
	case yaml.MappingNode:
		return node.Style&yaml.FlowStyle == 0 && node.Anchor == ""
	case yaml.ScalarNode:
		return node.Tag == "!!null" && node.Value == ""
	case yaml.DocumentNode, yaml.SequenceNode, yaml.AliasNode:
	}
	return false
}

// child finds a mapping's entry; nil for none.
func child(node *yaml.Node, name string) (key, value *yaml.Node) {
	each(node, func(k, v *yaml.Node) {
		if k.Value == name && key == nil {
			key, value = k, v
		}
	})
	return key, value
}

// sibling is the key behind another one; nil for the last.
func sibling(node, key *yaml.Node) *yaml.Node {
	for i := 0; i+2 < len(node.Content); i += 2 {
		if node.Content[i] == key {
			return node.Content[i+2]
		}
	}
	return nil
}

// each goes through a mapping's entries.
func each(node *yaml.Node, visit func(key, value *yaml.Node)) {
	if node == nil || node.Kind != yaml.MappingNode {
		return
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		visit(node.Content[i], node.Content[i+1])
	}
}
