package service

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/gin-gonic/gin"

	keystile "github.com/supportstation/keystile/sdk"
	"github.com/supportstation/keystile/sdk/ginmw"
)

// NewEngine returns a Gin engine on which every request has been allowed, and
// belongs to a tenant that has its sample rows. Routes that a path does not name
// exactly do not match it.
func NewEngine(checker keystile.Checker, samples *Samples, log *slog.Logger) (*gin.Engine, error) {
	gin.SetMode(gin.ReleaseMode)
	engine := gin.New()
	if err := engine.SetTrustedProxies(nil); err != nil {
		return nil, fmt.Errorf("trust no proxy: %w", err)
	}
	engine.RedirectTrailingSlash = false
	engine.HandleMethodNotAllowed = true
	undecided := func(r *http.Request, err error) {
		log.ErrorContext(r.Context(), "a request could not be checked", "error", err)
	}
	engine.Use(logRequests(log), recovery(log), ginmw.Protect(checker, keystile.OnError(undecided)), admit(samples))
	engine.NoRoute(NotFound)
	engine.NoMethod(func(c *gin.Context) {
		Refuse(c, http.StatusMethodNotAllowed, "method_not_allowed", "This address does not take the method.")
	})
	return engine, nil
}

// logRequests tells what failed, and with the level debug each request. Neither
// headers nor query get there.
func logRequests(log *slog.Logger) gin.HandlerFunc {
	return func(c *gin.Context) {
		start := time.Now()
		c.Next()
		attributes := []any{"method", c.Request.Method, "route", c.FullPath(), "status", c.Writer.Status(), "took", time.Since(start)}
		if d, ok := ginmw.FromContext(c); ok {
			attributes = append(attributes, "organization", d.Organization.ID, "key", d.Key.ID, "decision", d.ID)
		}
		if len(c.Errors) > 0 {
			log.ErrorContext(c.Request.Context(), "a request failed", append(attributes, "error", c.Errors.Last())...)
			return
		}
		log.DebugContext(c.Request.Context(), "request", attributes...)
	}
}

// recovery replaces Gin's, which can print headers.
func recovery(log *slog.Logger) gin.HandlerFunc {
	return gin.CustomRecoveryWithWriter(nil, func(c *gin.Context, cause any) {
		log.ErrorContext(c.Request.Context(), "a handler panicked", "cause", cause, "stack", string(debug.Stack()))
		Refuse(c, http.StatusInternalServerError, "internal", "Something went wrong here.")
	})
}

const tenantKey = "tenant"

// admit bounds what the database does for the request, and gives the tenant its
// samples.
func admit(samples *Samples) gin.HandlerFunc {
	return func(c *gin.Context) {
		d, ok := ginmw.FromContext(c)
		if !ok {
			Refuse(c, http.StatusServiceUnavailable, "unavailable", "The request was not checked.")
			return
		}
		ctx, cancel := context.WithTimeout(c.Request.Context(), statementTimeout)
		defer cancel()
		c.Request = c.Request.WithContext(ctx)
		tenant := TenantOf(d)
		if err := samples.Ensure(ctx, tenant); err != nil {
			Broken(c, err)
			return
		}
		c.Set(tenantKey, tenant)
		c.Header("Cache-Control", "no-store")
		c.Next()
	}
}

// TenantFrom returns whose rows the request may see: nobody's when it was not
// admitted by [NewEngine]'s chain.
func TenantFrom(c *gin.Context) Tenant {
	tenant, _ := c.Get(tenantKey)
	if t, ok := tenant.(Tenant); ok {
		return t
	}
	return Tenant{}
}

// Read registers the handler for GET and HEAD, which the policies treat alike.
func Read(engine *gin.Engine, path string, handler gin.HandlerFunc) {
	engine.Match([]string{http.MethodGet, http.MethodHead}, path, handler)
}

// List returns the handler of a list: load gives up to limit+1 of the tenant's
// rows, newest first, with ids below the bound.
func List[T any](load func(ctx context.Context, t Tenant, before int64, limit int) ([]T, error), id func(T) int64) gin.HandlerFunc {
	return func(c *gin.Context) {
		page, ok := ReadPage(c)
		if !ok {
			return
		}
		rows, err := load(c.Request.Context(), TenantFrom(c), page.Before, page.Limit+1)
		Answer(c, http.StatusOK, NewPage(rows, page, id), err)
	}
}

// Item returns the handler of one row: work reads, changes or removes it as the
// request wants, and gives [sql.ErrNoRows] when the tenant has none of that id.
// The answer has the status, and a body unless the status is 204.
func Item[T any](status int, work func(ctx context.Context, t Tenant, id int64, values map[string]string) (T, error), fields ...Field) gin.HandlerFunc {
	return func(c *gin.Context) {
		id, ok := PathID(c)
		if !ok {
			return
		}
		var values map[string]string
		if len(fields) > 0 {
			if values, ok = ReadFields(c, fields...); !ok {
				return
			}
		}
		row, err := work(c.Request.Context(), TenantFrom(c), id, values)
		Answer(c, status, row, err)
	}
}

// Create returns the handler that makes a row of fields and answers 201.
func Create[T any](work func(ctx context.Context, t Tenant, values map[string]string) (T, error), fields ...Field) gin.HandlerFunc {
	return func(c *gin.Context) {
		values, ok := ReadFields(c, fields...)
		if !ok {
			return
		}
		row, err := work(c.Request.Context(), TenantFrom(c), values)
		Answer(c, http.StatusCreated, row, err)
	}
}

// Answer sends row with status, 404 for [sql.ErrNoRows], 503 for another error.
func Answer(c *gin.Context, status int, row any, err error) {
	switch {
	case errors.Is(err, sql.ErrNoRows):
		NotFound(c)
	case err != nil:
		Broken(c, err)
	case status == http.StatusNoContent:
		c.Status(status)
	default:
		c.JSON(status, row)
	}
}

// Optional returns the value of a field that a change may leave out; nil keeps
// what is stored.
func Optional(values map[string]string, name string) *string {
	if value, sent := values[name]; sent {
		return &value
	}
	return nil
}
