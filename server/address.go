package server

import (
	"net/http"
	"net/netip"
	"strings"

	"github.com/supportstation/keystile/authz"
)

// clientAddress returns the address of a request's client; the zero Addr is unknown.
// X-Forwarded-For is believed from trusted proxies alone, from the right, as far as
// trusted proxies wrote it: what stands left of that is the client's own word.
func clientAddress(r *http.Request, trusted []netip.Prefix) netip.Addr {
	last := authz.NormalizeAddr(r.RemoteAddr)
	if !within(last, trusted) {
		return last
	}
	hops := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		hop := authz.NormalizeAddr(strings.TrimSpace(hops[i]))
		if !hop.IsValid() {
			return last
		}
		last = hop
		if !within(hop, trusted) {
			return hop
		}
	}
	return last
}

func within(addr netip.Addr, prefixes []netip.Prefix) bool {
	for _, p := range prefixes {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}
