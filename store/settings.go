package store

import (
	"context"
	"fmt"

	"github.com/jmoiron/sqlx"
)

// deploymentSetting says what kind of deployment a database belongs to.
const deploymentSetting = "deployment"

// DeploymentDev marks a database with demonstration data.
const DeploymentDev = "dev"

// Deployment returns what kind of deployment the database belongs to; "" is an ordinary one.
func (s *Store) Deployment(ctx context.Context) (string, error) { return deployment(ctx, s.manage) }

func deployment(ctx context.Context, db *sqlx.DB) (string, error) {
	var values []string
	err := db.SelectContext(ctx, &values, `SELECT value FROM settings WHERE name = $1`, deploymentSetting)
	if err != nil || len(values) == 0 {
		return "", translate("read the deployment", err)
	}
	return values[0], nil
}

// MarkDeployment marks a migrated database as one kind of deployment. Only an
// empty database can be marked; marking it again as the same kind does nothing.
func MarkDeployment(ctx context.Context, at DatabaseURL, kind string) error {
	db, err := at.pool(1, manageReadDeadline, false, nil)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	_, err = db.ExecContext(ctx, `
		INSERT INTO settings (name, value) SELECT $1, $2 WHERE NOT EXISTS (SELECT FROM organizations)
		ON CONFLICT (name) DO NOTHING`, deploymentSetting, kind)
	if err != nil {
		return translate("mark the deployment", err)
	}
	is, err := deployment(ctx, db)
	if err != nil {
		return err
	}
	if is != kind {
		return &DeploymentError{Database: is, Configured: kind}
	}
	return nil
}

// DeploymentError says that the configuration and the database disagree about what
// kind of deployment this is.
type DeploymentError struct{ Database, Configured string }

// Error implements error.
func (e *DeploymentError) Error() string {
	if e.Database == DeploymentDev {
		return "this database holds demonstration data of `keystile dev`; use a database of its own, " +
			"or set KEYSTILE_DEPLOYMENT=dev to join the demonstration"
	}
	return fmt.Sprintf("KEYSTILE_DEPLOYMENT is %q, but the database is marked %q", e.Configured, e.Database)
}
