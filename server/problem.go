package server

import (
	"net/http"
	"strconv"

	"github.com/gin-gonic/gin"

	"github.com/supportstation/keystile/authz"
)

// problem is a problem document (RFC 9457) about the question itself. It never
// holds a value that was sent.
type problem struct {
	Status int
	Code   string
	Title  string
	Detail string
	Issues []fieldIssue
	// Allow lists the methods of a 405.
	Allow string
	// Challenge is the WWW-Authenticate of a 401.
	Challenge string
}

func badRequest(code, detail string, issues ...fieldIssue) *problem {
	return &problem{Status: http.StatusBadRequest, Code: code, Title: "The request cannot be read", Detail: detail, Issues: issues}
}

func internalProblem() *problem {
	return &problem{
		Status: http.StatusInternalServerError, Code: "internal", Title: "Internal error",
		Detail: "Something unexpected went wrong. The request id finds it in the log.",
	}
}

// problemOf is the one place that maps errors of the domain to HTTP.
func problemOf(err *authz.Error) *problem {
	p := &problem{Code: err.Code, Detail: err.Message}
	if err.Pointer != "" {
		p.Issues = []fieldIssue{{err.Pointer, err.Message}}
	}
	switch err.Kind {
	case authz.KindInvalid:
		p.Status, p.Title = http.StatusUnprocessableEntity, "The question cannot be answered"
	case authz.KindUnauthenticated:
		p.Status, p.Title = http.StatusUnauthorized, "Caller not recognized"
		p.Challenge = `Bearer realm="keystile"`
	case authz.KindForbidden:
		p.Status, p.Title = http.StatusForbidden, "Caller not permitted"
	case authz.KindUnavailable:
		p.Status, p.Title = http.StatusServiceUnavailable, "Not available"
	default:
		return internalProblem()
	}
	return p
}

// fail writes a problem as the answer. It is the one error writer.
func fail(c *gin.Context, p *problem) {
	header := c.Writer.Header()
	header["Content-Type"] = []string{"application/problem+json"}
	header["X-Keystile-Decision"] = []string{"error"}
	if p.Allow != "" {
		header["Allow"] = []string{p.Allow}
	}
	if p.Challenge != "" {
		header["WWW-Authenticate"] = []string{p.Challenge}
	}
	b := make([]byte, 0, 512)
	b = append(b, `{"type":"urn:keystile:problem:`...)
	b = append(b, p.Code...)
	b = append(b, `","title":`...)
	b = appendString(b, p.Title)
	b = append(b, `,"status":`...)
	b = strconv.AppendInt(b, int64(p.Status), 10)
	b = append(b, `,"code":`...)
	b = appendString(b, p.Code)
	b = append(b, `,"detail":`...)
	b = appendString(b, p.Detail)
	b = append(b, `,"request_id":`...)
	b = appendString(b, header.Get("X-Request-Id"))
	if len(p.Issues) > 0 {
		b = append(b, `,"errors":[`...)
		for i, issue := range p.Issues {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(b, `{"pointer":`...)
			b = appendString(b, issue.pointer)
			b = append(b, `,"message":`...)
			b = appendString(b, issue.message)
			b = append(b, '}')
		}
		b = append(b, ']')
	}
	b = append(b, '}', '\n')
	send(c, p.Status, b)
}

// send writes a whole body.
func send(c *gin.Context, status int, body []byte) {
	c.Writer.Header()["Content-Length"] = []string{strconv.Itoa(len(body))}
	c.Writer.WriteHeader(status)
	_, _ = c.Writer.Write(body) // a client that left is nobody's error
	c.Abort()
}
