package store

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

// usageFrom are the rows of a window, by the hour or by the day, of a tenant's organization
// or key. Its arguments are those of usageArgs.
const (
	usageFrom = ` FROM (%s) u
	WHERE ($1::boolean OR u.organization_id = $2::uuid) AND u.organization_id = $3::uuid AND ($4::uuid IS NULL OR u.key_id = $4::uuid) `
	usageByHour = `
		SELECT hour AS at, organization_id, key_id, secret_id, caller_id, shape_id, code, requests FROM usage_hours
		WHERE hour >= $5::timestamptz AND hour < $6::timestamptz`
	usageByDay = `
		SELECT day::timestamp AT TIME ZONE 'UTC' AS at, organization_id, key_id, secret_id, caller_id, shape_id, code, requests
		FROM usage_by_day(($5::timestamptz AT TIME ZONE 'UTC')::date, ($6::timestamptz AT TIME ZONE 'UTC')::date)`

	// usageCounts are a group's.
	usageCounts = ` sum(u.requests)::bigint AS requests, COALESCE(sum(u.requests) FILTER (WHERE u.code = 'allowed'), 0)::bigint AS allowed,
		COALESCE(sum(u.requests) FILTER (WHERE u.code = 'rate_limited'), 0)::bigint AS limited `
	// usageTop has the greatest groups alone, $7 of them; groups is how many there are.
	usageTop = ` ORDER BY requests DESC, 1, 2 LIMIT $7`
)

// usageReading reads one manage.Usage.
type usageReading struct {
	*reads

	tenant manage.Tenant
	filter manage.UsageFilter
	// from is usageFrom of the filter's step.
	from string
}

// Usage implements manage.Reader.
func (r *reads) Usage(ctx context.Context, t manage.Tenant, f manage.UsageFilter) (*manage.Usage, error) {
	u := &usageReading{reads: r, tenant: t, filter: f, from: fmt.Sprintf(usageFrom, usageByDay)}
	if f.Step == manage.UsageHourly {
		u.from = fmt.Sprintf(usageFrom, usageByHour)
	}
	out := &manage.Usage{UsageFilter: f}
	parts := []func(context.Context, *manage.Usage) error{u.countedSince, u.series, u.routes, u.callers, u.networks}
	if f.Key.IsZero() {
		parts = append(parts, u.keys)
	} else {
		parts = append(parts, u.secrets, u.scopes)
	}
	for _, part := range parts {
		if err := part(ctx, out); err != nil {
			return nil, translate("read usage", err)
		}
	}
	return out, nil
}

// args are those of usageFrom, and more.
func (u *usageReading) args(more ...any) []any {
	f := u.filter
	return append([]any{u.tenant.Everyone(), u.tenant.Organization(), f.Organization, f.Key, f.Since, f.Until}, more...)
}

// countedByDay is since when usage_by_day tells all that was counted: what is before the first
// day that was added up is told by nobody.
const countedByDay = `CASE WHEN EXISTS (SELECT FROM usage_days_done WHERE rolled_at IS NOT NULL)
	THEN (SELECT min(day) FROM usage_days_done)::timestamp AT TIME ZONE 'UTC' ELSE (SELECT min(hour) FROM usage_hours) END`

// countedSince is when counting began, or since when its hours are there.
func (u *usageReading) countedSince(ctx context.Context, out *manage.Usage) error {
	if !u.tenant.Sees(u.filter.Organization) {
		return nil
	}
	query := `SELECT min(hour) FROM usage_hours`
	if u.filter.Step == manage.UsageDaily {
		query = `SELECT ` + countedByDay
	}
	var at sql.NullTime
	err := u.tx.GetContext(ctx, &at, query)
	out.CountedSince = utc(at)
	return err //nolint:wrapcheck // Usage does
}

func (u *usageReading) series(ctx context.Context, out *manage.Usage) error {
	var rows []struct {
		At       time.Time  `db:"at"`
		Code     authz.Code `db:"code"`
		Requests int64      `db:"requests"`
	}
	err := u.tx.SelectContext(ctx, &rows, `SELECT u.at, u.code, sum(u.requests)::bigint AS requests`+u.from+`GROUP BY u.at, u.code ORDER BY u.at`, u.args()...)
	if err != nil {
		return err //nolint:wrapcheck // Usage does
	}
	codes := map[authz.Code]int64{}
	for _, row := range rows {
		at := row.At.UTC()
		if n := len(out.Series); n == 0 || !out.Series[n-1].At.Equal(at) {
			out.Series = append(out.Series, manage.UsagePoint{At: at})
		}
		for _, c := range []*manage.UsageCounts{&out.UsageCounts, &out.Series[len(out.Series)-1].UsageCounts} {
			c.Requests += row.Requests
			switch row.Code {
			case authz.CodeAllowed:
				c.Allowed += row.Requests
			case authz.CodeRateLimited:
				c.Limited += row.Requests
			}
		}
		codes[row.Code] += row.Requests
	}
	for code, n := range codes {
		out.Codes = append(out.Codes, manage.UsageCode{Code: code, Requests: n})
	}
	slices.SortFunc(out.Codes, func(a, b manage.UsageCode) int {
		return cmp.Or(cmp.Compare(b.Requests, a.Requests), cmp.Compare(a.Code, b.Code))
	})
	return nil
}

