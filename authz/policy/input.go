package policy

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/supportstation/keystile/authz"
)

// keyMemo is what this room keeps beside a key's record: the halves of the input
// that follow from the record alone. A record is never changed, so nor is this. The
// organization's half is that of all its keys. authz.KeyMemoBytes tells what it takes.
type keyMemo struct {
	organization, key *ast.Term
}

// names are the field names of the input, made once: a term of a string is a
// pointer, and comparing pointers is cheaper than comparing strings.
type names struct {
	caller, organization, key, request, stale                   *ast.Term
	id, name, environments                                      *ast.Term
	externalID, plan, metadata                                  *ast.Term
	environment, scopes, allowedCIDRs, rateLimit, restricted    *ast.Term
	rate, periodSeconds, burst                                  *ast.Term
	method, path, segments, ambiguous, action                   *ast.Term
	resource, clientIP, browser, kind                           *ast.Term
	empty, yes, no, null, emptyArray, unknownResource, emptyMap *ast.Term
}

func newNames() *names {
	s := ast.InternedTerm[string]
	n := &names{
		caller: s("caller"), organization: s("organization"), key: s("key"), request: s("request"), stale: s("stale"),
		id: s("id"), name: s("name"), environments: s("environments"),
		externalID: s("external_id"), plan: s("plan"), metadata: s("metadata"),
		environment: s("environment"), scopes: s("scopes"), allowedCIDRs: s("allowed_cidrs"),
		rateLimit: s("rate_limit"), restricted: s("restricted"),
		rate: s("rate"), periodSeconds: s("period_seconds"), burst: s("burst"),
		method: s("method"), path: s("path"), segments: s("segments"), ambiguous: s("ambiguous"), action: s("action"),
		resource: s("resource"), clientIP: s("client_ip"), browser: s("browser"), kind: s("type"),
		empty: s(""), yes: ast.InternedTerm(true), no: ast.InternedTerm(false),
		null: ast.NullTerm(), emptyArray: ast.ArrayTerm(), emptyMap: ast.ObjectTerm(),
	}
	n.unknownResource = ast.ObjectTerm(
		[2]*ast.Term{n.kind, n.empty}, [2]*ast.Term{n.id, n.empty}, [2]*ast.Term{n.organization, n.empty})
	return n
}

// input makes the input document of a check, without reflection and without JSON.
func (n *names) input(k *authz.Key, c *authz.Check) (*ast.Term, error) {
	memo, ok := k.Memo.Load().(*keyMemo)
	if !ok {
		var err error
		if memo, err = n.memo(k); err != nil {
			return nil, err
		}
		k.Memo.Store(memo)
	}
	return ast.ObjectTerm(
		[2]*ast.Term{n.caller, n.callerTerm(c.Caller)},
		[2]*ast.Term{n.organization, memo.organization},
		[2]*ast.Term{n.key, memo.key},
		[2]*ast.Term{n.request, n.requestTerm(c)},
		[2]*ast.Term{n.stale, n.bool(c.Stale)},
	), nil
}

func (n *names) memo(k *authz.Key) (*keyMemo, error) {
	organization, err := n.organizationTerm(k.Organization)
	if err != nil {
		return nil, err
	}
	metadata, err := n.metadataTerm(k.Metadata)
	if err != nil {
		return nil, fmt.Errorf("metadata of the key: %w", err)
	}
	scopes := make([]*ast.Term, len(k.Scopes))
	for i, s := range k.Scopes {
		scopes[i] = ast.StringTerm(string(s))
	}
	cidrs := make([]*ast.Term, len(k.AllowedCIDRs))
	for i, prefix := range k.AllowedCIDRs {
		if !prefix.IsValid() {
			return nil, fmt.Errorf("the key's address range %d is invalid", i)
		}
		cidrs[i] = ast.StringTerm(prefix.String())
	}
	return &keyMemo{organization: organization, key: ast.ObjectTerm(
		[2]*ast.Term{n.id, ast.StringTerm(k.ID.String())},
		[2]*ast.Term{n.environment, n.string(string(k.Environment))},
		[2]*ast.Term{n.scopes, ast.ArrayTerm(scopes...)},
		[2]*ast.Term{n.metadata, metadata},
		[2]*ast.Term{n.allowedCIDRs, ast.ArrayTerm(cidrs...)},
		[2]*ast.Term{n.rateLimit, n.rateTerm(k.RateLimit)},
		[2]*ast.Term{n.restricted, n.bool(k.Restricted)},
	)}, nil
}

