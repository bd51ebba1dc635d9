package policy

import (
	"errors"
	"fmt"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/supportstation/keystile/authz"
)

// located is an error with the place of its cause.
type located struct {
	file string
	line int
	err  error
}

// Error implements error.
func (l *located) Error() string {
	return authz.PolicyProblem{File: l.file, Line: l.line, Message: l.err.Error()}.String()
}

// Unwrap is the error without its place.
func (l *located) Unwrap() error { return l.err }

// at gives an error its place; line 0 is all of the file.
func at(file string, line int, err error) error { return &located{file, line, err} }

// atLocation is at for a place in a module; nil is nowhere.
func atLocation(l *ast.Location, err error) error {
	if l == nil || l.File == "" {
		return err
	}
	return at(l.File, l.Row, err)
}

// about says what an error came of, and leaves it its place.
func about(what string, err error) error {
	var inside *topdown.Error
	var placed *located
	switch {
	case errors.As(err, &placed):
		return at(placed.file, placed.line, fmt.Errorf("%s: %w", what, placed.err))
	case errors.As(err, &inside):
		return atLocation(inside.Location, fmt.Errorf("%s: %s: %s", what, inside.Code, inside.Message))
	}
	return fmt.Errorf("%s: %w", what, err)
}

// problemsOf takes an error apart into problems of a stage.
func problemsOf(stage authz.PolicyStage, err error) []authz.PolicyProblem {
	if err == nil {
		return nil
	}
	p := authz.PolicyProblem{Stage: stage, Message: oneLine(err.Error())}
	place := func(l *ast.Location, code, message string) []authz.PolicyProblem {
		if l != nil {
			p.File, p.Line = l.File, l.Row
		}
		p.Message = oneLine(code + ": " + message)
		return []authz.PolicyProblem{p}
	}
	switch e := err.(type) { //nolint:errorlint // each level is looked at by itself
	case *located:
		inner := problemsOf(stage, e.err)
		for i := range inner {
			if inner[i].File == "" {
				inner[i].File, inner[i].Line = e.file, e.line
			}
		}
		return inner
	case *ast.Error:
		return place(e.Location, e.Code, e.Message)
	case *topdown.Error:
		return place(e.Location, e.Code, e.Message)
	case ast.Errors:
		var all []authz.PolicyProblem
		for _, one := range e {
			all = append(all, problemsOf(stage, one)...)
		}
		return all
	case interface{ Unwrap() []error }:
		var all []authz.PolicyProblem
		for _, one := range e.Unwrap() {
			all = append(all, problemsOf(stage, one)...)
		}
		return all
	}
	return []authz.PolicyProblem{p}
}

// oneLine is a text without line breaks: a problem is one line of a log or a terminal.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
