package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/supportstation/keystile/authz"
)

// catalogueOf reads data.keystile.catalog: the scopes that keys can have and the
// plans of organizations. A policy without them lists nothing, so that no key can be
// given anything; what is there and has no sense is refused.
func catalogueOf(data map[string]any) (authz.Catalogue, error) {
	raw, err := json.Marshal(objectAt(data, "keystile", "catalog"))
	if err != nil {
		return authz.Catalogue{}, fmt.Errorf("data.keystile.catalog: %w", err)
	}
	var catalog struct {
		Scopes map[string]struct {
			Description string `json:"description"`
		} `json:"scopes"`
		Plans map[string]struct {
			Rate          int `json:"rate"`
			PeriodSeconds int `json:"period_seconds"`
			Burst         int `json:"burst"`
			MaxKeys       int `json:"max_keys"`
		} `json:"plans"`
	}
	if err := json.Unmarshal(raw, &catalog); err != nil {
		return authz.Catalogue{}, errors.New("data.keystile.catalog: scopes are name: {description}, plans are name: {rate, period_seconds, burst, max_keys}")
	}
	var c authz.Catalogue
	for _, name := range slices.Sorted(maps.Keys(catalog.Scopes)) {
		if !authz.Scope(name).Valid() {
			return authz.Catalogue{}, fmt.Errorf("data.keystile.catalog.scopes: %q does not have the form resource:verb", name)
		}
		c.Scopes = append(c.Scopes, authz.CatalogueScope{Scope: authz.Scope(name), Description: catalog.Scopes[name].Description})
	}
	for _, name := range slices.Sorted(maps.Keys(catalog.Plans)) {
		p := catalog.Plans[name]
		plan := authz.Plan{Name: name, MaxKeys: p.MaxKeys, Rate: authz.Rate{
			Rate: p.Rate, Period: time.Duration(p.PeriodSeconds) * time.Second, Burst: p.Burst,
		}}
		if err := plan.Rate.Validate(); err != nil {
			return authz.Catalogue{}, fmt.Errorf("data.keystile.catalog.plans.%s: %w", name, err)
		}
		if plan.MaxKeys < 0 {
			return authz.Catalogue{}, fmt.Errorf("data.keystile.catalog.plans.%s: max_keys is negative", name)
		}
		c.Plans = append(c.Plans, plan)
	}
	return c, nil
}

// eachTemplate walks the routes of data.keystile.catalog: method, number of segments,
// template. What has not that form is left out.
func eachTemplate(data map[string]any, do func(method, template string)) {
	for method, sizes := range objectAt(data, "keystile", "catalog", "routes") {
		buckets, _ := sizes.(map[string]any)
		for _, templates := range buckets {
			bucket, _ := templates.(map[string]any)
			for template := range bucket {
				do(method, template)
			}
		}
	}
}

// objectAt is the object at a path of the data, nil for what is none.
func objectAt(data map[string]any, path ...string) map[string]any {
	for _, name := range path {
		data, _ = data[name].(map[string]any)
	}
	return data
}
