package service

import (
	"encoding/json"
	"net/http"

	"github.com/gin-gonic/gin"
)

// Problem is the body of every answer that is an error (RFC 9457).
type Problem struct {
	Type   string  `json:"type"`
	Title  string  `json:"title"`
	Status int     `json:"status"`
	Code   string  `json:"code"`
	Detail string  `json:"detail"`
	Errors []Fault `json:"errors,omitempty"`
}

// Fault is one wrong field, without its value.
type Fault struct {
	Pointer string `json:"pointer"`
	Message string `json:"message"`
}

// Refuse answers with a problem and ends the request.
func Refuse(c *gin.Context, status int, code, detail string, faults ...Fault) {
	body, err := json.Marshal(Problem{
		Type: "about:blank", Title: http.StatusText(status), Status: status, Code: code, Detail: detail, Errors: faults,
	})
	if err != nil {
		c.AbortWithStatus(http.StatusInternalServerError)
		return
	}
	c.Data(status, "application/problem+json", append(body, '\n'))
	c.Abort()
}

// NotFound answers 404, the same for a row that is not there and for another's.
func NotFound(c *gin.Context) {
	Refuse(c, http.StatusNotFound, "not_found", "There is nothing at this address.")
}

// Broken answers 503 and keeps err for the log: the database did not do what
// it should.
func Broken(c *gin.Context, err error) {
	_ = c.Error(err)
	Refuse(c, http.StatusServiceUnavailable, "storage_unavailable", "The data cannot be reached. Try again.")
}
