package server

import (
	"slices"
	"strconv"
	"strings"

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
	// explanations counts by code.
	explanations *prometheus.CounterVec
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
	m.management = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keystile_management_requests_total", Help: "Requests of the management API, by operation and class of status.",
	}, []string{"operation", "status"})
	m.explanations = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keystile_explanations_total", Help: "Explanations of checks, by the code that the check would have.",
	}, []string{"code"})
	m.registry.MustRegister(decisions, m.explanations, degraded, partsCollector(figures), m.management)
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

// partsCollector collects what the parts tell about themselves, when it is asked for.
type partsCollector func() Readiness

var _ prometheus.Collector = partsCollector(nil)

// Describe implements prometheus.Collector: what the parts tell is theirs to say.
func (partsCollector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (p partsCollector) Collect(out chan<- prometheus.Metric) {
	r := p()
	gauge := func(name, help string, is bool, labels ...string) {
		value, names := 0.0, []string(nil)
		if is {
			value = 1
		}
		if len(labels) > 0 {
			names = []string{"part"}
		}
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), prometheus.GaugeValue, value, labels...)
	}
	gauge("keystile_ready", "1 while known keys can be decided.", r.Ready)
	for _, part := range []string{"limiter", "store"} {
		gauge("keystile_degraded", "1 while the part does not answer and is stood in for.", slices.Contains(r.Degraded, part), part)
	}
	for _, f := range r.Figures {
		kind := prometheus.GaugeValue
		if strings.HasSuffix(f.Name, "_total") {
			kind = prometheus.CounterValue
		}
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc("keystile_"+f.Name, f.Help, nil, f.Labels), kind, f.Value)
	}
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

// explained counts one explanation.
func (m *metrics) explained(e *authz.Explanation) {
	m.explanations.WithLabelValues(string(e.Code)).Inc()
}

// managed counts one management request.
func (m *metrics) managed(operation string, status int) {
	m.management.WithLabelValues(operation, strconv.Itoa(status/100)+"xx").Inc()
}
