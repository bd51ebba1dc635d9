package keystiletest_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	keystile "github.com/supportstation/keystile/sdk"
	"github.com/supportstation/keystile/sdk/keystiletest"
)

func TestService_RefusesWhatTheRealOneRefuses(t *testing.T) {
	const token, contentType = "ksc_for_tests_only", "application/json"
	secret := keystiletest.Secret(keystile.Live)
	const fine = `{"key":"","method":"GET","path":"/api/v1/tickets"}`
	tests := []struct {
		name, method, path, token, contentType, body string
		status                                       int
	}{
		{"a question", "POST", "/v1/check", token, contentType, fine, 200},
		{"an action alone", "POST", "/v1/check", token, contentType, `{"key":"","action":"tickets:read"}`, 200},
		{"another path", "POST", "/v1/check/", token, contentType, fine, 404},
		{"another method", "GET", "/v1/check", token, contentType, fine, 405},
		{"another token", "POST", "/v1/check", "ksc_other", contentType, fine, 401},
		{"another type", "POST", "/v1/check", token, "text/plain", fine, 415},
		{"the secret itself", "POST", "/v1/check", token, contentType, `{"key":"` + secret + `","method":"GET","path":"/"}`, 422},
		{"no key", "POST", "/v1/check", token, contentType, `{"method":"GET","path":"/"}`, 422},
		{"a short digest", "POST", "/v1/check", token, contentType, `{"key_sha256":"00","method":"GET","path":"/"}`, 422},
		{"no path", "POST", "/v1/check", token, contentType, `{"key":"","method":"GET"}`, 422},
		{"an unknown field", "POST", "/v1/check", token, contentType, `{"key":"","action":"a","x":1}`, 422},
		{"a second document", "POST", "/v1/check", token, contentType, fine + fine, 422},
		{"an unknown environment", "POST", "/v1/check", token, contentType, `{"key":"","action":"a","environment":"prod"}`, 422},
		{"an endless cost", "POST", "/v1/check", token, contentType, `{"key":"","action":"a","cost":10001}`, 422},
		{"too much", "POST", "/v1/check", token, contentType, strings.Repeat(" ", 65<<10), 413},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest(tt.method, tt.path, strings.NewReader(tt.body))
			r.Header.Set("Authorization", "Bearer "+tt.token)
			r.Header.Set("Content-Type", tt.contentType)
			w := httptest.NewRecorder()
			service := keystiletest.New(token)
			service.ServeHTTP(w, r)
			if asked := len(service.Asked()); w.Code != tt.status || (asked == 1) != (tt.status == http.StatusOK) {
				t.Errorf("%d, asked %d: %s; want %d", w.Code, asked, w.Body, tt.status)
			}
		})
	}
}
