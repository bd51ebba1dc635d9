package server

import (
	"context"
	"encoding/json"
	"errors"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gin-gonic/gin"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/audit"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/server/api"
)

// ListFindings implements api.StrictServerInterface.
func (m *management) ListFindings(ctx context.Context, in api.ListFindingsRequestObject) (api.ListFindingsResponseObject, error) {
	p := in.Params
	return m.findings(ctx, nil, api.ListOrganizationFindingsParams{
		Since: p.Since, Key: p.Key, Code: p.Code, Severity: p.Severity, Document: (*api.ListOrganizationFindingsParamsDocument)(p.Document),
	})
}

// ListOrganizationFindings implements api.StrictServerInterface.
func (m *management) ListOrganizationFindings(
	ctx context.Context, in api.ListOrganizationFindingsRequestObject,
) (api.ListOrganizationFindingsResponseObject, error) {
	return m.findings(ctx, &in.Org, in.Params)
}

func (m *management) findings(ctx context.Context, org *string, in api.ListOrganizationFindingsParams) (*findingsAnswer, error) {
	c, ok := ctx.(*gin.Context)
	if !ok {
		return nil, errors.New("findings are written to a connection")
	}
	_, r := requestOf(ctx)
	a := &findingsAnswer{m: m, c: c, request: r, document: audit.Format(value(in.Document))}
	a.wanted = manage.FindingsInput{
		Since: value(in.Since), Code: authz.FindingCode(value(in.Code)), Severity: authz.Severity(value(in.Severity)),
	}
	if org != nil {
		if err := pathID(*org, &a.wanted.Organization, "organization"); err != nil {
			return nil, err
		}
	}
	if in.Key != nil {
		if err := pathID(*in.Key, &a.wanted.Key, "key"); err != nil {
			return nil, err
		}
	}
	var acceptable bool
	if a.format, acceptable = formatOf(c.Request.Header["Accept"]); !acceptable {
		a.refused = &problem{
			Status: http.StatusNotAcceptable, Code: "not_acceptable", Title: "Not acceptable",
			Detail: "Findings come as " + strings.Join(mediaOfFindings(), ", ") + "; Accept names none of these.",
		}
		return a, nil
	}
	if a.document != "" && a.format != audit.JSONLines {
		return nil, badField("", "query parameter document is for Accept: "+mediaRows+"; else Accept names the form")
	}
	return a, nil
}

// findingFormats are the forms of findings, the first for whoever takes any.
func findingFormats() []audit.Format {
	return []audit.Format{audit.JSON, audit.JSONLines, audit.CSV, audit.SARIF, audit.HTML}
}

func mediaOfFindings() []string {
	return each(findingFormats(), func(f audit.Format) string {
		media, _, _ := strings.Cut(f.MediaType(), ";")
		return media
	})
}

// formatOf is what Accept (RFC 9110 §12.5.1) prefers; false when it takes none of ours.
func formatOf(lines []string) (audit.Format, bool) {
	text := strings.Join(lines, ",")
	if strings.TrimSpace(text) == "" {
		return audit.JSON, true
	}
	weights := map[audit.Format]acceptance{}
	for part := range strings.SplitSeq(text, ",") {
		media, parameters, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		weight := 1.0
		if q, ok := parameters["q"]; ok {
			if weight, err = strconv.ParseFloat(q, 64); err != nil {
				continue
			}
		}
		for i, own := range mediaOfFindings() {
			// What names a form more closely says more of it, also that it is not wanted.
			kind, _, _ := strings.Cut(own, "/")
			closeness := slices.Index([]string{"*/*", kind + "/*", own}, media)
			if of := findingFormats()[i]; closeness >= 0 && closeness >= weights[of].closeness {
				weights[of] = acceptance{closeness, weight}
			}
		}
	}
	var best audit.Format
	var most acceptance
	for _, of := range findingFormats() {
		if w := weights[of]; w.weight > most.weight || w.weight == most.weight && w.closeness > most.closeness {
			best, most = of, w
		}
	}
	return best, most.weight > 0
}

// acceptance is how much a form is wanted, by the part of Accept that names it the most closely.
type acceptance struct {
	closeness int
	weight    float64
}

// findingsAnswer is written as it is found. What goes wrong before the first byte is an answer
// like all others; what goes wrong after it ends the connection, or is the last line.
type findingsAnswer struct {
	m       *management
	c       *gin.Context
	request manage.Request
	wanted  manage.FindingsInput
	format  audit.Format
	// document is what the lines have the text of, "" for keys.
	document audit.Format

	// refused is why there is none, nil when there is one.
	refused *problem
	begun   bool
	// told is when a line said how far it is, extended when the connection got more time.
	told, extended time.Time
}

// VisitListFindingsResponse implements api.ListFindingsResponseObject.
func (a *findingsAnswer) VisitListFindingsResponse(w http.ResponseWriter) error { return a.write(w) }

