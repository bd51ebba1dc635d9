package main

import (
	"context"
	_ "embed" // for the schema

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/sdk/examples/service"
)

//go:embed schema.sql
var schema string

const sampleCustomers = `
INSERT INTO customers (organization, environment, name, email)
SELECT $1, $2, name, email FROM (VALUES
	(1, 'Ada Lovelace', 'ada@example.com'),
	(2, 'Grace Hopper', 'grace@example.com'),
	(3, 'Katherine Johnson', 'katherine@example.com')
) AS sample (position, name, email) ORDER BY position`

type customer struct {
	ID    int64  `db:"id" json:"id,string"`
	Name  string `db:"name" json:"name"`
	Email string `db:"email" json:"email"`
}

func (c customer) id() int64 { return c.ID }

// store reads and writes customers. Every statement names the tenant in full.
type store struct{ db *sqlx.DB }

func (s store) list(ctx context.Context, t service.Tenant, before int64, limit int) ([]customer, error) {
	var rows []customer
	err := s.db.SelectContext(ctx, &rows, `
		SELECT id, name, email FROM customers
		WHERE organization = $1 AND environment = $2 AND id < $3
		ORDER BY id DESC LIMIT $4`, t.Organization, t.Environment, before, limit)
	return rows, err
}

func (s store) create(ctx context.Context, t service.Tenant, values map[string]string) (customer, error) {
	return s.one(ctx, `
		INSERT INTO customers (organization, environment, name, email) VALUES ($1, $2, $3, $4)
		RETURNING id, name, email`, t.Organization, t.Environment, values["name"], values["email"])
}

func (s store) get(ctx context.Context, t service.Tenant, id int64, _ map[string]string) (customer, error) {
	return s.one(ctx, `
		SELECT id, name, email FROM customers
		WHERE organization = $1 AND environment = $2 AND id = $3`, t.Organization, t.Environment, id)
}

func (s store) change(ctx context.Context, t service.Tenant, id int64, values map[string]string) (customer, error) {
	return s.one(ctx, `
		UPDATE customers SET name = COALESCE($4, name), email = COALESCE($5, email)
		WHERE organization = $1 AND environment = $2 AND id = $3
		RETURNING id, name, email`, t.Organization, t.Environment, id,
		service.Optional(values, "name"), service.Optional(values, "email"))
}

func (s store) remove(ctx context.Context, t service.Tenant, id int64, _ map[string]string) (customer, error) {
	return s.one(ctx, `
		DELETE FROM customers WHERE organization = $1 AND environment = $2 AND id = $3
		RETURNING id, name, email`, t.Organization, t.Environment, id)
}

func (s store) one(ctx context.Context, statement string, args ...any) (customer, error) {
	var row customer
	err := s.db.GetContext(ctx, &row, statement, args...)
	return row, err
}
