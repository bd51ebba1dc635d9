package policy

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// maskEntrypoint says what of a decision is not logged. A policy may lack it: then nothing of question and answer is logged.
const maskEntrypoint = "data.system.log.mask"

// dropEntrypoint says which decisions are not logged at all, where it is true. A policy may lack
// it, too: then all are logged.
const dropEntrypoint = "data.system.log.drop"

// maxMaskOps is how many paths a mask may name.
const maxMaskOps = 10_000

// Why a decision's question and answer are hidden as a whole, in the event's own words.
const (
	hiddenNoPolicy  = "no policy is in force"
	hiddenNoMask    = "the policy has no mask"
	hiddenUndefined = "the mask is undefined"
	hiddenTimeout   = "the mask took longer than its budget"
	hiddenError     = "the mask failed"
	hiddenNotMask   = "the mask is not a set of paths into input and result"
	hiddenNoInput   = "the question cannot be written down"
)

// Why a decision is logged that perhaps was not to be.
const (
	dropTimeout = "data.system.log.drop took longer than its budget"
	dropError   = "data.system.log.drop failed"
)

// maskOp is one path of a mask: what is there is erased, or has another value.
type maskOp struct {
	path   string
	parts  []string
	upsert bool
	value  any
}

// maskOf asks the snapshot which paths of an event are hidden. hidden is not empty when
// there is no answer to rely on: then all of it is.
func (s *Snapshot) maskOf(ctx context.Context, event *ast.Term, d *deadline) (ops []maskOp, hidden string) {
	if s.mask == nil {
		return nil, hiddenNoMask
	}
	value, err := s.run(ctx, s.mask, event, d)
	switch {
	case d.over:
		return nil, hiddenTimeout
	case err != nil:
		return nil, hiddenError + whereOf(err)
	case value == nil:
		return nil, hiddenUndefined
	}
	if ops, err = maskOps(value); err != nil {
		return nil, hiddenNotMask
	}
	return ops, ""
}

// drops tells whether the snapshot does not want an event logged. Nothing but the boolean true
// says so: in doubt it is logged, as OPA does, and doubt says why there was no answer.
func (s *Snapshot) drops(ctx context.Context, event *ast.Term, d *deadline) (unwanted bool, doubt string) {
	if s.drop == nil {
		return false, ""
	}
	value, err := s.run(ctx, s.drop, event, d)
	switch {
	case d.over:
		return false, dropTimeout
	case err != nil:
		return false, dropError + whereOf(err)
	}
	return value != nil && value.Compare(ast.Boolean(true)) == 0, ""
}

// whereOf is the place of an evaluation's error. Its message is not told: it may quote what
// the mask is there to hide.
func whereOf(err error) string {
	var failed *topdown.Error
	if !errors.As(err, &failed) || failed.Location == nil {
		return ""
	}
	return fmt.Sprintf(" at %s:%d", failed.Location.File, failed.Location.Row)
}

// maskOps reads a mask in OPA's form: texts, which are paths to erase, and objects
// {"op": "remove" or "upsert", "path", "value"}.
func maskOps(value ast.Value) ([]maskOp, error) {
	var ops []maskOp
	var errs error
	add := func(t *ast.Term) {
		op, err := maskOpOf(t.Value)
		ops, errs = append(ops, op), errors.Join(errs, err)
	}
	switch v := value.(type) {
	case ast.Set:
		if v.Len() > maxMaskOps {
			return nil, errors.New("too many paths")
		}
		v.Sorted().Foreach(add) // as OPA does: texts come before objects
	case *ast.Array:
		if v.Len() > maxMaskOps {
			return nil, errors.New("too many paths")
		}
		v.Foreach(add)
	default:
		return nil, errors.New("not a set")
	}
	return ops, errs
}

func maskOpOf(value ast.Value) (op maskOp, err error) {
	switch v := value.(type) {
	case ast.String:
		op.path = string(v)
	case ast.Object:
		name, path := member(v, "op"), member(v, "path")
		if name != "remove" && name != "upsert" {
			return op, errors.New("unknown op")
		}
		op.path, op.upsert = path, name == "upsert"
		if given := v.Get(ast.InternedTerm("value")); given != nil {
			if op.value, err = ast.JSON(given.Value); err != nil {
				return op, fmt.Errorf("a value: %w", err)
			}
		}
	default:
		return op, errors.New("neither a path nor an object")
	}
	rest, ok := strings.CutPrefix(op.path, "/")
	op.parts = strings.Split(rest, "/")
	if !ok || !slices.Contains([]string{partInput, partResult, partCache}, op.parts[0]) {
		return op, errors.New("the path leads elsewhere")
	}
	return op, nil
}