// VisitListOrganizationFindingsResponse implements api.ListOrganizationFindingsResponseObject.
func (a *findingsAnswer) VisitListOrganizationFindingsResponse(w http.ResponseWriter) error {
	return a.write(w)
}

func (a *findingsAnswer) write(w http.ResponseWriter) error {
	if a.refused != nil {
		fail(a.c, a.refused)
		return nil
	}
	if a.format == audit.JSONLines {
		return a.writeLines(w)
	}
	renderer, err := audit.NewRenderer(a.format, writerFunc(func(part []byte) (int, error) {
		a.begin(w)
		return w.Write(part) //nolint:wrapcheck // of the connection's
	}))
	if err == nil {
		_, err = a.audit(renderer, func(int64, int64) { a.extend() })
	}
	if err != nil && a.begun {
		_ = a.m.judged(a.c, err)
		panic(http.ErrAbortHandler) // nobody takes a part for the whole
	}
	return err
}

// audit hands all that is found to a renderer.
func (a *findingsAnswer) audit(renderer audit.Renderer, told func(judged, of int64)) (*authz.AuditSummary, error) {
	summary, err := a.m.service.Findings(a.c.Request.Context(), a.request, a.wanted, told, renderer.Key)
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return summary, renderer.End(summary) //nolint:wrapcheck // fail logs it
}

// begin writes the headers. A browser saves what could be a page.
func (a *findingsAnswer) begin(w http.ResponseWriter) {
	a.extend()
	if a.begun {
		return
	}
	a.begun = true
	w.Header()["Content-Type"] = []string{a.format.MediaType()}
	if a.format == audit.CSV || a.format == audit.HTML || a.format == audit.SARIF {
		w.Header()["Content-Disposition"] = []string{`attachment; filename="findings.` + string(a.format) + `"`}
	}
	w.WriteHeader(http.StatusOK)
}

// extend gives the connection more time, as long as something happens. What cannot be extended
// keeps its limits.
func (a *findingsAnswer) extend() {
	if now := time.Now(); now.Sub(a.extended) >= time.Second {
		a.extended = now
		_ = http.NewResponseController(a.c.Writer).SetWriteDeadline(now.Add(longRequest))
	}
}

func (a *findingsAnswer) writeLines(w http.ResponseWriter) error {
	line := func(v any) {
		a.begin(w)
		_ = json.NewEncoder(w).Encode(v) // a client that left ends the request's context
		a.c.Writer.Flush()
	}
	told := func(judged, of int64) {
		a.extend()
		if now := time.Now(); now.Sub(a.told) >= diffTellEvery {
			a.told = now
			line(map[string]any{"progress": map[string]int64{"judged": judged, "keys": of}})
		}
	}
	renderer := audit.Renderer(keyLines(line))
	if a.document != "" {
		var err error
		text := &textLines{line: func(part string) { line(map[string]string{"text": part}) }}
		if renderer, err = audit.NewRenderer(a.document, text); err != nil {
			return err //nolint:wrapcheck // fail logs it
		}
	}
	summary, err := a.audit(renderer, told)
	if err == nil {
		line(map[string]any{"summary": summary})
	}
	if err != nil && a.begun {
		line(map[string]json.RawMessage{"problem": problemBody(a.m.judged(a.c, err), requestID(a.c))})
		return nil
	}
	return err
}

// keyLines has a key a line.
type keyLines func(any)

// Key implements audit.Renderer.
func (l keyLines) Key(k *authz.KeyFindings) error {
	if len(k.Findings) > 0 || len(k.Undecided) > 0 {
		l(map[string]any{"key": k})
	}
	return nil
}

// End implements audit.Renderer; the summary has a line in every case.
func (keyLines) End(*authz.AuditSummary) error { return nil }

type writerFunc func([]byte) (int, error)

// Write implements io.Writer.
func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// maxTextLine bounds the part of a text in one line, in bytes.
const maxTextLine = 32 << 10

// textLines hands text on in parts that are whole characters.
type textLines struct {
	line func(string)
	rest []byte
}

// Write implements io.Writer.
func (t *textLines) Write(p []byte) (int, error) {
	for part := range slices.Chunk(p, maxTextLine) {
		t.add(part)
	}
	return len(p), nil
}

func (t *textLines) add(p []byte) {
	t.rest = append(t.rest, p...)
	whole := len(t.rest)
	for back := 1; back <= utf8.UTFMax && back <= len(t.rest); back++ {
		if at := len(t.rest) - back; utf8.RuneStart(t.rest[at]) {
			if !utf8.FullRune(t.rest[at:]) {
				whole = at
			}
			break
		}
	}
	if whole > 0 {
		t.line(string(t.rest[:whole]))
		t.rest = append(t.rest[:0], t.rest[whole:]...)
	}
}

