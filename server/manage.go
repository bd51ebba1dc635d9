package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"golang.org/x/time/rate"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/server/api"
)

const (
	// maxManagementBody bounds the body of a management request in bytes, maxLongBody that
	// of an import or of checkpoints, and maxPolicyBody that of a policy as JSON.
	maxManagementBody = 64 << 10
	maxLongBody       = 8 << 20
	maxPolicyBody     = 12 << 20
	// longRequest is how long a management request may take to be answered, and
	// longBody the body of an import or of checkpoints to come, however it trickles:
	// it holds a slot meanwhile.
	longRequest = 2 * time.Minute
	longBody    = time.Minute
)

const (
	mediaJSON = "application/json"
	mediaRows = "application/x-ndjson"
)

// management serves the management API: it reads requests strictly, asks manage, and
// translates its answers. It implements api.StrictServerInterface. Safe for
// concurrent use.
type management struct {
	service  *manage.Service
	admins   *authz.Admins
	trusted  []netip.Prefix
	document *document
	log      *slog.Logger
	metrics  *metrics
	long     slots
	// auditing is for those who audit, or narrow keys by what was found.
	auditing slots
	// bodyTime is longBody; tests have less of it.
	bodyTime time.Duration
	// unverified keeps one line a second about admins who could not be verified:
	// asking costs the asker nothing.
	unverified rate.Sometimes
}

var _ api.StrictServerInterface = (*management)(nil)

func newManagement(o Options, m *metrics) (*management, error) {
	if o.Admins == nil {
		return nil, errors.New("management needs admins")
	}
	doc, err := newDocument(context.Background())
	if err != nil {
		return nil, err
	}
	return &management{
		service: o.Management, admins: o.Admins, trusted: o.TrustedProxies, document: doc, log: o.Logger, metrics: m,
		bodyTime: longBody, unverified: rate.Sometimes{Interval: time.Second},
	}, nil
}

// register puts the routes of the document behind observe, authenticate and admit,
// and refuses a route that the document does not know.
func (m *management) register(engine *gin.Engine) error {
	group := engine.Group("", m.observe, m.authenticate, m.admit)
	strict := api.NewStrictHandlerWithOptions(m, nil, api.StrictGinServerOptions{
		RequestErrorHandlerFunc: m.refuseBody, HandlerErrorFunc: m.fail, ResponseErrorHandlerFunc: m.fail,
	})
	api.RegisterHandlersWithOptions(group, strict, api.GinServerOptions{
		ErrorHandler: func(c *gin.Context, err error, _ int) { m.fail(c, fmt.Errorf("read a checked parameter: %w", err)) },
	})
	for _, r := range engine.Routes() {
		if strings.HasPrefix(r.Path, "/v1/") && m.document.lookup(r.Method, r.Path) == nil {
			return fmt.Errorf("%s %s is not in the API's document", r.Method, r.Path)
		}
	}
	return nil
}

// managed is one management request, as far as it has been read.
type managed struct {
	operation *operation
	request   manage.Request
}

// managedKey is where Gin's context keeps the *managed.
type managedKey struct{}

// requestOf returns what a handler hands to manage. The context that handlers are
// given is Gin's, which is used again for other requests: it must not go further.
func requestOf(ctx context.Context) (context.Context, manage.Request) {
	c, ok := ctx.(*gin.Context)
	if !ok {
		return ctx, manage.Request{}
	}
	return c.Request.Context(), stateOf(c).request
}

func stateOf(c *gin.Context) *managed {
	value, _ := c.Get(managedKey{})
	state, ok := value.(*managed)
	if !ok {
		return &managed{operation: &operation{}}
	}
	return state
}

// observe counts every request and logs every change, with nothing that was sent.
func (m *management) observe(c *gin.Context) {
	start := time.Now()
	state := &managed{operation: m.document.lookup(c.Request.Method, c.FullPath())}
	c.Set(managedKey{}, state)
	defer func() {
		status := c.Writer.Status()
		if !c.Writer.Written() {
			status = http.StatusInternalServerError // a panic, which common turns into that
		}
		m.metrics.managed(state.operation.id, status)
		if state.request.Actor != nil && c.Request.Method != http.MethodGet {
			m.log.Info("management", slog.String("operation", state.operation.id),
				slog.String("actor", state.request.Actor.ID.String()), slog.Int("status", status),
				slog.String("request_id", requestID(c)), slog.Duration("duration", time.Since(start)))
		}
	}()
	c.Next()
}

