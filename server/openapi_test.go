package server

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/nacrehq/nacre/api"
	"github.com/nacrehq/nacre/api/miosa"
	"github.com/nacrehq/nacre/api/moru"
)

// TestOpenAPI: the document holds every route of both dialects and nothing else; each
// has a sentence and an answer, each parameter of a path is described, and every
// reference leads somewhere.
func TestOpenAPI(t *testing.T) {
	h, err := openAPI("test", http.NotFoundHandler())
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/openapi.json", nil))
	var doc struct {
		OpenAPI string
		Paths   map[string]map[string]struct {
			Summary    string
			Parameters []struct{ Name, In string }
			Responses  map[string]json.RawMessage
			Tags       []string
		}
		Components struct{ Schemas map[string]json.RawMessage }
	}
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || w.Code != 200 || doc.OpenAPI != "3.1.0" {
		t.Fatalf("%d %v", w.Code, err)
	}
	described := map[string]bool{}
	for path, operations := range doc.Paths {
		for method, op := range operations {
			described[strings.ToUpper(method)+" "+path] = true
			if op.Summary == "" || len(op.Responses) < 1 || len(op.Tags) != 1 {
				t.Errorf("%s %s: %+v", method, path, op)
			}
			inPath := 0
			for _, p := range op.Parameters {
				if p.In == "path" {
					inPath++
				}
			}
			if inPath != strings.Count(path, "{") {
				t.Errorf("%s %s describes %d parameters of its path", method, path, inPath)
			}
		}
	}
	for _, part := range []api.Part{moru.Describe(), miosa.Describe()} {
		if len(part.Routes) < 50 {
			t.Errorf("%s has %d routes", part.Name, len(part.Routes))
		}
		for _, r := range part.Routes {
			name := r.Method + " " + strings.ReplaceAll(r.Path, "...}", "}")
			if !described[name] {
				t.Errorf("%s is routed and not described", name)
			}
			delete(described, name)
		}
	}
	for name := range described {
		t.Errorf("%s is described and not routed", name)
	}
	for ref := range strings.SplitSeq(w.Body.String(), `"#/components/schemas/`) {
		if name, _, ok := strings.Cut(ref, `"`); ok && strings.HasPrefix(name, "m") && len(doc.Components.Schemas[name]) < 10 {
			t.Errorf("the schema %s is empty", name)
		}
	}
	w = httptest.NewRecorder()
	if h.ServeHTTP(w, httptest.NewRequest("GET", "/sandboxes", nil)); w.Code != 404 {
		t.Errorf("another path: %d", w.Code)
	}
}

// TestOpenAPIBites: a route that nobody describes, and the opposite, are refused.
func TestOpenAPIBites(t *testing.T) {
	p := miosa.Describe()
	p.Routes = append(p.Routes, api.Route{Method: "GET", Path: "/forgotten"})
	if _, err := api.OpenAPI("test", p); err == nil {
		t.Error("a route without a description passed")
	}
	p = miosa.Describe()
	p.Docs["GET /gone"] = api.Doc{Text: "x"}
	if _, err := api.OpenAPI("test", p); err == nil {
		t.Error("a description without a route passed")
	}
}