// ApplyKeyFindings implements api.StrictServerInterface.
func (m *management) ApplyKeyFindings(ctx context.Context, in api.ApplyKeyFindingsRequestObject) (api.ApplyKeyFindingsResponseObject, error) {
	body, tag, err := m.applyFindings(ctx, nil, in.Key, in.Body)
	return api.ApplyKeyFindings200JSONResponse{Body: body, Headers: api.ApplyKeyFindings200ResponseHeaders{ETag: tag}}, err
}

// ApplyOrganizationKeyFindings implements api.StrictServerInterface.
func (m *management) ApplyOrganizationKeyFindings(
	ctx context.Context, in api.ApplyOrganizationKeyFindingsRequestObject,
) (api.ApplyOrganizationKeyFindingsResponseObject, error) {
	body, tag, err := m.applyFindings(ctx, &in.Org, in.Key, in.Body)
	return api.ApplyOrganizationKeyFindings200JSONResponse{
		Body: body, Headers: api.ApplyOrganizationKeyFindings200ResponseHeaders{ETag: tag},
	}, err
}

// UndoKeyFindings implements api.StrictServerInterface.
func (m *management) UndoKeyFindings(ctx context.Context, in api.UndoKeyFindingsRequestObject) (api.UndoKeyFindingsResponseObject, error) {
	body, tag, err := m.undoFindings(ctx, nil, in.Key)
	return api.UndoKeyFindings200JSONResponse{Body: body, Headers: api.UndoKeyFindings200ResponseHeaders{ETag: tag}}, err
}

// UndoOrganizationKeyFindings implements api.StrictServerInterface.
func (m *management) UndoOrganizationKeyFindings(
	ctx context.Context, in api.UndoOrganizationKeyFindingsRequestObject,
) (api.UndoOrganizationKeyFindingsResponseObject, error) {
	body, tag, err := m.undoFindings(ctx, &in.Org, in.Key)
	return api.UndoOrganizationKeyFindings200JSONResponse{
		Body: body, Headers: api.UndoOrganizationKeyFindings200ResponseHeaders{ETag: tag},
	}, err
}

func (m *management) applyFindings(ctx context.Context, org *string, key string, in *api.FindingsApply) (api.FindingsChange, *string, error) {
	ctx, r := requestOf(ctx)
	organization, id, err := keyPath(org, key)
	if err != nil {
		return api.FindingsChange{}, nil, err
	}
	change, err := m.service.ApplyFindings(ctx, r, organization, id, manage.NarrowingInput{
		Since: value(in.Since), Keep: words[authz.Scope](value(in.Keep)),
	})
	return toFindingsChange(change, r.DryRun, err)
}

func (m *management) undoFindings(ctx context.Context, org *string, key string) (api.FindingsChange, *string, error) {
	ctx, r := requestOf(ctx)
	organization, id, err := keyPath(org, key)
	if err != nil {
		return api.FindingsChange{}, nil, err
	}
	change, err := m.service.UndoFindings(ctx, r, organization, id)
	return toFindingsChange(change, r.DryRun, err)
}

func toFindingsChange(c *manage.NarrowingChange, dryRun bool, err error) (api.FindingsChange, *string, error) {
	if err != nil {
		return api.FindingsChange{}, nil, err
	}
	n := &c.Narrowing
	out := api.FindingsChange{
		Key: toKey(c.Key, c.At), ScopesBefore: words[string](n.Before), ScopesAfter: words[string](n.After), NarrowedAt: n.At, NarrowedBy: n.By,
		UndoableUntil: n.UndoableUntil(), Undone: !n.UndoneAt.IsZero(), Findings: []api.Finding{}, Effective: toEffective(c.Effective), DryRun: dryRun,
	}
	if c.Findings != nil {
		out.Findings, out.Coverage = each(c.Findings.Findings, toFinding), optional(c.Findings.Coverage)
	}
	if c.Asked != nil {
		out.Asked = &api.AskedTraffic{
			PolicyRevision: c.Asked.Policy, Since: c.Findings.Evidence.Window.Since, Until: c.AskedUntil, Kinds: c.Kinds, Requests: c.Requests,
			Listed: each(c.Asked.Requests, toAskedRequests),
		}
	}
	return out, etag(c.Key.Version), nil
}

func toFinding(f authz.Finding) api.Finding {
	return api.Finding{
		Code: string(f.Code), Severity: api.Severity(f.Severity), Confidence: api.FindingConfidence(f.Confidence), Scopes: words[string](f.Scopes),
		Message: f.Message, Recommendation: f.Recommendation, Remedy: string(f.Remedy), RemoveScopes: words[string](f.RemoveScopes),
	}
}

func toAskedRequests(r authz.NarrowedRequests) api.AskedRequests {
	return api.AskedRequests{
		Outcome: string(r.Outcome), Method: r.Method, Path: r.Path, Action: r.Action, Caller: optional(r.Caller), Requests: r.Requests,
		Passed: r.Passed, Before: string(r.Before), After: string(r.After),
	}
}
