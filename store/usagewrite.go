package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql/driver"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/lib/pq"

	"github.com/supportstation/keystile/authz"
)

const (
	// maxUsageAtOnce bounds the rows of one table in one statement, give or take one count's.
	maxUsageAtOnce = 5_000
	// maxHalvings bounds the search for bad rows in what is written at a time: it finds five of
	// them among as many as a batch has.
	maxHalvings = 64
	// lastUsageLimit bounds the last writing of a store that is closed: as much as waits at
	// most takes a second or two.
	lastUsageLimit = 5 * time.Second
)

// usageBatch is written once: its id tells whether it was.
type usageBatch struct {
	id   string
	rows []usageRow
	// n is the decisions in rows.
	n int64
}

// recordUsage writes until ctx ends, and what is left then.
func (s *Store) recordUsage(ctx context.Context) {
	record(ctx, flushEvery, s.flushUsage, func(err error) {
		s.log.Warn("usage cannot be written; it waits", slog.Any("error", err))
	}, func(ctx context.Context) {
		flushLast(ctx, lastUsageLimit, s.flushUsage, func(err error) {
			lost := s.usage.counted() - s.usage.stored.Load() - s.usage.dropped.Load()
			kept, unkept := s.spillUsage()
			if kept > 0 {
				s.log.Warn("the last usage could not be written; it is kept for the next start", slog.Int64("decisions", kept),
					slog.String("folder", s.spillDir), slog.Any("error", err))
			}
			if lost -= kept; lost > 0 {
				s.usage.dropped.Add(lost)
				s.log.Error("the last usage could not be written; it is lost", slog.Int64("decisions", lost), slog.Any("error", errors.Join(err, unkept)))
			}
		})
	})
}

// flushUsage writes what was counted. While a batch cannot be written nothing more is taken:
// counts go on in memory, where they are bounded. It is for one at a time.
func (s *Store) flushUsage(ctx context.Context) error {
	s.usageWriting.Lock()
	defer s.usageWriting.Unlock()
	if !s.admitted.Load() {
		return nil // nothing is written to a database that may not be ours
	}
	if err := s.recoverUsage(ctx); err != nil {
		return err
	}
	// What waits, and then what has come since.
	if err := s.writeBatches(ctx); err != nil {
		return err
	}
	applied := s.applied.Load()
	s.usageBatches = batchesOf(s.usage.take(s.clock.Now().Unix() / 3600))
	if err := s.writeBatches(ctx); err != nil {
		return err
	}
	if applied > s.countedRevision.Load() {
		s.countedRevision.Store(applied)
		s.wakeUp() // whoever waits for it hears of it by a heartbeat
	}
	return nil
}

// writeBatches writes what waits. Of a batch that Postgres will never take the part is looked for
// that it does not take: one bad row costs itself.
func (s *Store) writeBatches(ctx context.Context) error {
	halvings := 0
	for len(s.usageBatches) > 0 {
		batch := s.usageBatches[0]
		switch err := s.writeUsage(ctx, batch); {
		case isBadData(err) && len(batch.rows) > 1 && halvings < maxHalvings:
			halvings++
			s.usageBatches = slices.Concat(batch.halves(), s.usageBatches[1:])
			continue
		case isBadData(err):
			// It would be so the next time, and keep all others waiting.
			s.usage.dropped.Add(batch.n)
			s.log.Error("Postgres does not take what was counted; it is dropped", slog.Int64("decisions", batch.n), slog.Any("error", translate("write usage", err)))
		case err != nil:
			return translate("write usage", err)
		default:
			s.usage.stored.Add(batch.n)
		}
		s.usageBatches = s.usageBatches[1:]
	}
	return nil
}

// isBadData tells whether Postgres refuses what it was given, and not for now: of the classes
// data exception, integrity constraint violation and cardinality violation.
func isBadData(err error) bool {
	var refused *pq.Error
	return errors.As(err, &refused) && slices.Contains([]string{"21", "22", "23"}, string(refused.Code.Class()))
}

