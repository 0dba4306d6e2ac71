package miosa

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strconv"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// one answers with an object whose fields stand at the top and once more below
// "data": some clients take the one, some the other.
func one(c *api.Call, status int, v any) error {
	body, err := superset(v)
	if err != nil {
		return err
	}
	return c.JSON(status, body)
}

// superset returns {...v, "data": v}. v must encode as an object without "data".
func superset(v any) (json.RawMessage, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, nacre.Wrap(nacre.CodeInternal, err, "the answer could not be encoded")
	}
	inner := bytes.TrimSpace(buf.Bytes())
	out := make([]byte, 0, 2*len(inner)+10)
	out = append(out, inner[:len(inner)-1]...)
	if len(inner) > 2 {
		out = append(out, ',')
	}
	out = append(out, `"data":`...)
	out = append(out, inner...)
	return append(out, '}'), nil
}

// encode is for values that always encode.
func encode(v any) []byte {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err)
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte{'\n'})
}

// list answers with all of a list.
func list[T any](c *api.Call, items []T) error {
	if items == nil {
		items = []T{}
	}
	return c.JSON(http.StatusOK, map[string]any{"data": items})
}

// read decodes a body; none at all, and null, leave v as it is.
func read(c *api.Call, v any) error {
	_, err := c.Read(v)
	return err
}

// intParam reads a whole number of the query.
func intParam(c *api.Call, name string, def, lo, hi int) (int, error) {
	s := c.R.URL.Query().Get(name)
	if s == "" {
		return def, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < lo || n > hi {
		return 0, nacre.Invalidf(name, "%s must be a whole number from %d to %d", name, lo, hi)
	}
	return n, nil
}

// random returns n random bytes in hexadecimal.
func random(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // which never fails
	return hex.EncodeToString(b)
}
