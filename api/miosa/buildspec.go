package miosa

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// Bounds of a BuildSpec.
const (
	maxSteps  = 100
	maxScript = 32 << 10
)

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// checkSpec names every problem of a BuildSpec; none means that it is valid.
func checkSpec(raw json.RawMessage) []problem {
	var spec map[string]json.RawMessage
	if json.Unmarshal(raw, &spec) != nil || spec == nil {
		return []problem{{"INVALID_TYPE", "build_spec", "build_spec must be an object"}}
	}
	k := &specCheck{spec: spec}
	for _, name := range slices.Sorted(maps.Keys(spec)) {
		if _, ok := specFields[name]; !ok {
			k.add("UNKNOWN_FIELD", name, "%s is no field of a BuildSpec", name)
		}
	}
	if from := k.text("from", 1, 512); from == "" && k.absent("from") {
		k.add("REQUIRED", "from", "from is missing; it names the template or image to start from")
	}
	if size := k.text("size", 1, 32); size != "" {
		if _, ok := tiers[size]; !ok {
			k.add("INVALID_VALUE", "size", "size must be xs, small or medium")
		}
	}
	k.number("vcpu", 1, maxCPUs)
	k.number("memoryMib", 1, maxMemoryMB)
	k.number("diskMib", 1, maxDiskMB)
	k.number("previewPort", 1, 65535)
	k.steps()
	k.env()
	if dir := k.text("workdir", 1, 4096); dir != "" && !strings.HasPrefix(dir, "/") {
		k.add("INVALID_VALUE", "workdir", "workdir must be an absolute path")
	}
	k.text("user", 1, 64)
	k.text("startCmd", 1, maxScript)
	k.text("readyCmd", 1, maxScript)
	k.paths()
	return k.found
}

type specCheck struct {
	spec  map[string]json.RawMessage
	found []problem
}

func (k *specCheck) add(code, field, format string, args ...any) {
	k.found = append(k.found, problem{code, field, fmt.Sprintf(format, args...)})
}

func (k *specCheck) absent(name string) bool {
	raw, ok := k.spec[name]
	return !ok || string(raw) == "null"
}

func (k *specCheck) text(name string, lo, hi int) string {
	if k.absent(name) {
		return ""
	}
	var s string
	if json.Unmarshal(k.spec[name], &s) != nil {
		k.add("INVALID_TYPE", name, "%s must be a string", name)
		return ""
	}
	if len(s) < lo || len(s) > hi {
		k.add("INVALID_VALUE", name, "%s must have %d to %d bytes", name, lo, hi)
		return ""
	}
	return s
}

func (k *specCheck) number(name string, lo, hi int) {
	if k.absent(name) {
		return
	}
	var n int
	if json.Unmarshal(k.spec[name], &n) != nil {
		k.add("INVALID_TYPE", name, "%s must be a whole number", name)
	} else if n < lo || n > hi {
		k.add("OUT_OF_RANGE", name, "%s must be between %d and %d, not %d", name, lo, hi, n)
	}
}

func (k *specCheck) steps() {
	if k.absent("steps") {
		return
	}
	var list []json.RawMessage
	if json.Unmarshal(k.spec["steps"], &list) != nil {
		k.add("INVALID_TYPE", "steps", "steps must be a list")
		return
	}
	if len(list) > maxSteps {
		k.add("OUT_OF_RANGE", "steps", "steps: at most %d are allowed", maxSteps)
	}
	for i, raw := range list {
		field := fmt.Sprintf("steps[%d].run", i)
		var step struct {
			Run string `json:"run"`
		}
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.DisallowUnknownFields()
		switch err := dec.Decode(&step); {
		case err != nil:
			k.add("INVALID_TYPE", fmt.Sprintf("steps[%d]", i), "steps[%d] must be an object with the one field run", i)
		case strings.TrimSpace(step.Run) == "":
			k.add("REQUIRED", field, "%s is missing", field)
		case len(step.Run) > maxScript:
			k.add("INVALID_VALUE", field, "%s is longer than %d bytes", field, maxScript)
		}
	}
}

