// Package ginmw protects Gin routes with a Keystile service. It adds nothing to
// [keystile.Guard] but Gin's manners; options and answers are described there.
package ginmw

import (
	"github.com/gin-gonic/gin"

	keystile "github.com/supportstation/keystile/sdk"
)

// Protect lets through what the service allows and answers everything else
// itself, as [keystile.Guard.Check] says. Use it on the engine, so that unknown
// routes are asked about too:
//
//	engine.Use(ginmw.Protect(client))
//
// It is safe for concurrent use.
func Protect(checker keystile.Checker, opts ...keystile.GuardOption) gin.HandlerFunc {
	guard := keystile.NewGuard(checker, opts...)
	return func(c *gin.Context) {
		passed, ok := guard.Check(c.Writer, c.Request)
		if !ok {
			c.Abort()
			return
		}
		c.Request = passed
		c.Next()
	}
}

// FromContext returns the decision that allowed the request. It is false when
// Protect did not run for it; then there is no organization, and a handler must
// not serve.
func FromContext(c *gin.Context) (*keystile.Decision, bool) {
	return keystile.FromContext(c.Request.Context())
}