// usageGroup is what a group's counts are read into, with how many groups there are.
type usageGroup struct {
	Requests int64 `db:"requests"`
	Allowed  int64 `db:"allowed"`
	Limited  int64 `db:"limited"`
	Groups   int   `db:"groups"`
}

func (g usageGroup) counts() manage.UsageCounts {
	return manage.UsageCounts{Requests: g.Requests, Allowed: g.Allowed, Limited: g.Limited}
}

// topOf makes a list of a part of groups: of all is how many requests there were.
func topOf[T, R any](rows []R, of int64, read func(R) (T, usageGroup)) manage.UsageTop[T] {
	top := manage.UsageTop[T]{RestRequests: of}
	for _, row := range rows {
		item, group := read(row)
		top.Items = append(top.Items, item)
		top.Rest = group.Groups - len(rows)
		top.RestRequests -= group.Requests
	}
	return top
}

func (u *usageReading) routes(ctx context.Context, out *manage.Usage) error {
	type row struct {
		usageGroup

		Method string `db:"method"`
		Route  string `db:"route"`
		Action string `db:"action"`
	}
	var rows []row
	// What is not told apart, and what was denied before its route was looked at, is in the rest.
	err := u.tx.SelectContext(ctx, &rows, `
		SELECT s.method, s.route || s.path AS route, CASE WHEN s.route || s.path = '' THEN s.action ELSE '' END AS action, count(*) OVER () AS groups,`+
		usageCounts+fmt.Sprintf(` FROM (SELECT u.shape_id, u.code, u.requests %s) u JOIN usage_shapes s ON s.id = u.shape_id
		WHERE NOT s.collapsed AND NOT s.ambiguous`, u.from)+` GROUP BY 1, 2, 3`+usageTop, u.args(u.filter.Top)...)
	out.Routes = topOf(rows, out.Requests, func(r row) (manage.UsageRoute, usageGroup) {
		return manage.UsageRoute{Method: r.Method, Route: r.Route, Action: r.Action, UsageCounts: r.counts()}, r.usageGroup
	})
	return err //nolint:wrapcheck // Usage does
}

func (u *usageReading) callers(ctx context.Context, out *manage.Usage) error {
	type row struct {
		usageGroup

		ID   authz.CallerID `db:"caller_id"`
		Name string         `db:"name"`
	}
	var rows []row
	err := u.tx.SelectContext(ctx, &rows, `
		SELECT u.caller_id, COALESCE((SELECT name FROM callers WHERE id = u.caller_id AND $1::boolean), '') AS name, count(*) OVER () AS groups,`+
		usageCounts+u.from+`GROUP BY u.caller_id`+usageTop, u.args(u.filter.Top)...)
	out.Callers = topOf(rows, out.Requests, func(r row) (manage.UsageCaller, usageGroup) {
		return manage.UsageCaller{ID: r.ID, Name: r.Name, UsageCounts: r.counts()}, r.usageGroup
	})
	return err //nolint:wrapcheck // Usage does
}

func (u *usageReading) keys(ctx context.Context, out *manage.Usage) error {
	type row struct {
		usageGroup

		ID          authz.KeyID       `db:"key_id"`
		Name        string            `db:"name"`
		Environment authz.Environment `db:"environment"`
	}
	var rows []row
	err := u.tx.SelectContext(ctx, &rows, `
		SELECT u.*, COALESCE(k.name, '') AS name, COALESCE(k.environment, '') AS environment
		FROM (SELECT u.key_id, count(*) OVER () AS groups,`+usageCounts+u.from+`GROUP BY u.key_id`+usageTop+`) u
		LEFT JOIN api_keys k ON k.id = u.key_id AND k.organization_id = $3::uuid ORDER BY u.requests DESC, u.key_id`, u.args(u.filter.Top)...)
	out.Keys = topOf(rows, out.Requests, func(r row) (manage.UsageKey, usageGroup) {
		return manage.UsageKey{ID: r.ID, Name: r.Name, Environment: r.Environment, UsageCounts: r.counts()}, r.usageGroup
	})
	return err //nolint:wrapcheck // Usage does
}

