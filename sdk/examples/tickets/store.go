package main

import (
	"context"
	_ "embed" // for the schema
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/sdk/examples/service"
)

// maxMessages bounds the messages that one ticket is shown with, newest last.
const maxMessages = 100

//go:embed schema.sql
var schema string

const sampleTickets = `
INSERT INTO tickets (organization, environment, subject, body, status)
SELECT $1, $2, subject, body, status FROM (VALUES
	(1, 'Cannot log in', 'The reset mail does not arrive.', 'open'),
	(2, 'Invoice shows the wrong address', 'We moved in March.', 'pending'),
	(3, 'How do I export my data?', 'As CSV, if possible.', 'closed')
) AS sample (position, subject, body, status) ORDER BY position`

type ticket struct {
	ID        int64     `db:"id" json:"id,string"`
	Subject   string    `db:"subject" json:"subject"`
	Status    string    `db:"status" json:"status"`
	CreatedAt time.Time `db:"created_at" json:"created_at"`
}

func (t ticket) id() int64 { return t.ID }

// wholeTicket is a ticket on a page of its own.
type wholeTicket struct {
	ticket
	Body     string    `db:"body" json:"body"`
	Messages []message `db:"-" json:"messages"`
}

type message struct {
	ID        int64     `db:"id" json:"id,string"`
	Body      string    `db:"body" json:"body"`
	CreatedAt time.Time `db:"created_at" json:"created_at"`
}

// store reads and writes tickets. Every statement names the tenant in full.
type store struct{ db *sqlx.DB }

func (s store) list(ctx context.Context, t service.Tenant, before int64, limit int) ([]ticket, error) {
	var rows []ticket
	err := s.db.SelectContext(ctx, &rows, `
		SELECT id, subject, status, created_at FROM tickets
		WHERE organization = $1 AND environment = $2 AND id < $3
		ORDER BY id DESC LIMIT $4`, t.Organization, t.Environment, before, limit)
	return rows, err
}

func (s store) create(ctx context.Context, t service.Tenant, values map[string]string) (ticket, error) {
	var row ticket
	err := s.db.GetContext(ctx, &row, `
		INSERT INTO tickets (organization, environment, subject, body) VALUES ($1, $2, $3, $4)
		RETURNING id, subject, status, created_at`, t.Organization, t.Environment, values["subject"], values["body"])
	return row, err
}

func (s store) get(ctx context.Context, t service.Tenant, id int64, _ map[string]string) (wholeTicket, error) {
	row := wholeTicket{Messages: []message{}}
	err := s.db.GetContext(ctx, &row, `
		SELECT id, subject, status, created_at, body FROM tickets
		WHERE organization = $1 AND environment = $2 AND id = $3`, t.Organization, t.Environment, id)
	if err != nil {
		return wholeTicket{}, err
	}
	err = s.db.SelectContext(ctx, &row.Messages, `
		SELECT id, body, created_at FROM (
			SELECT id, body, created_at FROM ticket_messages
			WHERE organization = $1 AND environment = $2 AND ticket_id = $3
			ORDER BY id DESC LIMIT $4
		) AS newest ORDER BY id`, t.Organization, t.Environment, id, maxMessages)
	return row, err
}

func (s store) change(ctx context.Context, t service.Tenant, id int64, values map[string]string) (ticket, error) {
	var row ticket
	err := s.db.GetContext(ctx, &row, `
		UPDATE tickets SET subject = COALESCE($4, subject), status = COALESCE($5, status)
		WHERE organization = $1 AND environment = $2 AND id = $3
		RETURNING id, subject, status, created_at`, t.Organization, t.Environment, id,
		service.Optional(values, "subject"), service.Optional(values, "status"))
	return row, err
}

func (s store) addMessage(ctx context.Context, t service.Tenant, id int64, values map[string]string) (message, error) {
	var row message
	err := s.db.GetContext(ctx, &row, `
		INSERT INTO ticket_messages (organization, environment, ticket_id, body)
		SELECT organization, environment, id, $4 FROM tickets
		WHERE organization = $1 AND environment = $2 AND id = $3
		RETURNING id, body, created_at`, t.Organization, t.Environment, id, values["body"])
	return row, err
}
