package policy

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/supportstation/keystile/authz"
)

// Metadata as terms takes many times its text: made for each key anew, one organization's
// took twenty times what its keys' records did.
func TestMemo_OrganizationIsMadeOnceForAllItsKeys(t *testing.T) {
	e, o := NewEngine(mustLoad(t, shipped())), exampleKey().Organization
	keys := make([]*authz.Key, 16)
	var wg sync.WaitGroup
	for i := range keys {
		keys[i] = exampleKey()
		keys[i].Organization = o
		wg.Go(func() { // at once, as after a start
			if _, err := e.Evaluate(context.Background(), keys[i], exampleCheck("GET", "/api/v1/tickets")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	shared, _ := o.Memo.Load().(*ast.Term)
	for i, k := range keys {
		if m, ok := k.Memo.Load().(*keyMemo); !ok || m.organization != shared || shared == nil {
			t.Errorf("key %d has an organization of its own", i)
		}
	}
	changed := o.Copy()
	changed.Plan = "large"
	k := exampleKey()
	k.Organization = changed
	input, err := newNames().input(k, exampleCheck("GET", "/api/v1/tickets"))
	if err != nil {
		t.Fatal(err)
	}
	if plan, err := input.Value.Find(ast.MustParseRef("x.organization.plan")[1:]); err != nil || plan.Compare(ast.String("large")) != 0 {
		t.Errorf("a record that has changed has the old one's plan: %v, %v", plan, err)
	}
}

// The store bounds its records by what is said here of their memos.
func TestMemo_TakesWhatIsSaidOfIt(t *testing.T) {
	many := func(n int, what string) string { return strings.TrimSuffix(strings.Repeat(what+",", n), ",") }
	members := func(n int, value string) authz.Metadata {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"%x":%s`, i, value)
		}
		return authz.Metadata("{" + b.String()[1:] + "}")
	}
	array := func(n int, what string) authz.Metadata { return authz.Metadata(`{"t":[` + many(n, what) + `]}`) }
	for name, c := range map[string]struct {
		metadata      authz.Metadata
		scopes, cidrs int
	}{
		"nothing":         {},
		"scopes":          {scopes: 20},
		"ranges":          {cidrs: 20},
		"one member":      {metadata: members(1, `"x"`)},
		"some members":    {metadata: members(20, `"gold customer"`)},
		"500 members":     {metadata: members(500, "1")},
		"one text":        {metadata: authz.Metadata(`{"t":"` + strings.Repeat(`,:[{\"`, 600) + `"}`)},
		"numbers":         {metadata: array(600, "10000")},
		"texts":           {metadata: array(800, `"xy"`)},
		"empty objects":   {metadata: array(1000, "{}")},
		"empty arrays":    {metadata: array(1000, "[]")},
		"small objects":   {metadata: array(500, `{"a":1}`)},
		"small arrays":    {metadata: array(800, "[1]")},
		"deep arrays":     {metadata: authz.Metadata(`{"t":` + strings.Repeat("[", 1900) + strings.Repeat("]", 1900) + "}")},
		"deep objects":    {metadata: authz.Metadata(strings.Repeat(`{"a":`, 650) + "1" + strings.Repeat("}", 650))},
		"members' arrays": {metadata: members(200, `["a","b"]`)},
	} {
		n := newNames()
		keys := make([]*authz.Key, 2000)
		if len(c.metadata) > 400 {
			keys = keys[:100]
		}
		o := &authz.Organization{ID: authz.NewOrganizationID(time.Now()), Plan: "standard"}
		organizations := make([]*authz.Organization, len(keys))
		for i := range keys {
			organizations[i] = &authz.Organization{ID: o.ID, Plan: "standard", ExternalID: "crm-1", Metadata: c.metadata}
			keys[i] = &authz.Key{ID: authz.NewKeyID(time.Now()), Organization: o, Environment: authz.EnvironmentLive, Metadata: c.metadata}
			for j := range c.scopes {
				keys[i].Scopes = append(keys[i].Scopes, authz.Scope(fmt.Sprintf("tickets:a%d", j)))
			}
			for j := range c.cidrs {
				keys[i].AllowedCIDRs = append(keys[i].AllowedCIDRs, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(j)}), 16))
			}
		}
		took := func(memo func(i int) error) float64 {
			before := heapNow()
			for i := range keys {
				if err := memo(i); err != nil {
					t.Fatal(name, err)
				}
			}
			return float64(heapNow()-before) / float64(len(keys))
		}
		least := 0.85
		if raceEnabled {
			least = 0.7 // the race detector takes something of each allocation
		}
		check := exampleCheck("GET", "/api/v1/tickets")
		key := took(func(i int) error { _, err := n.input(keys[i], check); return err })
		organization := took(func(i int) error { _, err := n.organizationTerm(organizations[i]); return err })
		for what, part := range map[string]float64{
			"key": float64(authz.KeyMemoBytes(keys[0])) / key, "organization": float64(authz.OrganizationMemoBytes(organizations[0])) / organization,
		} {
			if part < least || part > 1.35 {
				t.Errorf("%s: of a memo of the %s is said %.2f of what it takes", name, what, part)
			}
		}
		t.Logf("%s: the key's %.0f B, the organization's %.0f B", name, key, organization)
		runtime.KeepAlive(keys)
		runtime.KeepAlive(organizations)
	}
}

func heapNow() int64 {
	runtime.GC()
	runtime.GC() // what the first has found to be finalized
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
