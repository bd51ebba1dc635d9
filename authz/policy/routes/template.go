package routes

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

var (
	// literal is what a segment of the catalogue may be: of characters that nobody writes encoded.
	literal = regexp.MustCompile(`^[A-Za-z0-9._~-]+$`)
	// variable is a whole segment of OpenAPI.
	variable = regexp.MustCompile(`^\{([^{}/]+)\}$`)
	// hump is where a name goes on in another word.
	hump = regexp.MustCompile(`([a-z0-9])([A-Z])|([A-Z])([A-Z][a-z])`)
	// other is what the catalogue's names do not have.
	other = regexp.MustCompile(`[^a-z0-9]+`)
)

// Template is a path of an OpenAPI document, below a base, as the catalogue has it: variables
// are whole segments, and called in lower case.
func Template(base, path string) (string, error) {
	switch {
	case !strings.HasPrefix(path, "/"):
		return "", errors.New("a path begins with a slash")
	case base != "" && !strings.HasPrefix(base, "/"):
		return "", errors.New("a base path begins with a slash")
	case strings.ContainsAny(base+path, "?#"):
		return "", errors.New("a path has neither a query nor a fragment")
	}
	whole := strings.TrimRight(base, "/") + path
	if whole == "/" {
		return whole, nil
	}
	if strings.HasSuffix(whole, "/") {
		return "", errors.New("it ends with a slash, and such a path is denied as ambiguous: the API must serve it without")
	}
	var out strings.Builder
	seen := map[string]bool{}
	for _, segment := range strings.Split(whole[1:], "/") {
		if found := variable.FindStringSubmatch(segment); found != nil {
			name, err := variableName(found[1], seen)
			if err != nil {
				return "", err
			}
			fmt.Fprintf(&out, "/{%s}", name)
			continue
		}
		if strings.ContainsAny(segment, "{}") {
			return "", fmt.Errorf("the segment %q is a variable in part; in the catalogue it is one as a whole, or a text", segment)
		}
		plain, err := url.PathUnescape(segment)
		if err != nil || plain == "." || plain == ".." || !literal.MatchString(plain) {
			return "", fmt.Errorf("the segment %q has other characters than letters, digits and -._~", segment)
		}
		out.WriteString("/" + plain)
	}
	return out.String(), nil
}

// variableName is a variable's in the catalogue: ticketId is ticket_id.
func variableName(name string, seen map[string]bool) (string, error) {
	if strings.ContainsAny(name, "+*") || strings.HasSuffix(name, "...") {
		return "", fmt.Errorf("{%s} stands for several segments, and in the catalogue a variable is one", name)
	}
	name = hump.ReplaceAllString(name, "${1}${3}_${2}${4}")
	name = strings.Trim(other.ReplaceAllString(strings.ToLower(name), "_"), "_")
	if name == "" || name[0] < 'a' {
		name = "p" + name
	}
	for base, n := name, 2; seen[name]; n++ {
		name = fmt.Sprintf("%s_%d", base, n)
	}
	seen[name] = true
	return name, nil
}

// segments are a template's; none for the root.
func segments(template string) []string {
	if template == "/" {
		return nil
	}
	return strings.Split(strings.TrimPrefix(template, "/"), "/")
}

func isVariable(segment string) bool { return strings.HasPrefix(segment, "{") }

// shape is what a template matches, whatever its variables are called.
func shape(template string) string {
	parts := segments(template)
	for i, s := range parts {
		if isVariable(s) {
			parts[i] = "{}"
		}
	}
	return "/" + strings.Join(parts, "/")
}

// ambiguous tells that some path matches both of two templates and neither is the narrower one,
// as the catalogue's own test has it. They have the same number of segments and differ in shape.
func ambiguous(a, b string) bool {
	left, right := segments(a), segments(b)
	leftOnly, rightOnly := false, false
	for i := range left {
		switch l, r := isVariable(left[i]), isVariable(right[i]); {
		case !l && !r && left[i] != right[i]:
			return false
		case !l && r:
			leftOnly = true
		case l && !r:
			rightOnly = true
		}
	}
	return leftOnly && rightOnly
}
