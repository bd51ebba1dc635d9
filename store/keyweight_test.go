package store

import (
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/policy"
	"github.com/supportstation/keystile/policies"
)

// evaluated lets policy put beside a record what it does at a check.
func evaluated(t testing.TB) func(k *authz.Key) {
	t.Helper()
	s, err := policy.Load(t.Context(), policies.FS)
	if err != nil {
		t.Fatal(err)
	}
	e, n := policy.NewEngine(s), 0
	evaluate := func(k *authz.Key) {
		n++ // from another address each time, so that no verdict is remembered
		check := &authz.Check{
			Caller: &authz.Caller{Environments: []authz.Environment{authz.EnvironmentLive}}, Environment: authz.EnvironmentLive,
			Method: "GET", Path: "/api/v1/tickets", Segments: []string{"api", "v1", "tickets"}, ClientIP: netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}),
		}
		if _, err := e.Evaluate(t.Context(), k, check); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 { // what the engine keeps is there before anything is measured
		evaluate(&authz.Key{Organization: &authz.Organization{Plan: "standard"}, Environment: authz.EnvironmentLive})
	}
	return evaluate
}

// members is metadata with so many of them.
func members(n int) authz.Metadata {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"field %d":"value %d"`, i, i)
	}
	return authz.Metadata(strings.Replace("{"+b.String()+"}", ",", "", 1))
}

// population are keys and organizations as look-ups make them.
type population struct {
	keys, organizations int
	ofKey, ofOne        authz.Metadata
}

// fill puts them into a cache, each evaluated once, and returns what that took.
func (p population) fill(t testing.TB, c *keyCache, evaluate func(*authz.Key)) (took int64) {
	t.Helper()
	ids := make([]authz.OrganizationID, p.organizations)
	for i := range ids {
		ids[i] = authz.NewOrganizationID(time.Now())
	}
	before := heap()
	for n := range p.keys {
		of := c.organizations.organization(ids[n%p.organizations])
		o, _ := of.record(1, func() (*authz.Organization, error) {
			return &authz.Organization{
				ID: ids[n%p.organizations], Name: fmt.Sprint("Organization ", n), Plan: "standard",
				Metadata: authz.Metadata(strings.Clone(string(p.ofOne))), Revision: 1,
			}, nil
		})
		d, e := entryOf(n, of, o)
		e.key.Metadata = authz.Metadata(strings.Clone(string(p.ofKey)))
		if _, ok := c.put(d, e); !ok {
			t.Fatal("not kept")
		}
		evaluate(e.key)
	}
	c.known.CleanUp()
	took = int64(heap()) - int64(before) // what other tests leave may be collected meanwhile
	runtime.KeepAlive(c)
	return took
}

// What is said of the cache is what it takes, with what policy puts beside the records, and
// with the organizations; and that is within the bound.
func TestKeyCache_WhatHangsOnRecordsIsCountedAndBounded(t *testing.T) {
	const bound = 16 << 20
	evaluate := evaluated(t)
	for name, p := range map[string]population{
		"no metadata":           {keys: 12_000, organizations: 1000},
		"on the keys":           {keys: 2000, organizations: 10, ofKey: members(100)},
		"on few organizations":  {keys: 12_000, organizations: 10, ofOne: members(100)},
		"on many organizations": {keys: 2000, organizations: 2000, ofOne: members(100)},
	} {
		c := newTestCache(t, bound)
		took := p.fill(t, c, evaluate)
		records, said := c.size()
		t.Logf("%s: %d records, said %d B each, took %d B each", name, records, said/uint64(records), took/int64(records))
		if said > bound || took > bound*5/4 {
			t.Errorf("%s: %d records are said to take %d bytes, and take %d, of %d", name, records, said, took, bound)
		}
		if part := float64(said) / float64(took); part < 0.8 || part > 1.3 {
			t.Errorf("%s: of what they take is said %.2f", name, part)
		}
		if said < bound*7/8 {
			t.Errorf("%s: only %d bytes of %d are used", name, said, bound)
		}
		runtime.KeepAlive(c)
	}
}

// However records go, what they took is given back, and an organization's with its last.
func TestKeyCache_WhatWasCountedIsGivenBack(t *testing.T) {
	for name, let := range map[string]func(*keyCache){
		"of everything": func(c *keyCache) { c.forget(9, nil) },
		"of a restore":  func(c *keyCache) { c.putBack(9) },
		"one by one": func(c *keyCache) {
			for d := range c.known.All() {
				c.apply(&changeSet{n: 9, retired: []authz.Digest{d}})
			}
		},
		"to fit": func(c *keyCache) {
			c.bytes = 0
			c.fit()
		},
	} {
		c := newTestCache(t, 64<<20)
		for range 2 { // the second time in place of the first
			population{keys: 100, organizations: 7}.fill(t, c, func(*authz.Key) {})
		}
		if n, said := c.size(); n != 100 || said < 100*recordOverhead || len(c.weights.holders) != 7 {
			t.Fatalf("%d records of %d organizations take %d bytes", n, len(c.weights.holders), said)
		}
		let(c)
		if n, said := c.size(); n != 0 || said != 0 || len(c.weights.holders) != 0 {
			t.Errorf("%s: %d records of %d organizations take %d bytes", name, n, len(c.weights.holders), said)
		}
	}
}

// BenchmarkKeyCache_BytesPerKey measures what a cached key takes after its first check,
// cache and organization included, at a million keys of ten thousand organizations.
func BenchmarkKeyCache_BytesPerKey(b *testing.B) {
	evaluate := evaluated(b)
	for _, c := range []struct {
		name         string
		ofKey, ofOne authz.Metadata
	}{{"plain", "", ""}, {"metadata", members(5), members(20)}} {
		b.Run(c.name, func(b *testing.B) {
			for range b.N {
				cache := newTestCache(b, 8<<30)
				took := population{1_000_000, 10_000, c.ofKey, c.ofOne}.fill(b, cache, evaluate)
				records, said := cache.size()
				b.ReportMetric(float64(took)/float64(records), "B/key")
				b.ReportMetric(float64(said)/float64(records), "said-B/key")
				b.ReportMetric(float64(records), "keys")
			}
		})
	}
}
