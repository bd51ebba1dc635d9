package authz

import (
	"errors"
	"fmt"
	"slices"
)

// Overreach says why nobody may be allowed this, whatever policy says: nil for a denial, and for
// an allow that keeps what no policy may give away. It is asked about every allow: a policy is
// tried with some thousand questions before it is in force, and could allow too much where none of
// them is, such as for keys with some metadata, or while Postgres does not answer.
//
// An allow requires scopes, and the key has them all; the caller serves the key's environment,
// which is the one asked for; a resource is of no other organization; a key that is fenced by
// address is used from inside; and the path can be read in one way alone.
func (v *Verdict) Overreach(k *Key, c *Check) error {
	if !v.Allow {
		return nil
	}
	if len(v.Required) == 0 {
		return errNothingRequired
	}
	for _, scope := range v.Required {
		if !slices.Contains(k.Scopes, scope) {
			return fmt.Errorf("policy allowed what requires %s to a key that lacks it", scope)
		}
	}
	switch {
	case c.Caller == nil || !slices.Contains(c.Caller.Environments, k.Environment):
		return errForeignCaller
	case c.Environment != "" && c.Environment != k.Environment:
		return errOtherEnvironment
	case ownerOf(k, c.Resource.Organization) == OwnerOther:
		return errForeignResource
	case len(k.AllowedCIDRs) > 0 && !inside(k, c.ClientIP) && !inside(k, c.ClientIP.Unmap()):
		return errOutside
	case c.Ambiguous:
		return errAmbiguous
	}
	return nil
}

var (
	errNothingRequired  = errors.New("policy allowed and required no scope")
	errForeignCaller    = errors.New("policy allowed a key of an environment that the caller does not serve")
	errOtherEnvironment = errors.New("policy allowed a key of another environment than the one asked for")
	errForeignResource  = errors.New("policy allowed what belongs to another organization")
	errOutside          = errors.New("policy allowed a key from outside of its fence of addresses")
	errAmbiguous        = errors.New("policy allowed a path that can be read in two ways")
)
