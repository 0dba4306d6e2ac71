package server

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre/sqlstore"
)

// TestAdminKeys: the owner of the host makes, lists and revokes keys, is told what
// is wrong with a request, and that the server is not there yet.
func TestAdminKeys(t *testing.T) {
	a := &admin{clock: time.Now, status: Status{Step: "making the base image"}}
	h := a.handler()
	call := func(method, path, body string, want int) []byte {
		t.Helper()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body)))
		if w.Code != want {
			t.Fatalf("%s %s: %d %s, want %d", method, path, w.Code, w.Body, want)
		}
		return w.Body.Bytes()
	}
	if out := call("GET", "/keys", "", http.StatusServiceUnavailable); !strings.Contains(string(out), "making the base image") {
		t.Errorf("while it starts: %s", out)
	}
	call("GET", "/status", "", http.StatusOK)

	db, err := sqlstore.Open(t.Context(), filepath.Join(t.TempDir(), "nacre.db"), sqlstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	a.open(db)
	var made adminKey
	if err := json.Unmarshal(call("POST", "/keys", `{"team":"other","name":"ci"}`, http.StatusCreated), &made); err != nil || made.Key == "" || made.Team != "other" {
		t.Fatalf("made %+v, %v", made, err)
	}
	call("POST", "/keys", `{`, http.StatusBadRequest)
	list := func(query string) (keys []adminKey) {
		t.Helper()
		if err := json.Unmarshal(call("GET", "/keys"+query, "", http.StatusOK), &keys); err != nil {
			t.Fatal(err)
		}
		return keys
	}
	if keys := list("?team=other"); len(keys) != 1 || keys[0].ID != made.ID || keys[0].Key != "" || keys[0].RevokedAt != nil {
		t.Errorf("listed %+v", keys)
	}
	if keys := list("?team=nobody"); len(keys) != 0 {
		t.Errorf("of a team that is not there: %+v", keys)
	}
	call("DELETE", "/keys/"+made.ID+"?team=nobody", "", http.StatusNotFound)
	call("DELETE", "/keys/no-such-key?team=other", "", http.StatusNotFound)
	if out := call("DELETE", "/keys/"+made.ID+"?team=other", "", http.StatusNoContent); len(out) != 0 {
		t.Errorf("a revocation answers %s", out)
	}
	if keys := list(""); len(keys) != 1 || keys[0].RevokedAt == nil {
		t.Errorf("after the revocation: %+v", keys)
	}
}