// halves are the same rows under ids of their own: nothing of the batch is written.
func (b *usageBatch) halves() []*usageBatch {
	var parts []*usageBatch
	half := len(b.rows) / 2
	for _, rows := range [][]usageRow{b.rows[:half], b.rows[half:]} {
		part := &usageBatch{id: newBatchID(), rows: rows}
		for _, r := range rows {
			part.n += r.n
		}
		parts = append(parts, part)
	}
	return parts
}

func batchesOf(rows []usageRow) []*usageBatch {
	var batches []*usageBatch
	var batch *usageBatch
	room := 0
	for _, r := range rows {
		if room <= 0 {
			batch, room = &usageBatch{id: newBatchID()}, maxUsageAtOnce
			batches = append(batches, batch)
		}
		batch.rows = append(batch.rows, r)
		batch.n += r.n
		room -= max(1, len(r.networks))
	}
	return batches
}

// newBatchID is a uuid, as Postgres reads one too.
func newBatchID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // documented never to fail
	return hex.EncodeToString(id[:])
}

// writeUsage writes a batch, or finds that it was written: an answer may be lost after the
// commit.
func (s *Store) writeUsage(ctx context.Context, batch *usageBatch) error {
	tables, err := usageTablesOf(batch)
	if err != nil {
		return err
	}
	return s.writeTables(ctx, batch.id, tables)
}

// usageTablesOf are a batch's rows as JSON, one text a table: shapes, hours, networks, secrets
// and scopes.
func usageTablesOf(batch *usageBatch) ([]string, error) {
	hours, shapes, err := usageRecords(batch.rows)
	if err != nil {
		return nil, err
	}
	secrets, scopes := useRecords(batch.rows)
	var tables []string
	for _, records := range []any{shapes, hours, networkRecords(batch.rows), secrets, scopes} {
		text, err := json.Marshal(records)
		if err != nil {
			return nil, err //nolint:wrapcheck // writeBatches does
		}
		tables = append(tables, string(text))
	}
	return tables, nil
}

func (s *Store) writeTables(ctx context.Context, id string, tables []string) error {
	args := []any{id, s.hoursHorizon()}
	for _, text := range tables {
		args = append(args, text)
	}
	_, err := s.manage.ExecContext(ctx, writeUsageSQL, args...)
	return err //nolint:wrapcheck // writeBatches looks at it
}

