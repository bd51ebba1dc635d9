package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/supportstation/keystile/server/api"
)

// ListScopes implements api.StrictServerInterface.
func (m *management) ListScopes(ctx context.Context, _ api.ListScopesRequestObject) (api.ListScopesResponseObject, error) {
	ctx, r := requestOf(ctx)
	catalogue, err := m.service.Catalogue(ctx, r)
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.ListScopes200JSONResponse(toCatalogue(catalogue)), nil
}

// ListReplicas implements api.StrictServerInterface.
func (m *management) ListReplicas(ctx context.Context, _ api.ListReplicasRequestObject) (api.ListReplicasResponseObject, error) {
	ctx, r := requestOf(ctx)
	replicas, revision, err := m.service.Replicas(ctx, r)
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.ListReplicas200JSONResponse{Items: each(replicas, toReplica), Revision: revision}, nil
}

// serveDocument serves the API's document to everybody. It may be kept, but not used
// without asking whether it has changed.
func serveDocument() gin.HandlerFunc {
	document := api.Document()
	sum := sha256.Sum256(document)
	etag := `"` + hex.EncodeToString(sum[:16]) + `"`
	return func(c *gin.Context) {
		header := c.Writer.Header()
		header["Content-Type"] = []string{"application/yaml"}
		header["Cache-Control"] = []string{"no-cache"}
		header["Etag"] = []string{etag}
		http.ServeContent(c.Writer, c.Request, "", time.Time{}, bytes.NewReader(document))
	}
}
