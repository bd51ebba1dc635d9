package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/authz"
)

const (
	// DefaultUsageRetention is for how long usage is kept by the hour.
	DefaultUsageRetention = 90 * 24 * time.Hour
	// DefaultUsageDaysRetention is for how long it is kept by the day and by network.
	DefaultUsageDaysRetention = 400 * 24 * time.Hour
	// keepUsageEvery is how often a replica looks after what is kept.
	keepUsageEvery = time.Hour
	// batchesKept is for how long a batch may be written again: much longer than a store
	// waits for an answer, or for Postgres.
	batchesKept = 24 * time.Hour
	// unmatchedKept bounds the shapes of an organization and day that are kept once the day
	// is over, of those whose paths or actions clients made up: the most frequent ones.
	unmatchedKept = 200
	// daysUncollapsed is how many days are looked at again: no replica may have been there.
	daysUncollapsed = 3
	// usageLock is an advisory lock: one replica at a time looks after usage, whichever.
	usageLock int64 = 0x6b73_7573_6167_65
)

// keepUsage makes room for what comes, and forgets what is old, until ctx ends.
func (s *Store) keepUsage(ctx context.Context) {
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-next.C:
		case <-ctx.Done():
			return
		}
		wait := keepUsageEvery
		if !s.admitted.Load() {
			wait = time.Second
		} else if err := s.tendUsage(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("usage could not be tidied up; it is tried again", slog.Any("error", err))
			wait = time.Minute
		}
		next.Reset(wait)
	}
}

// tendUsage does all of it once, unless another replica is doing it. Each part is done though
// another one cannot be: whoever may not make tables leaves everything in the default one.
func (s *Store) tendUsage(ctx context.Context) error {
	now := s.clock.Now().UTC()
	kept := usageKept{now, now.Add(-s.usageRetention), now.Add(-s.usageDaysRetention)}
	errs := []error{s.tending(ctx, func(tx *sqlx.Tx) error { return collapseUnmatched(ctx, tx, now.Truncate(24*time.Hour)) })}
	all, err := s.rollUp(ctx, now, rollUpKeys) // of shapes as they are now
	if errs = append(errs, err); !all {
		kept.hours = time.Time{} // they are needed still
	}
	for _, table := range usageTables {
		// One at a time: who writes takes all of them, in an order of its own.
		errs = append(errs, s.tending(ctx, func(tx *sqlx.Tx) error { return table.tend(ctx, tx, kept) }))
	}
	return errors.Join(append(errs, s.tending(ctx, func(tx *sqlx.Tx) error { return forgetUsage(ctx, tx, kept) }))...)
}

// usageKept is since when usage is kept.
type usageKept struct{ now, hours, days time.Time }

// forgetUsage takes away what no partition takes with it. A month is kept until all of it is
// older than the horizon.
func forgetUsage(ctx context.Context, tx *sqlx.Tx, kept usageKept) error {
	for _, old := range []struct {
		sql string
		at  time.Time
	}{
		{`DELETE FROM usage_hours_default WHERE hour < $1`, kept.hours},
		{`DELETE FROM usage_days_default WHERE day < $1::date`, kept.days},
		{`DELETE FROM usage_networks_default WHERE day < $1::date`, kept.days},
		{`DELETE FROM usage_days_done WHERE day < $1::date`, kept.days}, // whatever of them is left is not all there was
		{`DELETE FROM usage_shapes WHERE seen_on < $1::date`, kept.days.AddDate(0, -1, -2)},
		{`DELETE FROM usage_batches WHERE written_at < $1`, kept.now.Add(-batchesKept)},
	} {
		if _, err := tx.ExecContext(ctx, old.sql, old.at); err != nil {
			return err //nolint:wrapcheck // tending does
		}
	}
	return nil
}

// tending runs one transaction, unless another replica is at it.
func (s *Store) tending(ctx context.Context, do func(*sqlx.Tx) error) error {
	tx, err := s.manage.BeginTxx(ctx, nil)
	if err != nil {
		return translate("tidy up usage", err)
	}
	defer func() { _ = tx.Rollback() }()
	var mine bool
	if err = tx.GetContext(ctx, &mine, `SELECT pg_try_advisory_xact_lock($1)`, usageLock); err != nil || !mine {
		return translate("tidy up usage", err)
	}
	if err = do(tx); err == nil {
		err = tx.Commit()
	}
	return translate("tidy up usage", err)
}

