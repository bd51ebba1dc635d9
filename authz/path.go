package authz

import (
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"
)

// SplitPath splits a path, still percent-encoded and without its query, into
// segments, each decoded once. A path that two readers could understand
// differently is ambiguous and has no segments: one that does not start with a
// slash, ends with one, or holds `..`, `.`, `//`, `;`, `\`, `?`, `#`, a control
// character, an encoded slash, dot or percent, a broken escape, or bytes that
// are not UTF-8. Such differences are how a check on one path is followed by a
// request for another (CWE-22, CWE-180).
func SplitPath(path string) (segments []string, ambiguous bool) {
	if path == "/" {
		return []string{}, false
	}
	if path == "" || path[0] != '/' || path[len(path)-1] == '/' {
		return nil, true
	}
	rest := path[1:]
	segments = make([]string, 0, strings.Count(rest, "/")+1)
	for more := true; more; {
		var raw string
		raw, rest, more = strings.Cut(rest, "/")
		segment, ok := decodeSegment(raw)
		if !ok {
			return nil, true
		}
		segments = append(segments, segment)
	}
	return segments, false
}

func decodeSegment(raw string) (string, bool) {
	if raw == "" || strings.ContainsAny(raw, "?#") {
		return "", false
	}
	segment := raw
	if strings.IndexByte(raw, '%') >= 0 {
		decoded, err := url.PathUnescape(raw)
		// More dots than before decoding: one was encoded, to be overlooked.
		if err != nil || strings.Count(decoded, ".") != strings.Count(raw, ".") {
			return "", false
		}
		segment = decoded
		if strings.ContainsAny(segment, "/%") {
			return "", false
		}
	}
	if segment == "." || segment == ".." {
		return "", false
	}
	for i := 0; i < len(segment); {
		c := segment[i]
		if c < utf8.RuneSelf {
			if c < ' ' || c == 0x7f || c == ';' || c == '\\' {
				return "", false
			}
			i++
			continue
		}
		r, size := utf8.DecodeRuneInString(segment[i:])
		if r == utf8.RuneError && size == 1 || unicode.IsControl(r) {
			return "", false
		}
		i += size
	}
	return segment, true
}
