package routes

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"go.yaml.in/yaml/v3"
)

// methods are those of a path, as OpenAPI writes them.
var methods = [...]string{"get", "put", "post", "delete", "options", "head", "patch", "trace"} //nolint:gochecknoglobals // never changed

// rootOnce is the top of a document as it is written. What the library would read only a part of
// is refused: a name that is twice in an object of JSON, of which it takes the last, and a second
// document. A name twice in YAML it refuses itself.
func rootOnce(raw []byte) (*yaml.Node, error) {
	var root yaml.Node
	if !json.Valid(raw) {
		decoder := yaml.NewDecoder(bytes.NewReader(raw))
		if err := decoder.Decode(&root); err != nil {
			return nil, fmt.Errorf("it cannot be read: %w", err)
		}
		if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
			return nil, errors.New("the file has more than one document")
		}
		return root.Content[0], nil
	}
	decoder := jsontext.NewDecoder(bytes.NewReader(raw))
	for {
		if _, err := decoder.ReadToken(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("it cannot be read: %w", err)
		}
	}
	var value any
	if err := json.Unmarshal(raw, &value); err != nil {
		return nil, fmt.Errorf("it cannot be read: %w", err)
	}
	if err := root.Encode(value); err != nil {
		return nil, fmt.Errorf("it cannot be read: %w", err)
	}
	return &root, nil
}

// form finds what nobody would read: operations and scopes that stand where they mean nothing,
// or are not spelled as OpenAPI has it. Left alone they would be lost, or protect less than is
// meant. What a path leaves out as a whole may have any form.
func (r *reader) form(root *yaml.Node) {
	r.misplaced(0, "the document", r.doc.Extensions, "paths", "servers", "security", "components")
	_, paths := child(root, "paths")
	_, components := child(root, "components")
	_, items := child(components, "pathItems")
	for _, all := range []*yaml.Node{paths, items} {
		each(all, func(path, item *yaml.Node) { r.written(path.Value, item) })
	}
	if r.doc.Paths == nil {
		return
	}
	r.misplaced(0, "paths", r.doc.Paths.Extensions)
	for _, path := range slices.Sorted(maps.Keys(r.doc.Paths.Map())) {
		item := r.doc.Paths.Value(path)
		if item == nil || item.Extensions[ExtensionSkip] == true {
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(item.Extensions)) {
			if !strings.HasPrefix(name, "x-") {
				r.problem(0, "%s: %q is no method of OpenAPI 3.0 and 3.1, and nobody would read it; take it out, or leave the path out with %s", path, name, ExtensionSkip)
			}
		}
		r.misplaced(0, path, item.Extensions, ExtensionScopes, ExtensionSkip)
		for method, o := range item.Operations() {
			r.misplaced(lineOf(o), method+" "+path, o.Extensions, ExtensionScopes, ExtensionSkip, "security", "servers", "$ref")
		}
	}
}

// misplaced finds extensions of ours that mean nothing there, and the names of others that do
// not mean there what they seem to.
func (r *reader) misplaced(line int, where string, extensions map[string]any, ours ...string) {
	for _, name := range slices.Sorted(maps.Keys(extensions)) {
		lower := strings.ToLower(name)
		known := slices.Contains(ours, lower)
		mine := strings.HasPrefix(lower, "x-keystile")
		if mine && (!known || name != lower) || !mine && known {
			r.problem(line, "%s: %q means nothing here, and nobody would read it; is it misspelled or misplaced?", where, name)
		}
	}
}

// written looks at a path as it is written: the library drops methods that are there and have
// nothing, and chooses between what stands beside a reference and what that leads to.
func (r *reader) written(path string, item *yaml.Node) {
	if item.Kind == yaml.AliasNode {
		item = item.Alias
	}
	ref, _ := child(item, "$ref")
	each(item, func(key, value *yaml.Node) {
		switch {
		case !slices.Contains(methods[:], key.Value):
		case ref != nil:
			r.problem(key.Line, "%s: %s stands beside $ref; put it into what that leads to", path, key.Value)
		case value.Tag == "!!null":
			r.problem(key.Line, "%s: %s is empty; take it out, or write the operation", path, key.Value)
		}
	})
}