// collapseUnmatched counts the rarer ones of a day's made-up shapes together, in each of the
// days before today that may not have been looked after.
func collapseUnmatched(ctx context.Context, tx *sqlx.Tx, today time.Time) error {
	collapsed, err := shapeRecord(authz.CollapsedShape(), "")
	if err != nil {
		return err
	}
	text, err := json.Marshal(collapsed)
	if err != nil {
		return err //nolint:wrapcheck // tending does
	}
	_, err = tx.ExecContext(ctx, `
		WITH ranked AS (
			SELECT date_trunc('day', u.hour, 'UTC') AS day, u.organization_id, u.shape_id,
				row_number() OVER (PARTITION BY date_trunc('day', u.hour, 'UTC'), u.organization_id
					ORDER BY sum(u.requests) DESC, u.shape_id) AS place
			FROM usage_hours u JOIN usage_shapes s ON s.id = u.shape_id
			WHERE u.hour >= $1::timestamptz AND u.hour < $4::timestamptz AND s.path <> ''
			GROUP BY 1, u.organization_id, u.shape_id
		), moved AS (
			DELETE FROM usage_hours u USING ranked r
			WHERE u.hour >= $1::timestamptz AND u.hour < $4::timestamptz AND date_trunc('day', u.hour, 'UTC') = r.day
				AND u.organization_id = r.organization_id AND u.shape_id = r.shape_id AND r.place > $2
			RETURNING u.*
		), shape AS (
			INSERT INTO usage_shapes AS s
			SELECT r.*, (clock_timestamp() AT TIME ZONE 'UTC')::date FROM json_to_record($3::json) AS r(`+usageShapeColumns+`)
			WHERE EXISTS (SELECT FROM moved)
			ON CONFLICT (id) DO UPDATE SET seen_on = excluded.seen_on
			RETURNING id
		), changed AS (
			INSERT INTO usage_days_done AS d (day)
			SELECT DISTINCT (hour AT TIME ZONE 'UTC')::date AS day FROM moved ORDER BY day
			ON CONFLICT (day) DO UPDATE SET rolled_at = NULL WHERE d.rolled_at IS NOT NULL
		)
		INSERT INTO usage_hours AS u (hour, organization_id, key_id, secret_id, caller_id, shape_id, code, requests)
		SELECT m.hour, m.organization_id, m.key_id, m.secret_id, m.caller_id, shape.id, m.code, sum(m.requests)
		FROM moved m, shape
		GROUP BY m.hour, m.organization_id, m.key_id, m.secret_id, m.caller_id, shape.id, m.code
		ON CONFLICT (hour, key_id, shape_id, caller_id, secret_id, code) DO UPDATE SET requests = u.requests + excluded.requests`,
		today.AddDate(0, 0, -daysUncollapsed), unmatchedKept, string(text), today)
	return err //nolint:wrapcheck // tending does
}

// usageTables are those with a partition a month; column is what they are parted by.
//
//nolint:gochecknoglobals // a constant, were arrays constant
var usageTables = [...]usageTable{{"usage_hours", "hour"}, {"usage_days", "day"}, {"usage_networks", "day"}}

type usageTable struct{ name, column string }

// partition is a month's, as a time's layout.
func (t usageTable) partition() string { return t.name + "_2006_01" }

// tend makes the partitions of this month and the next, and drops those that are older than
// the horizon. A month that has begun without one stays in the default partition.
func (t usageTable) tend(ctx context.Context, tx *sqlx.Tx, kept usageKept) error {
	// Whoever writes usage waits for this lock, and is not to wait long for whoever reads.
	if _, err := tx.ExecContext(ctx, `SET LOCAL lock_timeout = '2s'`); err != nil {
		return err //nolint:wrapcheck // tending does
	}
	horizon := kept.days
	if t.column == "hour" {
		horizon = kept.hours
	}
	var partitions []string
	err := tx.SelectContext(ctx, &partitions, `
		SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = $1::regclass`, t.name)
	if err != nil {
		return err //nolint:wrapcheck // tending does
	}
	month := time.Date(kept.now.Year(), kept.now.Month(), 1, 0, 0, 0, 0, time.UTC)
	for _, from := range []time.Time{month, month.AddDate(0, 1, 0)} {
		name, to := from.Format(t.partition()), from.AddDate(0, 1, 0)
		if slices.Contains(partitions, name) {
			continue
		}
		var begun bool
		err := tx.GetContext(ctx, &begun, fmt.Sprintf(`SELECT EXISTS (SELECT FROM %[1]s_default WHERE %[2]s >= $1 AND %[2]s < $2)`, t.name, t.column), from, to)
		if err != nil {
			return err //nolint:wrapcheck // tending does
		}
		if begun {
			continue
		}
		if _, err := tx.ExecContext(ctx, fmt.Sprintf(
			`CREATE TABLE %s PARTITION OF %s FOR VALUES FROM ('%s') TO ('%s') WITH (fillfactor = 80)`,
			name, t.name, from.Format(time.RFC3339), to.Format(time.RFC3339))); err != nil {
			return err //nolint:wrapcheck // tending does
		}
	}
	for _, name := range partitions {
		from, err := time.Parse(t.partition(), name)
		if err != nil || from.AddDate(0, 1, 0).After(horizon) {
			continue // the default one, or one with something to keep
		}
		if _, err := tx.ExecContext(ctx, `DROP TABLE `+name); err != nil {
			return err //nolint:wrapcheck // tending does
		}
	}
	return nil
}