// writeUsageSQL writes each table in the order of its keys, so that replicas do not wait for each other in a
// circle. A day that was over before is to be added up anew, see rollUp: whoever is at it holds the
// day's row until the end.
const writeUsageSQL = `
	WITH batch AS (
		INSERT INTO usage_batches (id, written_at) VALUES ($1, clock_timestamp()) ON CONFLICT DO NOTHING RETURNING id
	), hours AS (
		SELECT r.* FROM json_to_recordset($4::json) AS r(hour bigint, organization_id uuid, key_id uuid, secret_id uuid, caller_id uuid,
			shape_id uuid, code text, requests bigint)
		WHERE EXISTS (SELECT FROM batch)
	), late AS (
		INSERT INTO usage_days_done AS d (day)
		SELECT DISTINCT (to_timestamp(hour) AT TIME ZONE 'UTC')::date AS day FROM hours
		WHERE to_timestamp(hour) >= $2 AND to_timestamp(hour) < date_trunc('day', clock_timestamp(), 'UTC') ORDER BY day
		ON CONFLICT (day) DO UPDATE SET rolled_at = NULL WHERE d.rolled_at IS NOT NULL
		RETURNING day
	), shapes AS (
		INSERT INTO usage_shapes AS s
		SELECT r.*, (clock_timestamp() AT TIME ZONE 'UTC')::date FROM json_to_recordset($3::json) AS r(` + usageShapeColumns + `)
		WHERE EXISTS (SELECT FROM batch) ORDER BY id
		ON CONFLICT (id) DO UPDATE SET seen_on = excluded.seen_on WHERE s.seen_on < excluded.seen_on
	), networks AS (
		INSERT INTO usage_networks AS n (day, organization_id, key_id, scopes, network, allowed, requests)
		SELECT day, organization_id, key_id, scopes, network, allowed, requests
		FROM json_to_recordset($5::json) AS r(day date, organization_id uuid, key_id uuid, scopes text, network cidr, allowed boolean, requests bigint)
		WHERE EXISTS (SELECT FROM batch)
		ORDER BY key_id, day, network, scopes, allowed
		ON CONFLICT (key_id, day, network, scopes, allowed) DO UPDATE SET requests = n.requests + excluded.requests
	), secrets AS (
		INSERT INTO secret_uses AS u (secret_id, key_id, first_used_at, used_at, caller_id, network)
		SELECT secret_id, key_id, to_timestamp(first_at), to_timestamp(at), caller_id, network
		FROM json_to_recordset($6::json) AS r(secret_id uuid, key_id uuid, first_at float8, at float8, caller_id uuid, network cidr)
		WHERE EXISTS (SELECT FROM batch) ORDER BY secret_id
		ON CONFLICT (secret_id) DO UPDATE SET
			first_used_at = CASE WHEN u.first_used_at IS NOT NULL THEN LEAST(u.first_used_at, excluded.first_used_at) END,
			used_at = GREATEST(u.used_at, excluded.used_at),
			caller_id = CASE WHEN excluded.used_at >= u.used_at THEN excluded.caller_id ELSE u.caller_id END,
			network = CASE WHEN excluded.used_at >= u.used_at THEN excluded.network ELSE u.network END
	), scopes AS (
		INSERT INTO scope_uses AS u (key_id, scope, first_used_at, used_at, caller_id, network)
		SELECT key_id, scope, to_timestamp(first_at), to_timestamp(at), caller_id, network
		FROM json_to_recordset($7::json) AS r(key_id uuid, scope text, first_at float8, at float8, caller_id uuid, network cidr)
		WHERE EXISTS (SELECT FROM batch) ORDER BY key_id, scope
		ON CONFLICT (key_id, scope) DO UPDATE SET
			first_used_at = LEAST(u.first_used_at, excluded.first_used_at),
			used_at = GREATEST(u.used_at, excluded.used_at),
			caller_id = CASE WHEN excluded.used_at >= u.used_at THEN excluded.caller_id ELSE u.caller_id END,
			network = CASE WHEN excluded.used_at >= u.used_at THEN excluded.network ELSE u.network END
	)
	INSERT INTO usage_hours AS u (hour, organization_id, key_id, secret_id, caller_id, shape_id, code, requests)
	SELECT to_timestamp(hour), organization_id, key_id, secret_id, caller_id, shape_id, code, requests FROM hours
	WHERE (SELECT count(*) FROM late) >= 0 -- the day's row is taken first, as by who adds it up
	ORDER BY hour, key_id, shape_id, caller_id, secret_id, code
	ON CONFLICT (hour, key_id, shape_id, caller_id, secret_id, code) DO UPDATE SET requests = u.requests + excluded.requests`

// hoursHorizon is since when whole days of usage_hours are there: what is older is going.
func (s *Store) hoursHorizon() time.Time {
	return s.clock.Now().UTC().Add(-s.usageRetention).Truncate(24*time.Hour).AddDate(0, 0, 1)
}

// usageShapeColumns are those of usage_shapes, in their order, but for the last.
const usageShapeColumns = `id uuid, policy text, method text, path text, route text, ambiguous boolean, collapsed boolean, action text,
	environment text, resource_type text, resource_id boolean, resource_organization text, address text, relative bigint,
	browser boolean, stale boolean, scopes text[]`

type usageHourRecord struct {
	Hour           int64      `json:"hour"`
	OrganizationID string     `json:"organization_id"`
	KeyID          string     `json:"key_id"`
	SecretID       string     `json:"secret_id"`
	CallerID       string     `json:"caller_id"`
	ShapeID        string     `json:"shape_id"`
	Code           authz.Code `json:"code"`
	Requests       int64      `json:"requests"`
}

