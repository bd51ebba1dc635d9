package authz

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"
)

// recorder keeps what it is told, as a recorder may.
type recorder struct{ told []*DecisionRecord }

func (r *recorder) Decided(q *Check, d *Decision) { r.told = append(r.told, RecordDecision(q, d)) }

func TestCheck_EveryDecisionIsRecordedAndNoRefusedQuestion(t *testing.T) {
	w, r := newWorld(), &recorder{}
	c, err := NewChecker(CheckerOptions{Keys: w, Policy: w, Limiter: w, Clock: w, Decisions: []DecisionRecorder{r, r}})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(p Presented, cost int) {
		q := &Check{Presented: p, Cost: cost}
		q.SetRequest("GET", "/api/v1/tickets")
		_, _ = c.Check(t.Context(), q)
	}
	known := PresentHash(SecretHash{1})
	ask(known, 1)
	ask(Presented{}, 1)
	ask(Presented{state: presentedMalformed}, 1)
	ask(known, 1_000) // cost_exceeds_burst is the question's own
	w.found.Key.Disabled = true
	ask(known, 1)
	w.findErr = errors.New("away")
	ask(known, 1)
	var got []string
	for _, told := range r.told {
		got = append(got, fmt.Sprint(string(told.Decision.Code), " ", told.Decision.AskedPolicy()))
		if told.Decision.ID.IsZero() || !told.Decision.At().Equal(w.now) || told.Decision.PolicyRevision == "" {
			t.Errorf("it was not told at the end: %+v", told.Decision)
		}
	}
	want := []string{"allowed true", "key_missing false", "key_malformed false", "key_disabled false", "unavailable false"}
	if got = slices.Compact(got); !slices.Equal(got, want) || len(r.told) != 2*len(want) {
		t.Errorf("recorded %q by each of two, want %q", got, want)
	}
}

// A question's texts are parts of a body that holds the secret: a record shares no memory with
// it, and knows nothing of what was presented.
func TestRecordDecision_KeepsNothingOfTheBody(t *testing.T) {
	body := []byte("GET /api/v1/tickets/42 tickets:read live ticket 42 org_x reason message key tail")
	text := unsafe.String(&body[0], len(body))
	part := func(s string) string { i := strings.Index(text, s); return text[i : i+len(s)] }
	q := &Check{
		Presented: PresentHash(SecretHash{1, 2, 3}), Method: part("GET"), Path: part("/api/v1/tickets/42"), Segments: []string{part("api"), part("42")},
		Action: part("tickets:read"), Environment: Environment(part("live")),
		Resource: Resource{Type: part("ticket"), ID: part("42"), Organization: part("org_x")}, ClientIP: netip.MustParseAddr("203.0.113.7"), Cost: 1,
	}
	d := &Decision{
		Code: CodePolicyDenied, Status: 403, Route: part("/api/v1/tickets/42"), Required: []Scope{Scope(part("tickets:read"))},
		Missing: []Scope{Scope(part("tickets:read"))}, Reasons: []Reason{{Code: Code(part("reason")), Message: part("message")}},
		RateLimit: &RateLimit{Limit: Limit{Name: part("key")}}, Headers: []Header{{"X", part("tail")}}, Problem: &Problem{Detail: part("tail")},
		Cause: errors.New("cause"), ID: NewDecisionID(time.Now()),
	}
	r := RecordDecision(q, d)
	before := fmt.Sprintf("%+v", *r)
	for i := range body {
		body[i] = '#'
	}
	d.Reasons[0].Status, d.RateLimit.Remaining = 404, 7
	if after := fmt.Sprintf("%+v", *r); after != before || strings.Contains(after, "#") {
		t.Errorf("the record changed with the body:\n%s\n%s", before, after)
	}
	if !reflect.DeepEqual(r.Check.Presented, Presented{}) || r.Decision.Headers != nil || r.Decision.Problem != nil || r.Decision.Cause != nil {
		t.Errorf("it keeps what is not to be kept: %+v", r)
	}
	if r.Check.Path != "/api/v1/tickets/42" || r.Decision.Reasons[0].Message != "message" || r.Size() < 1<<10 {
		t.Errorf("it lacks something: %+v", r)
	}
}

func TestID_OneInSoManyIsSampled(t *testing.T) {
	counts := map[int]int{0: 0, 1: 0, 10: 0, -1: 0}
	for range 10_000 {
		id := NewDecisionID(time.Unix(1_795_000_000, 0))
		for n := range counts {
			if id.OneIn(n) {
				counts[n]++
			}
		}
	}
	if counts[0] != 0 || counts[-1] != 0 || counts[1] != 10_000 || counts[10] < 800 || counts[10] > 1_200 {
		t.Errorf("of 10,000 ids: %v", counts)
	}
}

func TestTruncateAddr_NamesNobody(t *testing.T) {
	for addr, want := range map[string]string{
		"203.0.113.7": "203.0.113.0/24", "::ffff:203.0.113.7": "203.0.113.0/24", "2001:db8:1:2::7": "2001:db8:1::/48", "fe80::1%eth0": "fe80::/48",
	} {
		if got := TruncateAddr(netip.MustParseAddr(addr)).String(); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
	if TruncateAddr(netip.Addr{}).IsValid() {
		t.Error("an unknown address has a network")
	}
}