// organizationTerm makes the organization's part once for each record: metadata as terms
// takes some twenty times its text, and an organization may have many keys.
func (n *names) organizationTerm(o *authz.Organization) (*ast.Term, error) {
	if o == nil {
		return nil, errNoOrganization
	}
	if term, ok := o.Memo.Load().(*ast.Term); ok {
		return term, nil
	}
	term, err := n.newOrganizationTerm(o)
	if err != nil {
		return nil, err
	}
	// Of two who make it at once, both use the one that is kept.
	if !o.Memo.CompareAndSwap(nil, term) {
		term, _ = o.Memo.Load().(*ast.Term)
	}
	return term, nil
}

func (n *names) newOrganizationTerm(o *authz.Organization) (*ast.Term, error) {
	metadata, err := n.metadataTerm(o.Metadata)
	if err != nil {
		return nil, fmt.Errorf("metadata of the organization: %w", err)
	}
	return ast.ObjectTerm(
		[2]*ast.Term{n.id, ast.StringTerm(o.ID.String())},
		[2]*ast.Term{n.externalID, n.string(o.ExternalID)},
		[2]*ast.Term{n.plan, n.string(o.Plan)},
		[2]*ast.Term{n.metadata, metadata},
	), nil
}

// callerTerm makes the caller's part once for each record.
func (n *names) callerTerm(c *authz.Caller) *ast.Term {
	if c == nil {
		c = &authz.Caller{}
	}
	if term, ok := c.Memo.Load().(*ast.Term); ok {
		return term
	}
	term := n.newCallerTerm(c)
	c.Memo.Store(term)
	return term
}

func (n *names) newCallerTerm(c *authz.Caller) *ast.Term {
	environments := make([]*ast.Term, len(c.Environments))
	for i, e := range c.Environments {
		environments[i] = n.string(string(e))
	}
	return ast.ObjectTerm(
		[2]*ast.Term{n.id, ast.StringTerm(c.ID.String())},
		[2]*ast.Term{n.name, n.string(c.Name)},
		[2]*ast.Term{n.environments, ast.ArrayTerm(environments...)},
	)
}

func (n *names) requestTerm(c *authz.Check) *ast.Term {
	segments := n.emptyArray
	if len(c.Segments) > 0 && !c.Ambiguous {
		terms := make([]*ast.Term, len(c.Segments))
		for i, s := range c.Segments {
			terms[i] = ast.StringTerm(s)
		}
		segments = ast.ArrayTerm(terms...)
	}
	return ast.ObjectTerm(
		[2]*ast.Term{n.method, n.string(c.Method)},
		[2]*ast.Term{n.path, n.string(c.Path)},
		[2]*ast.Term{n.segments, segments},
		[2]*ast.Term{n.ambiguous, n.bool(c.Ambiguous)},
		[2]*ast.Term{n.action, n.string(c.Action)},
		[2]*ast.Term{n.environment, n.string(string(c.Environment))},
		[2]*ast.Term{n.resource, n.resourceTerm(c.Resource)},
		[2]*ast.Term{n.clientIP, n.addrTerm(c.ClientIP)},
		[2]*ast.Term{n.browser, n.bool(c.Browser)},
	)
}

func (n *names) resourceTerm(r authz.Resource) *ast.Term {
	if r == (authz.Resource{}) {
		return n.unknownResource
	}
	return ast.ObjectTerm(
		[2]*ast.Term{n.kind, n.string(r.Type)},
		[2]*ast.Term{n.id, n.string(r.ID)},
		[2]*ast.Term{n.organization, n.string(r.Organization)},
	)
}

func (n *names) rateTerm(r *authz.Rate) *ast.Term {
	if r == nil {
		return n.null
	}
	return ast.ObjectTerm(
		[2]*ast.Term{n.rate, ast.InternedTerm(r.Rate)},
		[2]*ast.Term{n.periodSeconds, ast.InternedTerm(int(r.Period / time.Second))},
		[2]*ast.Term{n.burst, ast.InternedTerm(r.Burst)},
	)
}

func (n *names) metadataTerm(m authz.Metadata) (*ast.Term, error) {
	if m == "" || m == "{}" {
		return n.emptyMap, nil
	}
	decoder := json.NewDecoder(strings.NewReader(m.JSON()))
	decoder.UseNumber()
	var object map[string]any
	if err := decoder.Decode(&object); err != nil {
		return nil, fmt.Errorf("it is not a JSON object: %w", err)
	}
	// This refuses 1e999999999, which would take gigabytes to compare. Customers
	// write their own metadata.
	value, err := ast.InterfaceToValue(object)
	if err != nil {
		return nil, err
	}
	return ast.NewTerm(value), nil
}

func (n *names) addrTerm(a netip.Addr) *ast.Term {
	if !a.IsValid() {
		return n.empty
	}
	return ast.StringTerm(a.String())
}

func (n *names) string(s string) *ast.Term {
	if s == "" {
		return n.empty
	}
	return ast.StringTerm(s)
}

func (n *names) bool(b bool) *ast.Term {
	if b {
		return n.yes
	}
	return n.no
}