// authenticate recognizes the admin, before anything of the body is read. One
// credential, or none is believed; a caller's token or an API key is none.
func (m *management) authenticate(c *gin.Context) {
	token := ""
	if lines := c.Request.Header["Authorization"]; len(lines) == 1 {
		token = bearer(lines[0])
	}
	admin, err := m.admins.Authenticate(c.Request.Context(), token)
	if err != nil {
		var known *authz.Error
		if errors.As(err, &known) && known.Kind == authz.KindUnavailable {
			m.unverified.Do(func() { m.log.Error("an admin could not be verified", slog.Any("error", err)) })
			fail(c, managementProblem(known))
			return
		}
		m.fail(c, err)
		return
	}
	stateOf(c).request.Actor = admin
}

// admit reads the request and holds it to the document.
func (m *management) admit(c *gin.Context) {
	state := stateOf(c)
	op, r := state.operation, c.Request
	if issue := op.checkParameters(r); issue != nil {
		fail(c, issue)
		return
	}
	if r.Method != http.MethodGet && len(r.Header["If-Match"]) > 0 && !op.takes("If-Match") {
		fail(c, unacceptable("unknown_parameter", fieldIssue{"", "header If-Match is not taken here: nothing would look at it"}))
		return
	}
	limit := maxManagementBody
	if op.audits() {
		if err := m.mayAudit(c, state); err != nil {
			m.fail(c, err)
			return
		}
		if !m.auditing.take(state.request.Actor) {
			fail(c, managementProblem(authz.Unavailable("too many audits run already; try again", nil)))
			return
		}
		defer m.auditing.give(state.request.Actor)
	}
	if op.takesLong() {
		if err := m.mayStart(c, state); err != nil {
			m.fail(c, err)
			return
		}
		if !m.long.take(state.request.Actor) {
			fail(c, managementProblem(authz.Unavailable("too many imports, verifications and trials of policies run already; try again", nil)))
			return
		}
		defer m.long.give(state.request.Actor)
		limit = maxLongBody
		if op.policy() {
			limit = maxPolicyBody
		}
	}
	m.extendDeadlines(c, op)
	body, issue := op.readBody(c, limit)
	if issue != nil {
		fail(c, issue)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	m.fillRequest(c, state, body)
	c.Next()
}

// mayStart refuses an admin who may not import, verify or try policies, before a slot is taken and
// the body read: else whoever may not could keep those who may waiting.
func (m *management) mayStart(c *gin.Context, state *managed) error {
	var org authz.OrganizationID // zero is the platform
	if text, ok := c.Params.Get("org"); ok {
		if err := pathID(text, &org, "organization"); err != nil {
			return err
		}
	}
	if state.operation.policy() {
		return m.service.MayTestPolicy(c.Request.Context(), state.request) //nolint:wrapcheck // fail reads it
	}
	if state.operation.rows {
		return m.service.MayImport(c.Request.Context(), state.request, org) //nolint:wrapcheck // fail reads it
	}
	return m.service.MayVerify(c.Request.Context(), state.request, org) //nolint:wrapcheck // fail reads it
}

// audits tells whether the operation judges keys.
func (o *operation) audits() bool {
	switch o.id {
	case "listFindings", "listOrganizationFindings", "applyKeyFindings", "applyOrganizationKeyFindings":
		return true
	}
	return false
}

// mayAudit refuses an admin who may not audit, before a slot is taken. Of single keys the
// operation sees to that at once.
func (m *management) mayAudit(c *gin.Context, state *managed) error {
	if _, ok := c.Params.Get("key"); ok {
		return nil
	}
	var org authz.OrganizationID // zero is all of them
	if text, ok := c.Params.Get("org"); ok {
		if err := pathID(text, &org, "organization"); err != nil {
			return err
		}
	}
	return m.service.MayListFindings(c.Request.Context(), state.request, org) //nolint:wrapcheck // fail reads it
}

// takesLong tells whether the operation has a large body or walks many rows.
func (o *operation) takesLong() bool {
	return o.rows || o.id == "verifyAuditLog" || o.id == "verifyOrganizationAuditLog" || o.policy()
}

// policy tells whether the operation has a whole policy as its body.
func (o *operation) policy() bool {
	return o.id == "testPolicy" || o.id == "activatePolicy" || o.id == "diffPolicy" || o.id == "startPolicyShadow"
}

// readBody reads the body and holds it to the document.
func (o *operation) readBody(c *gin.Context, limit int) ([]byte, *problem) {
	if o.body == nil && !o.rows && c.Request.ContentLength == 0 {
		return nil, nil
	}
	media := mediaJSON
	if o.rows {
		media = mediaRows
	}
	var b buffer
	if issue := readBody(c, &b, limit, media); issue != nil {
		return nil, issue
	}
	if o.rows {
		return b.bytes, nil
	}
	return b.bytes, o.checkBody(b.bytes)
}

// extendDeadlines gives what waits for Postgres, locks and receipts more time than
// checks have, and long bodies too. Nothing renews them while a body comes; the next
// request on the connection has its own again.
func (m *management) extendDeadlines(c *gin.Context, op *operation) {
	now := time.Now()
	controller := http.NewResponseController(c.Writer)
	// What cannot be extended keeps its limits.
	_ = controller.SetWriteDeadline(now.Add(longRequest))
	if op.takesLong() {
		_ = controller.SetReadDeadline(now.Add(m.bodyTime))
	}
}

// fillRequest says how the admin asks.
func (m *management) fillRequest(c *gin.Context, state *managed, body []byte) {
	op, r, request := state.operation, c.Request, &state.request
	request.RequestID = requestID(c)
	request.Address = clientAddress(r, m.trusted)
	request.Operation = op.route
	if org := c.Param("org"); org != "" {
		request.Operation += " " + org
	}
	request.Fingerprint = fingerprint(r, body)
	request.DryRun = r.URL.Query().Get("dry_run") == "true" // refused where it is not taken
	if op.takes("Idempotency-Key") {
		request.IdempotencyKey = r.Header.Get("Idempotency-Key")
	}
	if op.takes("If-Match") {
		// "*" is any version, and stays 0.
		request.IfVersion, _ = strconv.Atoi(strings.Trim(r.Header.Get("If-Match"), `"`))
	}
}

// fingerprint hashes all of a request by which one differs from another, each part
// behind its length.
func fingerprint(r *http.Request, body []byte) [32]byte {
	hash := sha256.New()
	for _, part := range [][]byte{[]byte(r.Method), []byte(r.URL.EscapedPath()), []byte(r.URL.RawQuery), body} {
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(part)))
		hash.Write(length[:])
		hash.Write(part)
	}
	return [32]byte(hash.Sum(nil))
}