// networks are of full days, whatever the step.
func (u *usageReading) networks(ctx context.Context, out *manage.Usage) error {
	type row struct {
		usageGroup

		Network string `db:"network"`
		All     int64  `db:"all"`
	}
	var rows []row
	err := u.tx.SelectContext(ctx, &rows, `
		SELECT n.*, sum(n.requests) OVER ()::bigint AS all, count(*) FILTER (WHERE n.network <> '::/0') OVER () AS groups
		FROM (SELECT network::text AS network, sum(requests)::bigint AS requests, COALESCE(sum(requests) FILTER (WHERE allowed), 0)::bigint AS allowed
			FROM usage_networks u
			WHERE ($1::boolean OR organization_id = $2::uuid) AND organization_id = $3::uuid AND ($4::uuid IS NULL OR key_id = $4::uuid)
				AND day >= ($5::timestamptz AT TIME ZONE 'UTC')::date AND day < (($6::timestamptz + interval '1 day' - interval '1 microsecond') AT TIME ZONE 'UTC')::date
			GROUP BY network) n
		ORDER BY n.network = '::/0', n.requests DESC, n.network LIMIT $7`, u.args(u.filter.Top)...)
	if err != nil || len(rows) == 0 {
		return err //nolint:wrapcheck // Usage does
	}
	of := rows[0].All
	if last := len(rows) - 1; rows[last].Network == otherNetworks.String() {
		rows = rows[:last] // they are in the rest
	}
	out.Networks = topOf(rows, of, func(r row) (manage.UsageNetwork, usageGroup) {
		network, _ := netip.ParsePrefix(r.Network) // Postgres' own text
		if network == noNetwork {
			network = netip.Prefix{}
		}
		return manage.UsageNetwork{Network: network, UsageCounts: r.counts()}, r.usageGroup
	})
	return nil
}

// useRow is who used something last.
type useRow struct {
	First   sql.NullTime   `db:"first_used_at"`
	Last    sql.NullTime   `db:"used_at"`
	Caller  authz.CallerID `db:"caller_id"`
	Name    sql.NullString `db:"caller_name"`
	Network sql.NullString `db:"network"`
}

// Callers are the platform's: $1 is whether it asks.
const useColumns = ` x.first_used_at, x.used_at, x.caller_id, (SELECT name FROM callers WHERE id = x.caller_id AND $1::boolean) AS caller_name, x.network::text AS network `

func (r useRow) use() manage.LastUse {
	use := manage.LastUse{First: utc(r.First), Last: utc(r.Last), Caller: r.Caller, CallerName: r.Name.String}
	if r.Network.Valid {
		use.Network, _ = netip.ParsePrefix(r.Network.String) // Postgres' own text
	}
	return use
}

func (u *usageReading) secrets(ctx context.Context, out *manage.Usage) error {
	var rows []struct {
		useRow

		ID       authz.SecretID `db:"id"`
		Requests int64          `db:"requests"`
		Recent   int64          `db:"recent"`
	}
	err := u.tx.SelectContext(ctx, &rows, `
		SELECT s.id, COALESCE(w.requests, 0) AS requests, COALESCE(n.requests, 0) AS recent,`+useColumns+`
		FROM key_secrets s
		LEFT JOIN secret_uses x ON x.secret_id = s.id
		LEFT JOIN (SELECT u.secret_id, sum(u.requests)::bigint AS requests`+u.from+`GROUP BY u.secret_id) w ON w.secret_id = s.id
		LEFT JOIN (SELECT secret_id, sum(requests)::bigint AS requests FROM usage_hours
			WHERE organization_id = $3::uuid AND key_id = $4::uuid AND hour >= $7::timestamptz GROUP BY secret_id) n ON n.secret_id = s.id
		WHERE s.key_id = $4::uuid AND s.revoked_at IS NULL
			AND EXISTS (SELECT FROM api_keys k WHERE k.id = s.key_id AND k.organization_id = $3::uuid AND ($1::boolean OR k.organization_id = $2::uuid))`,
		u.args(u.filter.Recent)...)
	for _, row := range rows {
		out.Secrets = append(out.Secrets, manage.UsageSecret{
			KeySecret: manage.KeySecret{ID: row.ID}, Requests: row.Requests, Recent: row.Recent, Use: row.use(),
		})
	}
	return err //nolint:wrapcheck // Usage does
}

func (u *usageReading) scopes(ctx context.Context, out *manage.Usage) error {
	var rows []struct {
		useRow

		Scope    authz.Scope `db:"scope"`
		Requests int64       `db:"requests"`
	}
	err := u.tx.SelectContext(ctx, &rows, fmt.Sprintf(`
		SELECT COALESCE(x.scope, w.scope) AS scope, COALESCE(w.requests, 0) AS requests,`+useColumns+`
		FROM (SELECT * FROM scope_uses WHERE key_id = $4::uuid
			AND EXISTS (SELECT FROM api_keys k WHERE k.id = $4::uuid AND k.organization_id = $3::uuid AND ($1::boolean OR k.organization_id = $2::uuid))) x
		FULL JOIN (SELECT unnest(s.scopes) AS scope, sum(u.requests)::bigint AS requests
			FROM (SELECT u.shape_id, u.requests %s AND u.code = 'allowed') u JOIN usage_shapes s ON s.id = u.shape_id GROUP BY 1) w ON w.scope = x.scope
		ORDER BY 1`, u.from), u.args()...)
	for _, row := range rows {
		out.Scopes = append(out.Scopes, manage.UsageScope{Scope: row.Scope, Requests: row.Requests, Use: row.use()})
	}
	return err //nolint:wrapcheck // Usage does
}
