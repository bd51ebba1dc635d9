package server

import (
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/supportstation/keystile/authz"
)

// check answers POST /v1/check: caller, body, decision.
func (s *Server) check(c *gin.Context) {
	c.Writer.Header()["X-Keystile-Decision"] = decisionError // until there is one
	body := s.buffers.get()
	defer s.buffers.put(body)
	q, issue := s.question(c, body, authz.PermissionCheck)
	if issue != nil {
		fail(c, issue)
		return
	}
	d, err := s.checker.Check(c.Request.Context(), q)
	if err != nil {
		fail(c, s.problemOf(c, err))
		return
	}
	s.metrics.decided(d)
	if d.Cause != nil {
		s.logUndecided(c, d)
	}
	body.bytes = appendDecision(body.bytes[:0], d)
	s.answer(c, d, body.bytes)
}

// question reads who asks, and what, into and out of body.
func (s *Server) question(c *gin.Context, body *buffer, p authz.Permission) (*authz.Check, *problem) {
	caller, issue := s.authenticate(c.Request, p)
	if issue != nil {
		return nil, issue
	}
	if issue := readBody(c, body, maxCheckBody, mediaJSON); issue != nil {
		return nil, issue
	}
	q, issue := s.decoders.decodeCheck(body.bytes, s.format, s.acceptsForeign)
	if issue != nil {
		return nil, issue
	}
	q.Caller = caller
	return q, nil
}

// answer sends a decision. It is 200 whatever was decided, because HTTP clients
// retry 429 and 5xx by themselves, unless the caller prefers the decision's status.
func (s *Server) answer(c *gin.Context, d *authz.Decision, body []byte) {
	header := c.Writer.Header()
	header["Content-Type"] = contentTypeJSON
	header["X-Keystile-Decision"] = decisionHeader(d)
	for _, h := range d.Headers {
		if strings.HasPrefix(h.Name, "X-RateLimit-") {
			header[h.Name] = []string{h.Value}
		}
	}
	status := http.StatusOK
	if prefersDecisionStatus(c.Request.Header) {
		status = d.Status
		// A 401 names its challenge (RFC 9110 §15.5.2); otherwise it is data for the app alone.
		for _, h := range d.Headers {
			if status == http.StatusUnauthorized && h.Name == "WWW-Authenticate" {
				header["WWW-Authenticate"] = []string{h.Value}
			}
		}
		header["Preference-Applied"] = []string{"status=decision"}
	}
	send(c, status, body)
}

//nolint:gochecknoglobals // header values that never change, shared to spare the hot path their making
var (
	contentTypeJSON = []string{"application/json"}
	noStore         = []string{"no-store"}
	nosniff         = []string{"nosniff"}
	decisionAllow   = []string{"allow"}
	decisionDeny    = []string{"deny"}
	decisionLimited = []string{"limited"}
	decisionError   = []string{"error"}
)

func decisionHeader(d *authz.Decision) []string {
	switch {
	case d.Allow:
		return decisionAllow
	case d.Code == authz.CodeRateLimited:
		return decisionLimited
	case d.Code == authz.CodeUnavailable:
		return decisionError
	}
	return decisionDeny
}

// prefersDecisionStatus reads `Prefer: status=decision` (RFC 7240).
func prefersDecisionStatus(h http.Header) bool {
	for _, line := range h["Prefer"] {
		for preference := range strings.SplitSeq(line, ",") {
			preference, _, _ = strings.Cut(preference, ";")
			name, value, _ := strings.Cut(preference, "=")
			value = strings.Trim(strings.TrimSpace(value), `"`)
			if strings.EqualFold(strings.TrimSpace(name), "status") && strings.EqualFold(value, "decision") {
				return true
			}
		}
	}
	return false
}

// authenticate recognizes the caller. One credential, or none is believed.
func (s *Server) authenticate(r *http.Request, p authz.Permission) (*authz.Caller, *problem) {
	token := ""
	if lines := r.Header["Authorization"]; len(lines) == 1 {
		token = bearer(lines[0])
	}
	caller, err := s.callers.Authenticate(r.Context(), token, p)
	if err == nil {
		return caller, nil
	}
	var known *authz.Error
	if !errors.As(err, &known) {
		return nil, internalProblem()
	}
	if known.Kind == authz.KindUnavailable {
		s.undecided.Do(func() { s.log.Warn("a caller could not be verified", slog.Any("error", err)) })
	}
	return nil, problemOf(known)
}

// bearer returns the token of an Authorization header (RFC 6750 §2.1), or "".
func bearer(line string) string {
	scheme, token, _ := strings.Cut(line, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimLeft(token, " ")
}

// readBody reads a body of a media type and of at most limit bytes into b.
func readBody(c *gin.Context, b *buffer, limit int, media string) *problem {
	r := c.Request
	if !hasContent(r.Header, media) {
		return &problem{
			Status: http.StatusUnsupportedMediaType, Code: "unsupported_media_type", Title: "Unsupported media type",
			Detail: "Send the body as Content-Type: " + media + ", in UTF-8 and without a Content-Encoding.",
		}
	}
	if r.ContentLength > int64(limit) {
		return tooLarge(c, limit)
	}
	limited := io.LimitedReader{R: r.Body, N: int64(limit) + 1}
	if err := b.readFrom(&limited); err != nil {
		return badRequest("malformed_json", "The body ended before its announced length, or came too slowly.")
	}
	if len(b.bytes) > limit {
		return tooLarge(c, limit)
	}
	return nil
}

func tooLarge(c *gin.Context, limit int) *problem {
	// Nothing more of the body is read: the connection is of no use any more.
	c.Writer.Header()["Connection"] = []string{"close"}
	return &problem{
		Status: http.StatusRequestEntityTooLarge, Code: "body_too_large", Title: "Body too large",
		Detail: "The body may have at most " + strconv.Itoa(limit) + " bytes.",
	}
}

func hasContent(h http.Header, media string) bool {
	if len(h["Content-Encoding"]) > 0 || len(h["Content-Type"]) != 1 {
		return false
	}
	value := h["Content-Type"][0]
	if value == media {
		return true
	}
	mediaType, params, err := mime.ParseMediaType(value)
	if err != nil || mediaType != media {
		return false
	}
	charset, given := params["charset"]
	return !given || strings.EqualFold(charset, "utf-8")
}

func (s *Server) problemOf(c *gin.Context, err error) *problem {
	var known *authz.Error
	if errors.As(err, &known) {
		return problemOf(known)
	}
	s.log.Error("a check failed", slog.Any("error", err), slog.String("request_id", requestID(c)))
	return internalProblem()
}

// logUndecided tells why something could not be decided, at most once a second: a
// dependency that is away must not fill the disk.
func (s *Server) logUndecided(c *gin.Context, d *authz.Decision) {
	s.undecided.Do(func() {
		s.log.Warn("a check could not be decided", slog.Any("error", d.Cause),
			slog.String("decision_id", d.ID.String()), slog.String("request_id", requestID(c)))
	})
}
