package store

import (
	"context"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

const (
	// rollUpAfter is how long after its end a day is added up: until then replicas write
	// what they had counted of it.
	rollUpAfter = 15 * time.Minute
	// rollUpKeys bounds the keys in one statement, so that none outlasts its connection.
	rollUpKeys = 10_000
)

// rollUp adds the days up that are over and are not told by usage_days, or have changed
// since, each in a transaction of its own. A day is added up whole, in place of what there
// was of it: how often does not matter.
//
// Whoever writes usage of such a day marks it in usage_days_done, and so waits for whoever
// is adding it up; what that one does not see, it marks.
//
// It tells whether all are added up. Until then no hour is forgotten, however old: after a
// long stop those of its last day are all that tells of that.
func (s *Store) rollUp(ctx context.Context, now time.Time, keysAtOnce int) (all bool, err error) {
	var days []time.Time
	err = s.manage.SelectContext(ctx, &days, `
		WITH first AS (
			SELECT LEAST((min(hour) AT TIME ZONE 'UTC')::date, (SELECT min(day) FROM usage_days_done)) AS day FROM usage_hours
		)
		SELECT s.at::date AS day
		FROM first, generate_series(GREATEST(first.day, $1::date)::timestamp, $2::date::timestamp, interval '1 day') AS s(at)
		WHERE first.day IS NOT NULL AND NOT EXISTS (SELECT FROM usage_days_done d WHERE d.day = s.at::date AND d.rolled_at IS NOT NULL)
		ORDER BY day`, now.Add(-s.usageDaysRetention).Format(time.DateOnly), now.Add(-rollUpAfter).AddDate(0, 0, -1).Format(time.DateOnly))
	if err != nil {
		return false, translate("add usage up", err)
	}
	for _, day := range days {
		mine := false
		err := s.tending(ctx, func(tx *sqlx.Tx) error {
			mine = true
			return rollUpDay(ctx, tx, day.Format(time.DateOnly), keysAtOnce)
		})
		if err != nil || !mine {
			return false, err // another replica is at it; a day that is passed over would be told by no table
		}
	}
	return true, nil
}

func rollUpDay(ctx context.Context, tx *sqlx.Tx, day string, keysAtOnce int) error {
	// First, so that what follows sees all that was there before the day's row was taken.
	if _, err := tx.ExecContext(ctx, `
		INSERT INTO usage_days_done (day, rolled_at) VALUES ($1, clock_timestamp())
		ON CONFLICT (day) DO UPDATE SET rolled_at = excluded.rolled_at`, day); err != nil {
		return err //nolint:wrapcheck // tending does
	}
	if _, err := tx.ExecContext(ctx, `DELETE FROM usage_days WHERE day = $1`, day); err != nil {
		return err //nolint:wrapcheck // tending does
	}
	var bounds pq.StringArray
	err := tx.GetContext(ctx, &bounds, `
		SELECT COALESCE(array_agg(id::text ORDER BY id), '{}') FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM api_keys) k WHERE n % $1 = 0`, keysAtOnce)
	if err != nil {
		return err //nolint:wrapcheck // tending does
	}
	from := noUUID
	for i := range len(bounds) + 1 {
		var to any // the last part has no end
		if i < len(bounds) {
			to = bounds[i]
		}
		if _, err := tx.ExecContext(ctx, `
			INSERT INTO usage_days (day, organization_id, key_id, secret_id, caller_id, shape_id, code, requests)
			SELECT $1::date, (array_agg(organization_id))[1], key_id, secret_id, caller_id, shape_id, code, sum(requests)
			FROM usage_hours
			WHERE hour >= $1::timestamp AT TIME ZONE 'UTC' AND hour < ($1::timestamp + interval '1 day') AT TIME ZONE 'UTC'
				AND key_id >= $2::uuid AND ($3::uuid IS NULL OR key_id < $3::uuid)
			GROUP BY key_id, secret_id, caller_id, shape_id, code`, day, from, to); err != nil {
			return err //nolint:wrapcheck // tending does
		}
		if i < len(bounds) {
			from = bounds[i]
		}
	}
	// Replicas have each counted as many networks apart as there is room for.
	_, err = tx.ExecContext(ctx, `
		WITH ranked AS (
			SELECT key_id, network, row_number() OVER (PARTITION BY key_id ORDER BY sum(requests) DESC, network) AS place
			FROM usage_networks
			WHERE day = $1 AND network NOT IN ('::/0', '::/128')
				AND key_id IN (SELECT key_id FROM usage_networks WHERE day = $1 GROUP BY key_id HAVING count(*) > $2)
			GROUP BY key_id, network
		), moved AS (
			DELETE FROM usage_networks n USING ranked r
			WHERE n.day = $1 AND n.key_id = r.key_id AND n.network = r.network AND r.place > $2
			RETURNING n.*
		)
		INSERT INTO usage_networks AS n (day, organization_id, key_id, scopes, network, allowed, requests)
		SELECT day, (array_agg(organization_id))[1], key_id, scopes, '::/0', allowed, sum(requests)
		FROM moved GROUP BY day, key_id, scopes, allowed
		ON CONFLICT (key_id, day, network, scopes, allowed) DO UPDATE SET requests = n.requests + excluded.requests`, day, maxKeyNetworks)
	return err //nolint:wrapcheck // tending does
}
