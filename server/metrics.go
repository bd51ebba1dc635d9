package server

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/supportstation/keystile/authz"
)

// metrics counts. The counters of every code are made at start: looking one up by
// its label on each check would cost a hash and a lock.
type metrics struct {
	registry  *prometheus.Registry
	decisions map[authz.Code]prometheus.Counter
	other     prometheus.Counter
	degraded  struct{ limiter, store prometheus.Counter }
	// management counts by operation and class of status.
	management *prometheus.CounterVec
}

func newMetrics(figures func() Readiness) *metrics {
	m := &metrics{registry: prometheus.NewRegistry(), decisions: make(map[authz.Code]prometheus.Counter)}
	m.registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	decisions := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keystile_decisions_total", Help: "Decisions of checks, by code.",
	}, []string{"code"})
	degraded := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keystile_degraded_decisions_total", Help: "Decisions for which a part was stood in for, by part.",
	}, []string{"part"})
	ready := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "keystile_ready", Help: "1 while known keys can be decided.",
	}, func() float64 {
		if figures().Ready {
			return 1
		}
		return 0
	})
	m.management = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keystile_management_requests_total", Help: "Requests of the management API, by operation and class of status.",
	}, []string{"operation", "status"})
	m.registry.MustRegister(decisions, degraded, ready, m.management)
	for _, code := range []authz.Code{
		authz.CodeAllowed, authz.CodeKeyMissing, authz.CodeKeyMalformed, authz.CodeKeyUnknown, authz.CodeKeyRevoked,
		authz.CodeKeyExpired, authz.CodeKeyDisabled, authz.CodeOrganizationSuspended, authz.CodeEnvironmentMismatch,
		authz.CodeOrganizationMismatch, authz.CodeIPNotAllowed, authz.CodeAmbiguousPath, authz.CodeUnknownRoute,
		authz.CodeBrowserUse, authz.CodeInsufficientScope, authz.CodePolicyDenied, authz.CodeRateLimited,
		authz.CodeUnavailable,
	} {
		m.decisions[code] = decisions.WithLabelValues(string(code))
	}
	m.other = decisions.WithLabelValues("other")
	m.degraded.limiter = degraded.WithLabelValues("limiter")
	m.degraded.store = degraded.WithLabelValues("store")
	return m
}

// decided counts one decision. It takes no lock.
func (m *metrics) decided(d *authz.Decision) {
	counter := m.decisions[d.Code]
	if counter == nil {
		counter = m.other
	}
	counter.Inc()
	if d.Degraded.Limiter {
		m.degraded.limiter.Inc()
	}
	if d.Degraded.Store {
		m.degraded.store.Inc()
	}
}

// managed counts one management request.
func (m *metrics) managed(operation string, status int) {
	m.management.WithLabelValues(operation, strconv.Itoa(status/100)+"xx").Inc()
}
