package ginmw_test

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/gin-gonic/gin"

	keystile "github.com/supportstation/keystile/sdk"
	"github.com/supportstation/keystile/sdk/ginmw"
	"github.com/supportstation/keystile/sdk/keystiletest"
)

const token = "ksc_for_tests_only"

// newEngine returns an engine that tells the organization it sees, and how
// often a handler ran.
func newEngine(t *testing.T, checker keystile.Checker) (*gin.Engine, *int) {
	t.Helper()
	gin.SetMode(gin.ReleaseMode)
	engine, served := gin.New(), new(int)
	engine.Use(ginmw.Protect(checker, keystile.OnError(nil)))
	engine.GET("/api/v1/tickets", func(c *gin.Context) {
		*served++
		d, ok := ginmw.FromContext(c)
		if !ok || c.GetHeader("Authorization") != "" {
			c.Status(http.StatusInternalServerError)
			return
		}
		c.String(http.StatusOK, d.Organization.ID)
	})
	return engine, served
}

func serve(engine http.Handler, method, path, key string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	if key != "" {
		r.Header.Set("Authorization", "Bearer "+key)
	}
	w := httptest.NewRecorder()
	engine.ServeHTTP(w, r)
	return w
}

func start(t *testing.T) (*keystiletest.Service, *keystile.Client) {
	t.Helper()
	service := keystiletest.New(token)
	server := httptest.NewServer(service)
	t.Cleanup(server.Close)
	client, err := keystile.New(server.URL, token)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	return service, client
}

func TestProtect_AllowedRequestKnowsItsOrganization(t *testing.T) {
	service, client := start(t)
	secret := keystiletest.Secret(keystile.Live)
	service.Grant(secret, "org_acme", keystile.Live, "tickets:read")
	engine, _ := newEngine(t, client)
	resp := serve(engine, http.MethodGet, "/api/v1/tickets", secret)
	if body := resp.Body.String(); resp.Code != http.StatusOK || body != "org_acme" {
		t.Errorf("%d %q; want 200 org_acme", resp.Code, body)
	}
	if got := map[string][]string(resp.Header())["X-RateLimit-Limit"]; !slices.Equal(got, []string{"100"}) {
		t.Errorf("X-RateLimit-Limit = %v", got)
	}
}

func TestProtect_DeniedRequestStopsTheChain(t *testing.T) {
	_, client := start(t)
	engine, served := newEngine(t, client)
	for _, path := range []string{"/api/v1/tickets", "/no/such/route"} {
		resp := serve(engine, http.MethodGet, path, "")
		if resp.Code != http.StatusUnauthorized || resp.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %s; want a 401 problem", path, resp.Code, resp.Header().Get("Content-Type"))
		}
	}
	if *served != 0 {
		t.Error("the handler ran")
	}
}

func TestProtect_UnansweredRequestFailsClosed(t *testing.T) {
	engine, served := newEngine(t, nil)
	if resp := serve(engine, http.MethodGet, "/api/v1/tickets", "k"); resp.Code != http.StatusServiceUnavailable || *served != 0 {
		t.Errorf("%d, served %d; want 503 and 0", resp.Code, *served)
	}
}

func TestFromContext_WithoutProtectIsNobody(t *testing.T) {
	c, _ := gin.CreateTestContext(httptest.NewRecorder())
	c.Request = httptest.NewRequest(http.MethodGet, "/", nil)
	if d, ok := ginmw.FromContext(c); ok || d != nil {
		t.Errorf("identity = %+v", d)
	}
}