// member is a field that must be a string, "" for none.
func member(o ast.Object, name string) string {
	t := o.Get(ast.InternedTerm(name))
	if t == nil {
		return ""
	}
	s, _ := t.Value.(ast.String)
	return string(s)
}

// The parts of an event that a mask may name.
const (
	partInput  = "input"
	partResult = "result"
	partCache  = "nd_builtin_cache" // there is none: a policy calls nothing that is not deterministic
)

// maskable is what is masked: parts by their names, as plain JSON values that are nobody else's.
type maskable map[string]any

// gone stands where an element of a list was erased, until all paths have been followed:
// else erasing one would move those behind it, and the next path would erase a wrong one.
type gone struct{}

// apply erases and replaces, and returns the paths that led somewhere.
func (m maskable) apply(ops []maskOp) (erased, masked []string) {
	holes := false
	for _, op := range ops {
		part, there := m[op.parts[0]]
		switch {
		case !there && !op.upsert, op.parts[0] == partCache:
			continue
		case len(op.parts) == 1 && op.upsert:
			m[op.parts[0]] = op.value
		case len(op.parts) == 1:
			delete(m, op.parts[0])
		case op.upsert && !replace(part, op.parts[1:], op.value):
			continue
		case !op.upsert:
			found, hole := erase(part, op.parts[1:])
			if holes = holes || hole; !found {
				continue
			}
		}
		if op.upsert {
			masked = append(masked, op.path)
		} else {
			erased = append(erased, op.path)
		}
	}
	if holes {
		for name, part := range m {
			m[name] = closed(part)
		}
	}
	return erased, masked
}

// spellings are the names that a part of a path may mean: as it stands, as a JSON pointer
// (RFC 6901), or percent-encoded, as OPA has it. Whichever is there is meant.
func spellings(part string) []string {
	all := []string{part}
	if pointer := strings.ReplaceAll(strings.ReplaceAll(part, "~1", "/"), "~0", "~"); pointer != part {
		all = append(all, pointer)
	}
	if decoded, err := url.PathUnescape(part); err == nil && decoded != part {
		all = append(all, decoded)
	}
	return all
}

// erase takes away what a path leads to, wherever its names are to be found.
func erase(node any, path []string) (found, hole bool) {
	last := len(path) == 1
	switch v := node.(type) {
	case map[string]any:
		for _, name := range spellings(path[0]) {
			child, ok := v[name]
			switch {
			case !ok:
			case last:
				delete(v, name)
				found = true
			default:
				f, h := erase(child, path[1:])
				found, hole = found || f, hole || h
			}
		}
	case []any:
		i, ok := index(path[0], len(v))
		switch {
		case !ok:
		case last:
			v[i] = gone{}
			return true, true
		default:
			return erase(v[i], path[1:])
		}
	}
	return found, hole
}

// replace sets a value, and makes the objects on the way to it.
func replace(node any, path []string, value any) (done bool) {
	last := len(path) == 1
	switch v := node.(type) {
	case map[string]any:
		names := slices.DeleteFunc(spellings(path[0]), func(name string) bool { _, ok := v[name]; return !ok })
		if len(names) == 0 {
			names = []string{path[0]}
			if !last {
				v[path[0]] = map[string]any{}
			}
		}
		for _, name := range names {
			if last {
				v[name] = value
				done = true
			} else if replace(v[name], path[1:], value) {
				done = true
			}
		}
	case []any:
		i, ok := index(path[0], len(v))
		switch {
		case !ok:
		case last:
			v[i] = value
			return true
		default:
			return replace(v[i], path[1:], value)
		}
	}
	return done
}

func index(part string, length int) (int, bool) {
	i, err := strconv.Atoi(part)
	return i, err == nil && i >= 0 && i < length
}

// closed is a value without the holes that erase left.
func closed(node any) any {
	switch v := node.(type) {
	case map[string]any:
		for name, child := range v {
			v[name] = closed(child)
		}
	case []any:
		kept := v[:0]
		for _, child := range v {
			if _, is := child.(gone); !is {
				kept = append(kept, closed(child))
			}
		}
		return kept
	}
	return node
}
