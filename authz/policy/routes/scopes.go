package routes

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/supportstation/keystile/authz"
)

// scopes are those that an operation needs: of the extension, or of security, or the default.
func (r *reader) scopes(item *openapi3.PathItem, o *openapi3.Operation) ([]authz.Scope, error) {
	names, said, err := extended(item, o)
	if err == nil && !said {
		names, err = secured(r.doc, o)
	}
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		if r.options.DefaultScope == "" {
			return nil, errors.New("it names no scope, and without one nothing is allowed: give it " + ExtensionScopes +
				", or leave it out with " + ExtensionSkip + " or --skip, or use --default-scope")
		}
		return []authz.Scope{r.options.DefaultScope}, nil
	}
	scopes := make([]authz.Scope, 0, len(names))
	for _, name := range names {
		scope, mapped := r.options.ScopeMap[name]
		if !mapped {
			scope = authz.Scope(name)
		}
		if !scope.Valid() {
			return nil, fmt.Errorf("the scope %q does not have the form resource:verb: say which one it is with --scope-map %s=resource:verb", name, name)
		}
		scopes = append(scopes, scope)
	}
	slices.Sort(scopes)
	return slices.Compact(scopes), nil
}

// extended are the scopes of the extension, if it is there.
func extended(item *openapi3.PathItem, o *openapi3.Operation) (names []string, said bool, err error) {
	for _, extensions := range []map[string]any{o.Extensions, item.Extensions} {
		value, ok := extensions[ExtensionScopes]
		if !ok {
			continue
		}
		wrong := errors.New(ExtensionScopes + " is a scope or a list of scopes")
		switch v := value.(type) {
		case string:
			return []string{v}, true, nil
		case []any:
			for _, one := range v {
				name, ok := one.(string)
				if !ok {
					return nil, true, wrong
				}
				names = append(names, name)
			}
			if len(names) > 0 {
				return names, true, nil
			}
		}
		return nil, true, wrong
	}
	return nil, false, nil
}

// secured are the scopes of security. Of its alternatives those without a scope ask for less,
// and are not what protects; two that ask for different scopes cannot be said in the catalogue,
// where a route needs all of its scopes.
func secured(doc *openapi3.T, o *openapi3.Operation) ([]string, error) {
	alternatives := doc.Security
	if o.Security != nil {
		alternatives = *o.Security
	}
	var found []string
	for _, alternative := range alternatives {
		var names []string
		for _, scopes := range alternative {
			names = append(names, scopes...)
		}
		slices.Sort(names)
		names = slices.Compact(names)
		switch {
		case len(names) == 0:
		case found == nil:
			found = names
		case !slices.Equal(found, names):
			return nil, fmt.Errorf("security leaves the choice between %s and %s: say which it needs with %s",
				strings.Join(found, "+"), strings.Join(names, "+"), ExtensionScopes)
		}
	}
	return found, nil
}

// descriptions reads what the document says of its scopes.
func (r *reader) descriptions() {
	if r.doc.Components == nil {
		return
	}
	for _, scheme := range r.doc.Components.SecuritySchemes {
		if scheme == nil || scheme.Value == nil || scheme.Value.Flows == nil {
			continue
		}
		f := scheme.Value.Flows
		for _, flow := range []*openapi3.OAuthFlow{f.Implicit, f.Password, f.ClientCredentials, f.AuthorizationCode} {
			if flow == nil {
				continue
			}
			for name, text := range flow.Scopes {
				scope, mapped := r.options.ScopeMap[name]
				if !mapped {
					scope = authz.Scope(name)
				}
				if text = oneLine(text); text != "" {
					r.out.Descriptions[scope] = text
				}
			}
		}
	}
}