type usageShapeRecord struct {
	ID                   string              `json:"id"`
	Policy               string              `json:"policy"`
	Method               string              `json:"method"`
	Path                 string              `json:"path"`
	Route                string              `json:"route"`
	Ambiguous            bool                `json:"ambiguous"`
	Collapsed            bool                `json:"collapsed"`
	Action               string              `json:"action"`
	Environment          authz.Environment   `json:"environment"`
	ResourceType         string              `json:"resource_type"`
	ResourceID           bool                `json:"resource_id"`
	ResourceOrganization authz.ResourceOwner `json:"resource_organization"`
	Address              authz.AddressKind   `json:"address"`
	Relative             int64               `json:"relative"`
	Browser              bool                `json:"browser"`
	Stale                bool                `json:"stale"`
	Scopes               []string            `json:"scopes"`
}

type usageNetworkRecord struct {
	Day            string `json:"day"`
	OrganizationID string `json:"organization_id"`
	KeyID          string `json:"key_id"`
	Scopes         string `json:"scopes"`
	Network        string `json:"network"`
	Allowed        bool   `json:"allowed"`
	Requests       int64  `json:"requests"`
}

// networkRecords are the networks of rows, whatever else tells the rows apart.
func networkRecords(rows []usageRow) []*usageNetworkRecord {
	type named struct {
		day, key, scopes string
		network          netip.Prefix
		allowed          bool
	}
	known, all := map[named]*usageNetworkRecord{}, []*usageNetworkRecord{}
	for i := range rows {
		r := &rows[i]
		day, key := time.Unix(r.hour*3600, 0).UTC().Format(time.DateOnly), uuidOrZero(r.key)
		for _, c := range r.networks {
			name := named{day, key, r.scopes, c.network, r.code == authz.CodeAllowed}
			if known[name] == nil {
				known[name] = &usageNetworkRecord{day, uuidOrZero(r.organization), key, r.scopes, c.network.String(), name.allowed, 0}
				all = append(all, known[name])
			}
			known[name].Requests += c.n
		}
	}
	return all
}

// usageRecords are the rows as Postgres takes them, and the shapes that they name.
func usageRecords(rows []usageRow) ([]usageHourRecord, []usageShapeRecord, error) {
	type shaped struct {
		shape  authz.Shape
		scopes string
	}
	known := map[shaped]string{{}: noUUID}
	hours, shapes := make([]usageHourRecord, 0, len(rows)), []usageShapeRecord{}
	for _, r := range rows {
		if r.n == 0 {
			continue
		}
		of := shaped{r.shape, r.scopes}
		id, ok := known[of]
		if !ok {
			record, err := shapeRecord(r.shape, r.scopes)
			if err != nil {
				return nil, nil, err
			}
			id, shapes = record.ID, append(shapes, record)
			known[of] = id
		}
		hours = append(hours, usageHourRecord{
			r.hour * 3600, uuidOrZero(r.organization), uuidOrZero(r.key), uuidOrZero(r.secret), uuidOrZero(r.caller), id, r.code, r.n,
		})
	}
	return hours, shapes, nil
}

// noUUID stands for what is not known, in columns of a primary key.
const noUUID = "00000000000000000000000000000000"

func uuidOrZero(id driver.Valuer) string {
	if text, ok := uuid(id).(string); ok {
		return text
	}
	return noUUID
}

func shapeRecord(s authz.Shape, scopes string) (usageShapeRecord, error) {
	r := usageShapeRecord{
		Policy: s.Policy, Method: s.Method, Path: s.Path, Route: s.Route, Ambiguous: s.Ambiguous, Collapsed: s.Collapsed, Action: s.Action,
		Environment: s.Environment, ResourceType: s.ResourceType, ResourceID: s.ResourceID,
		ResourceOrganization: s.ResourceOrganization, Address: s.Address, Relative: int64(s.Relative), //nolint:gosec // the same bits
		Browser: s.Browser, Stale: s.Stale,
		Scopes: strings.Fields(scopes),
	}
	text, err := json.Marshal(r) // no two shapes have the same
	if err != nil {
		return r, translate("write usage", err)
	}
	sum := sha256.Sum256(text)
	r.ID = hex.EncodeToString(sum[:16])
	return r, nil
}
