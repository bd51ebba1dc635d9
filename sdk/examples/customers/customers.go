package main

import (
	"errors"
	"log/slog"
	"net/http"
	"net/mail"

	"github.com/jmoiron/sqlx"

	keystile "github.com/supportstation/keystile/sdk"
	"github.com/supportstation/keystile/sdk/examples/service"
)

// The greatest lengths, in characters.
const (
	maxName  = 200
	maxEmail = 254
)

// newHandler returns the customer API. checker decides about each request; db
// has the tables of the schema.
func newHandler(db *sqlx.DB, checker keystile.Checker, log *slog.Logger) (http.Handler, error) {
	engine, err := service.NewEngine(checker, service.NewSamples(db, "customers", sampleCustomers), log)
	if err != nil {
		return nil, err
	}
	const all, one = "/api/v1/customers", "/api/v1/customers/:id"
	rows := store{db}
	service.Read(engine, all, service.List(rows.list, customer.id))
	engine.POST(all, service.Create(rows.create, fields(true)...))
	service.Read(engine, one, service.Item(http.StatusOK, rows.get))
	engine.PATCH(one, service.Item(http.StatusOK, rows.change, fields(false)...))
	engine.DELETE(one, service.Item(http.StatusNoContent, rows.remove))
	return engine, nil
}

func fields(required bool) []service.Field {
	return []service.Field{
		{Name: "name", Max: maxName, Required: required},
		{Name: "email", Max: maxEmail, Required: required, Check: checkEmail},
	}
}

func checkEmail(email string) error {
	if address, err := mail.ParseAddress(email); err != nil || address.Address != email {
		return errors.New("must be an e-mail address, such as ada@example.com")
	}
	return nil
}
