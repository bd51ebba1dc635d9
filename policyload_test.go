package main

import (
	"sync"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
)

// awaitPolicy waits for what a policy's trial may keep waiting.
func awaitPolicy(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); <-time.After(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// policyLoad asks services for checks all the time, and keeps which policy answered what.
type policyLoad struct {
	t       *testing.T
	quit    chan struct{}
	asking  sync.WaitGroup
	mu      sync.Mutex
	answers map[policyAnswer]int
}

type policyAnswer struct{ revision, code string }

// loadTenants is how many ask: so many that no limit hides what a policy says.
const loadTenants = 30

func newPolicyLoad(t *testing.T, all []*service, format authz.KeyFormat) *policyLoad {
	t.Helper()
	l := &policyLoad{t: t, quit: make(chan struct{}), answers: map[policyAnswer]int{}}
	var tenants []tenant
	for range loadTenants {
		tenants = append(tenants, addTenant(t, all[0].store, format))
	}
	client := testClient()
	for _, s := range all {
		if err := s.store.Synchronize(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.asking.Go(func() {
			for n := 0; ; n++ {
				made := tenants[n%len(tenants)]
				select {
				case <-l.quit:
					return
				case <-time.After(20 * time.Millisecond): // a trial needs processors, too
				}
				a, _, err := tryCheck(t.Context(), client, s.url, made.token, made.key.Reveal())
				if err != nil {
					continue
				}
				code := a.Code
				if len(a.Reasons) > 0 {
					code = a.Reasons[0].Code
				}
				l.mu.Lock()
				l.answers[policyAnswer{a.PolicyRevision, code}]++
				l.mu.Unlock()
			}
		})
	}
	return l
}

// end holds every answer to the policy that it names.
func (l *policyLoad) end(wanted map[string]string) {
	l.t.Helper()
	close(l.quit)
	l.asking.Wait()
	for revision := range wanted {
		if l.answers[policyAnswer{revision, wanted[revision]}] == 0 {
			l.t.Errorf("no answer is by %s", revision)
		}
	}
	for a, n := range l.answers {
		if want := wanted[a.revision]; a.code != want && a.code != "rate_limited" && a.code != "unavailable" {
			l.t.Errorf("%d answers %s by %s, which says %s", n, a.code, a.revision, want)
		}
	}
}