// fail answers with an error of manage's; others are faults of ours.
func (m *management) fail(c *gin.Context, err error) { fail(c, m.judged(c, err)) }

// judged is an error as clients see it; what they cannot help is logged.
func (m *management) judged(c *gin.Context, err error) *problem {
	var known *authz.Error
	if !errors.As(err, &known) {
		known = &authz.Error{Kind: authz.KindInternal}
	}
	p := managementProblem(known)
	switch {
	case c.Request.Context().Err() != nil:
		// Nobody is there to be answered, and a client that leaves is no fault of ours.
	case p.Status >= http.StatusInternalServerError:
		m.log.Error("a management request failed", slog.String("operation", stateOf(c).operation.id),
			slog.Any("error", err), slog.String("request_id", requestID(c)))
	}
	return p
}

// refuseBody answers for a body that passed the document and does not fit its Go type.
func (m *management) refuseBody(c *gin.Context, err error) {
	if issue := misfit(err); issue != nil {
		fail(c, issue)
		return
	}
	m.fail(c, fmt.Errorf("read a checked body: %w", err))
}

// misfit says how a value that JSON Schema accepts is not one of Go's: a whole number
// written as 5.0 or 5e0, or a time with escapes in its string. It is nil for others.
func misfit(err error) *problem {
	var moment *time.ParseError
	var mismatch *json.UnmarshalTypeError
	switch {
	case errors.As(err, &moment):
		return unacceptable("out_of_range", fieldIssue{"", "times must be like 2027-01-31T00:00:00Z, without escapes"})
	case errors.As(err, &mismatch):
		at := "" // names of our types, never what was sent
		if mismatch.Field != "" {
			at = "/" + strings.ReplaceAll(mismatch.Field, ".", "/")
		}
		return unacceptable("invalid_type", fieldIssue{at, "must be a whole number without fraction or exponent"})
	}
	return nil
}

// textID is an id of any kind that is being read.
type textID interface {
	encoding.TextUnmarshaler
	IsZero() bool
}

// pathID reads an id of a path. What is no id is not there, as a foreign or unknown
// one; nor is the zero id, which to manage would mean no organization at all.
func pathID(text string, id textID, what string) error {
	if err := id.UnmarshalText([]byte(text)); err != nil || id.IsZero() {
		return &authz.Error{Kind: authz.KindNotFound, Code: "not_found", Message: "there is no such " + what}
	}
	return nil
}

// badField is an error about a value that the document cannot judge.
func badField(pointer, message string) error {
	return &authz.Error{Kind: authz.KindInvalid, Code: "out_of_range", Pointer: pointer, Message: message}
}

// pageOf reads where a page begins and how long it is.
func pageOf(cursor *string, limit *int, id textID) (manage.Page, error) {
	var p manage.Page
	if cursor != nil {
		if id.UnmarshalText([]byte(*cursor)) != nil || id.IsZero() {
			return p, errCursor()
		}
		p.After = *cursor
	}
	p.Limit = value(limit)
	return p, nil
}

func errCursor() error {
	return badField("", "query parameter cursor must be the next_cursor of the page before")
}

// value returns what p points to, or the zero value.
func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
