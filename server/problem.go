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
	// Challenge is the WWW-Authenticate of a 401.
	Challenge string
	// Reasons are policy's, for a management request that it refused.
	Reasons []authz.Reason
	// RetryAfter is in seconds; 0 says nothing. A check never says it: that would
	// throttle the app for one of its clients.
	RetryAfter int
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

// titleUnacceptable is the title of a management request that cannot be carried out.
const titleUnacceptable = "The request cannot be carried out"

// problemOf is the one place that maps errors of the domain to HTTP.
func problemOf(err *authz.Error) *problem {
	p := &problem{Code: err.Code, Detail: err.Message, Reasons: err.Reasons}
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
	case authz.KindThrottled:
		// Without Retry-After: only checks of keys that are not in memory wait.
		p.Status, p.Title = http.StatusTooManyRequests, "Caller throttled"
	case authz.KindUnavailable:
		p.Status, p.Title = http.StatusServiceUnavailable, "Not available"
	case authz.KindNotFound:
		p.Status, p.Title = http.StatusNotFound, "Not found"
	case authz.KindConflict:
		p.Status, p.Title = http.StatusConflict, "Conflict"
	case authz.KindPrecondition:
		p.Status, p.Title = http.StatusPreconditionFailed, "Changed meanwhile"
	default:
		return internalProblem()
	}
	return p
}

// managementProblem is problemOf in the words of the management API.
func managementProblem(err *authz.Error) *problem {
	p := problemOf(err)
	switch p.Status {
	case http.StatusUnprocessableEntity:
		p.Title = titleUnacceptable
	case http.StatusUnauthorized:
		p.Title = "Admin not recognized"
	case http.StatusForbidden:
		p.Title = "Not permitted"
	case http.StatusServiceUnavailable:
		p.RetryAfter = 1
	}
	return p
}

// fail writes a problem as the answer. It is the one error writer.
func fail(c *gin.Context, p *problem) {
	header := c.Writer.Header()
	header["Content-Type"] = []string{"application/problem+json"}
	if p.Challenge != "" {
		header["WWW-Authenticate"] = []string{p.Challenge}
	}
	if p.RetryAfter > 0 {
		header["Retry-After"] = []string{strconv.Itoa(p.RetryAfter)}
	}
	body := problemBody(p, header.Get("X-Request-Id"))
	send(c, p.Status, append(body, '\n'))
}

// problemBody is a problem as JSON.
func problemBody(p *problem, requestID string) []byte {
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
	b = appendString(b, requestID)
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
	if len(p.Reasons) > 0 {
		b = append(b, `,"reasons":`...)
		b = appendReasons(b, p.Reasons)
	}
	return append(b, '}')
}

// send writes a whole body.
func send(c *gin.Context, status int, body []byte) {
	c.Writer.Header()["Content-Length"] = []string{strconv.Itoa(len(body))}
	c.Writer.WriteHeader(status)
	_, _ = c.Writer.Write(body) // a client that left is nobody's error
	c.Abort()
}
