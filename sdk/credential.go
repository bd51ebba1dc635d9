package keystile

import (
	"net/http"
	"net/netip"
	"strings"
)

// presentedKey takes the key from Authorization: Bearer or X-API-Key; "" when
// neither was sent. Two values for one header, or two different credentials,
// are refused: the component in front may have looked at the other one.
func presentedKey(h http.Header) (string, Code) {
	authorization, apiKey := h["Authorization"], h["X-Api-Key"]
	if len(authorization) > 1 || len(apiKey) > 1 {
		return "", CodeDuplicateCredential
	}
	var bearer, key string
	var isBearer bool
	if len(authorization) == 1 {
		bearer, isBearer = bearerToken(authorization[0])
	}
	if len(apiKey) == 1 {
		key = strings.Trim(apiKey[0], " \t")
	}
	switch {
	case key == "":
		return bearer, ""
	case len(authorization) == 1 && (!isBearer || bearer != key):
		return "", CodeConflictingCredentials
	}
	return key, ""
}

// bearerToken follows RFC 6750 §2.1; the scheme's case does not matter (RFC 9110 §11.1).
func bearerToken(value string) (string, bool) {
	scheme, token, _ := strings.Cut(strings.Trim(value, " \t"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", false
	}
	return strings.Trim(token, " \t"), true
}

// overridesMethod finds headers by which some frameworks serve another method
// than the one that was checked.
func overridesMethod(h http.Header) bool {
	for _, name := range []string{"X-Http-Method-Override", "X-Http-Method", "X-Method-Override"} {
		if _, sent := h[name]; sent {
			return true
		}
	}
	return false
}

// fromBrowser tells whether a request is one that a browser sent.
//
// Sec-Fetch-Site (https://www.w3.org/TR/fetch-metadata/) is a header that no script in a page
// can set or remove, and that needs an origin to be relative to, which a server has not:
// Node's fetch sends Sec-Fetch-Mode, and never this one. Browsers send it to https and to
// loopback alone, and Safari does since 16.4; for the others an Origin counts together with
// the Mozilla/ by which every browser begins its User-Agent. An Origin alone does not: clients
// of websockets, and servers that call what checks it, send one, too.
func fromBrowser(h http.Header) bool {
	switch h.Get("Sec-Fetch-Site") {
	case "cross-site", "same-site", "same-origin", "none":
		return true
	}
	return h.Get("Origin") != "" && strings.HasPrefix(h.Get("User-Agent"), "Mozilla/")
}

// withoutCredentials copies h without what must not reach handlers and their
// logs: the key, and X-Keystile-* headers, by which a client could pose as
// someone whom a proxy has checked.
func withoutCredentials(h http.Header) http.Header {
	clean := h.Clone()
	for name := range clean {
		if strings.HasPrefix(name, "X-Keystile-") {
			delete(clean, name)
		}
	}
	delete(clean, "Authorization")
	delete(clean, "X-Api-Key")
	return clean
}

// remoteAddress is the connection's peer. Headers do not count: any client can
// send them.
func remoteAddress(r *http.Request) string {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return peer.Addr().String()
}

// normalAddress returns "" for what is no address, so that a key bound to
// addresses is refused.
func normalAddress(s string) string {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return ""
	}
	return addr.Unmap().WithZone("").String()
}
