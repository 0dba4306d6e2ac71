package edge

import (
	"bytes"
	"encoding/json"
	"html/template"
	"net/http"
	"strconv"
	"strings"
)

// sandboxError is the body of the answers that the clients know.
type sandboxError struct {
	SandboxID string `json:"sandboxId"`
	Message   string `json:"message"`
	Port      int    `json:"port,omitempty"`
	Code      int    `json:"code"`
}

// The two sentences that clients look for.
const (
	messageNotFound = "The sandbox was not found"
	messageNotOpen  = "The sandbox is running but port is not open"
)

// messageNoAnswer comes with 504. The sandbox runs: 502 the clients' is_running would
// take for a no, while this is an exception that says so.
const messageNoAnswer = "The sandbox is running but its agent gave no answer in time"

func (t target) notFound(w http.ResponseWriter, r *http.Request) {
	t.badGateway(w, r, sandboxError{Message: messageNotFound})
}

func (t target) notOpen(w http.ResponseWriter, r *http.Request) {
	t.badGateway(w, r, sandboxError{Message: messageNotOpen, Port: t.port})
}

// badGateway answers 502.
func (t target) badGateway(w http.ResponseWriter, r *http.Request, body sandboxError) {
	body.Code = http.StatusBadGateway
	t.gatewayError(w, r, body)
}

// gatewayError answers with the body's code, 502 by default, as a page to a
// browser and as JSON to all others.
func (t target) gatewayError(w http.ResponseWriter, r *http.Request, body sandboxError) {
	body.SandboxID = t.id
	if body.Code == 0 {
		body.Code = http.StatusBadGateway
	}
	if !wantsPage(r) {
		writeBody(w, body.Code, body)
		return
	}
	var page bytes.Buffer
	if err := errorPage.Execute(&page, body); err != nil {
		writeBody(w, body.Code, body)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	send(w, body.Code, page.Bytes())
}

// wantsPage tells a browser's navigation from a program.
func wantsPage(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && strings.Contains(r.Header.Get("Accept"), "text/html")
}

var errorPage = template.Must(template.New("").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{{.Message}}</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:36rem;margin:15vh auto;padding:0 1rem}code{background:#8883;padding:.1em .3em;border-radius:.2em}</style>
<h1>{{.Message}}</h1>
{{if eq .Code 504}}<p>The sandbox <code>{{.SandboxID}}</code> is busy. Load this page again in a moment.</p>
{{else if .Port}}<p>Nothing listens on port <code>{{.Port}}</code> of the sandbox <code>{{.SandboxID}}</code>. Start the server there, then load this page again.</p>
{{else if eq .Code 503}}<p>The sandbox <code>{{.SandboxID}}</code> is kept. Load this page again in a moment.</p>
{{else}}<p>There is no running sandbox <code>{{.SandboxID}}</code>. It may have ended, or be paused.</p>
{{end}}</html>
`))

// writeError answers in the agent's form.
func writeError(w http.ResponseWriter, status int, message string) {
	writeBody(w, status, struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}{status, message})
}

func writeBody(w http.ResponseWriter, status int, body any) {
	text, err := json.Marshal(body)
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	send(w, status, append(text, '\n'))
}

func send(w http.ResponseWriter, status int, body []byte) {
	h := w.Header()
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that went away is not our error
}

// allowBrowsers lets pages of any origin read the agent's answers: what opens
// the agent is a token in a header, which no browser sends by itself.
func allowBrowsers(h http.Header) {
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Expose-Headers", "*")
}

// preflight answers a browser's question before the real request.
func preflight(w http.ResponseWriter, r *http.Request) bool {
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	h := w.Header()
	h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, DELETE, OPTIONS")
	h.Set("Access-Control-Allow-Headers", "*, Authorization")
	h.Set("Access-Control-Max-Age", "7200")
	w.WriteHeader(http.StatusNoContent)
	return true
}