func (k *specCheck) env() {
	if k.absent("env") {
		return
	}
	var env map[string]json.RawMessage
	if json.Unmarshal(k.spec["env"], &env) != nil {
		k.add("INVALID_TYPE", "env", "env must be an object of strings")
		return
	}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		field := "env." + name
		var s string
		if !envName.MatchString(name) {
			k.add("INVALID_VALUE", field, "%s: this is not a name for a variable", field)
		} else if json.Unmarshal(env[name], &s) != nil {
			k.add("INVALID_TYPE", field, "%s must be a string", field)
		}
	}
}

func (k *specCheck) paths() {
	if k.absent("artifactPaths") {
		return
	}
	var list []string
	if json.Unmarshal(k.spec["artifactPaths"], &list) != nil {
		k.add("INVALID_TYPE", "artifactPaths", "artifactPaths must be a list of strings")
		return
	}
	for i, p := range list {
		if !strings.HasPrefix(p, "/") {
			field := fmt.Sprintf("artifactPaths[%d]", i)
			k.add("INVALID_VALUE", field, "%s must be an absolute path", field)
		}
	}
}

// specFields are the fields of a BuildSpec with their JSON schemas.
var specFields = map[string]any{
	"from":          map[string]any{"type": "string", "minLength": 1, "maxLength": 512, "description": "template or image to start from"},
	"size":          map[string]any{"type": "string", "enum": []string{"xs", "small", "medium"}},
	"vcpu":          map[string]any{"type": "integer", "minimum": 1, "maximum": maxCPUs},
	"memoryMib":     map[string]any{"type": "integer", "minimum": 1, "maximum": maxMemoryMB},
	"diskMib":       map[string]any{"type": "integer", "minimum": 1, "maximum": maxDiskMB},
	"steps":         map[string]any{"type": "array", "maxItems": maxSteps, "items": map[string]any{"type": "object", "required": []string{"run"}, "additionalProperties": false, "properties": map[string]any{"run": map[string]any{"type": "string", "minLength": 1}}}},
	"env":           map[string]any{"type": "object", "additionalProperties": map[string]any{"type": "string"}},
	"workdir":       map[string]any{"type": "string", "pattern": "^/"},
	"user":          map[string]any{"type": "string", "maxLength": 64},
	"startCmd":      map[string]any{"type": "string"},
	"readyCmd":      map[string]any{"type": "string"},
	"previewPort":   map[string]any{"type": "integer", "minimum": 1, "maximum": 65535},
	"artifactPaths": map[string]any{"type": "array", "items": map[string]any{"type": "string", "pattern": "^/"}},
}

func (a *API) specSchema(c *api.Call) error {
	return one(c, http.StatusOK, map[string]any{
		"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "BuildSpec", "type": "object",
		"required": []string{"from"}, "additionalProperties": false, "properties": specFields,
	})
}

// validateSpec answers 422 with every problem. A valid spec's answer has no
// "errors", whose form the clients do not agree on.
func (a *API) validateSpec(c *api.Call) error {
	var in struct {
		BuildSpec json.RawMessage `json:"build_spec"`
	}
	if err := read(c, &in); err != nil {
		return err
	}
	if len(in.BuildSpec) == 0 {
		in.BuildSpec = json.RawMessage("null")
	}
	if found := checkSpec(in.BuildSpec); len(found) > 0 {
		texts := make([]string, len(found))
		for i, p := range found {
			texts[i] = p.Message
		}
		err := nacre.Invalidf(found[0].Field, "%s", strings.Join(texts, "; "))
		return as("INVALID_BUILDSPEC", &problems{err, found})
	}
	return one(c, http.StatusOK, map[string]any{"valid": true, "build_spec": in.BuildSpec})
}
