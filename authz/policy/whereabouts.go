package policy

import (
	"sync/atomic"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

var _ topdown.QueryTracer = (*whereabouts)(nil)

// whereabouts remembers where evaluations were last. Safe for concurrent use.
type whereabouts struct {
	at atomic.Pointer[ast.Location]
	// next is told everything as well; nil for nobody.
	next topdown.QueryTracer
}

// Enabled implements topdown.QueryTracer.
func (*whereabouts) Enabled() bool { return true }

// Config implements topdown.QueryTracer.
func (*whereabouts) Config() topdown.TraceConfig { return topdown.TraceConfig{} }

// TraceEvent implements topdown.QueryTracer.
func (w *whereabouts) TraceEvent(e topdown.Event) {
	// On the way out, when an evaluation is ended, there is only Redo and Fail.
	if e.Op == topdown.EvalOp && e.Location != nil && e.Location.File != "" {
		w.at.Store(e.Location)
	}
	if w.next != nil {
		w.next.TraceEvent(e)
	}
}
