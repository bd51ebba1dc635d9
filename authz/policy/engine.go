package policy

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/supportstation/keystile/authz"
)

var _ authz.PolicyEvaluator = (*Engine)(nil)

var errNoOrganization = errors.New("the key belongs to no organization")

type Engine struct {
	current atomic.Pointer[Snapshot]
	names   *names
	budget  time.Duration
}

func NewEngine(s *Snapshot) *Engine {
	e := &Engine{names: newNames(), budget: 50 * time.Millisecond}
	e.current.Store(s)
	return e
}

func (e *Engine) Revision() string {
	if s := e.current.Load(); s != nil {
		return s.revision
	}
	return ""
}

func (e *Engine) Swap(s *Snapshot) { e.current.Store(s) }

func (e *Engine) Evaluate(ctx context.Context, k *authz.Key, c *authz.Check) (authz.Verdict, error) {
	s := e.current.Load()
	if s == nil {
		return authz.Verdict{}, errors.New("there is no policy")
	}
	v, err := e.evaluate(ctx, s, k, c)
	if err != nil {
		return authz.Verdict{Revision: s.revision}, err
	}
	v.Revision = s.revision
	return v, nil
}

func (e *Engine) evaluate(ctx context.Context, s *Snapshot, k *authz.Key, c *authz.Check) (v authz.Verdict, err error) {
	defer func() {
		if r := recover(); r != nil {
			v, err = authz.Verdict{}, fmt.Errorf("panic: %v", r)
		}
	}()
	input, err := e.names.input(k, c)
	if err != nil {
		return authz.Verdict{}, err
	}
	result, err := s.run(ctx, s.check, input, topdown.NewCancel())
	if err != nil {
		return authz.Verdict{}, err
	}
	return verdict(result)
}
