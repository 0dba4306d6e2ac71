package server

import (
	"net/http"

	"github.com/nacrehq/nacre/api"
	"github.com/nacrehq/nacre/api/miosa"
	"github.com/nacrehq/nacre/api/moru"
)

// openAPI serves the document that describes both dialects at its one path, and
// passes everything else on. Nobody needs a key to read it.
func openAPI(version string, next http.Handler) (http.Handler, error) {
	text, err := api.OpenAPI(version, moru.Describe(), miosa.Describe())
	if err != nil {
		return nil, err
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/openapi.json" || r.Method != http.MethodGet && r.Method != http.MethodHead {
			next.ServeHTTP(w, r)
			return
		}
		h := w.Header()
		h.Set("Content-Type", "application/json")
		h.Set("Access-Control-Allow-Origin", "*")
		_, _ = w.Write(text) // a client that went away is not our error
	}), nil
}
