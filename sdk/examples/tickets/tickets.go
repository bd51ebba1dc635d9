package main

import (
	"errors"
	"log/slog"
	"net/http"

	"github.com/jmoiron/sqlx"

	keystile "github.com/supportstation/keystile/sdk"
	"github.com/supportstation/keystile/sdk/examples/service"
)

// The greatest lengths, in characters.
const (
	maxSubject = 200
	maxBody    = 10_000
)

// newHandler returns the ticket API. checker decides about each request; db has
// the tables of the schema.
func newHandler(db *sqlx.DB, checker keystile.Checker, log *slog.Logger) (http.Handler, error) {
	rows := store{db}
	engine, err := service.NewEngine(checker, service.NewSamples(db, "tickets", sampleTickets), log)
	if err != nil {
		return nil, err
	}
	subject := service.Field{Name: "subject", Max: maxSubject}
	body := service.Field{Name: "body", Max: maxBody, Required: true}
	status := service.Field{Name: "status", Max: 16, Check: checkStatus}
	newSubject := subject
	newSubject.Required = true

	service.Read(engine, "/api/v1/tickets", service.List(rows.list, ticket.id))
	engine.POST("/api/v1/tickets", service.Create(rows.create, newSubject, body))
	service.Read(engine, "/api/v1/tickets/:id", service.Item(http.StatusOK, rows.get))
	engine.PATCH("/api/v1/tickets/:id", service.Item(http.StatusOK, rows.change, subject, status))
	engine.POST("/api/v1/tickets/:id/messages", service.Item(http.StatusCreated, rows.addMessage, body))
	return engine, nil
}

func checkStatus(status string) error {
	switch status {
	case "open", "pending", "closed":
		return nil
	}
	return errors.New("must be open, pending or closed")
}
