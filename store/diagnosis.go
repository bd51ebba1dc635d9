package store

import (
	"context"
	"database/sql"
	"errors"
	"strconv"
	"time"

	"github.com/lib/pq"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

// minPostgres is the oldest version that is supported, as server_version_num has it.
const minPostgres = 14_00_00

// Diagnosis is what a doctor asks of the database. Nothing in it is a secret.
type Diagnosis struct {
	// Version is Postgres' own; TooOld tells that it is not supported, Standby that it
	// takes no changes.
	Version         string
	TooOld, Standby bool
	// Schema, Deployment and Peppers are why serve would refuse to start; nil is well.
	Schema, Deployment, Peppers error
	// ClockAhead is how far the machine's clock is before Postgres'.
	ClockAhead time.Duration
	// PlatformAdmins counts those with a token that works; AdminsUntil is when the last of
	// those tokens ends. Bootstrapped tells that no first one can be made any more.
	PlatformAdmins int
	AdminsUntil    time.Time
	Bootstrapped   bool
	// Replicas are those that may still serve, and Revision the database's.
	Replicas []manage.Replica
	Revision int64
	// Policy is the one that was activated.
	Policy *Policy
}

// Diagnose asks the database. Where the schema is not this version's, it stops there.
func Diagnose(ctx context.Context, o Options) (*Diagnosis, error) {
	s, err := newStore(o)
	if err != nil {
		return nil, err
	}
	defer s.keys.close()
	if err := s.connect(o); err != nil {
		return nil, errors.Join(err, s.closePools())
	}
	var d Diagnosis
	err = s.diagnose(ctx, &d)
	return &d, errors.Join(err, s.closePools())
}

func (s *Store) diagnose(ctx context.Context, d *Diagnosis) error {
	var row struct {
		Version string    `db:"version"`
		Number  string    `db:"number"`
		Standby bool      `db:"standby"`
		Now     time.Time `db:"now"`
	}
	before := time.Now()
	err := s.changes.GetContext(ctx, &row, `SELECT current_setting('server_version') AS version,
		current_setting('server_version_num') AS number, pg_is_in_recovery() AS standby, clock_timestamp() AS now`)
	if err != nil {
		return translate("ask Postgres", err)
	}
	number, _ := strconv.Atoi(row.Number)
	d.Version, d.TooOld, d.Standby = row.Version, number < minPostgres, row.Standby
	d.ClockAhead = before.Add(time.Since(before) / 2).Sub(row.Now)
	if d.Schema = checkSchema(ctx, s.manage); d.Schema != nil {
		if isAway(d.Schema) {
			return d.Schema
		}
		return nil
	}
	kind, err := deployment(ctx, s.manage)
	if err != nil {
		return err
	}
	if kind != s.deployment {
		d.Deployment = &DeploymentError{Database: kind, Configured: s.deployment}
	}
	var wrong *PepperError
	if err := s.checkPeppers(ctx); err != nil && !errors.As(err, &wrong) {
		return err
	}
	if wrong != nil {
		d.Peppers = wrong
	}
	if err := s.diagnoseAdmins(ctx, row.Now, d); err != nil {
		return err
	}
	if d.Policy, err = readPolicy(ctx, s.manage); err != nil {
		return err
	}
	d.Replicas, d.Revision, err = s.Replicas(ctx)
	return err
}

func (s *Store) diagnoseAdmins(ctx context.Context, now time.Time, d *Diagnosis) error {
	var row struct {
		N            int          `db:"n"`
		Until        sql.NullTime `db:"until"`
		Bootstrapped bool         `db:"bootstrapped"`
	}
	err := s.manage.GetContext(ctx, &row, `
		SELECT count(DISTINCT a.id) AS n, max(LEAST(a.expires_at, t.expires_at)) AS until,
			EXISTS (SELECT FROM settings WHERE name = $2) AS bootstrapped
		`+liveAdmins+` AND a.role = 'platform_admin'`, now, bootstrappedSetting)
	d.PlatformAdmins, d.AdminsUntil, d.Bootstrapped = row.N, utc(row.Until), row.Bootstrapped
	return translate("count the platform's admins", err)
}

// MissingEvents tells which of these rows of the audit log the database does not have:
// changes that were made, and that a restored copy lacks.
func MissingEvents(ctx context.Context, at DatabaseURL, ids []authz.EventID) (missing map[authz.EventID]bool, err error) {
	db, err := at.pool(1, manageReadDeadline, false, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = db.Close() }()
	missing = make(map[authz.EventID]bool)
	const part = 5000
	for from := 0; from < len(ids); from += part {
		some := ids[from:min(from+part, len(ids))]
		texts := make(pq.StringArray, len(some))
		for i, id := range some {
			texts[i], _ = uuid(id).(string)
			missing[id] = true
		}
		var found []authz.EventID
		if err := db.SelectContext(ctx, &found, `SELECT id FROM audit_log WHERE id = ANY ($1::uuid[])`, texts); err != nil {
			return nil, translate("look for rows of the audit log", err)
		}
		for _, id := range found {
			delete(missing, id)
		}
	}
	return missing, nil
}
