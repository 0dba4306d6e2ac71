package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Doc says what a route is for. Body and Answer are values of the wire's types, nil
// where there is none or any fits.
type Doc struct {
	Text   string
	Query  string // names of parameters, separated by spaces
	Body   any
	Answer any
	Status int  // 0 means 200
	List   bool // the answer is a list of Answer
	Stream bool // the answer is a stream of server-sent events
	Bytes  bool // the answer is a file's bytes
	Once   bool // it obeys Idempotency-Key
}

// Part is a dialect as its document shows it.
type Part struct {
	Name   string // begins the names of its schemas
	Text   string
	Routes []Route
	Docs   map[string]Doc // by "METHOD /path"
	// NotOffered are the routes that are known and answer 501.
	NotOffered [][2]string
	// Wrap puts the schema of an answer into what the dialect answers with.
	Wrap func(schema map[string]any, d Doc) map[string]any
	// Error is a value of what the dialect answers a failure with, Invalid the status
	// of a bad request.
	Error   any
	Invalid int
}

// OpenAPI describes the parts as an OpenAPI 3.1 document. A route without a Doc and a
// Doc without a route are errors.
func OpenAPI(version string, parts ...Part) ([]byte, error) {
	d := &document{paths: map[string]map[string]any{}, schemas: map[string]any{}}
	tags := []any{}
	for _, p := range parts {
		if err := d.add(p); err != nil {
			return nil, err
		}
		tags = append(tags, map[string]any{"name": p.Name, "description": p.Text})
	}
	return json.Marshal(map[string]any{
		"openapi": "3.1.0",
		"info":    map[string]any{"title": "Nacre", "version": version, "license": map[string]any{"name": "Apache-2.0", "identifier": "Apache-2.0"}},
		"tags":    tags,
		"paths":   d.paths,
		"components": map[string]any{"schemas": d.schemas, "securitySchemes": map[string]any{
			"apiKey": map[string]any{"type": "apiKey", "in": "header", "name": "X-API-Key"},
			"bearer": map[string]any{"type": "http", "scheme": "bearer"},
		}},
		"security": []any{map[string]any{"apiKey": []string{}}, map[string]any{"bearer": []string{}}},
	})
}

type document struct {
	paths   map[string]map[string]any
	schemas map[string]any
}

func (d *document) add(p Part) error {
	docs := maps.Clone(p.Docs)
	for _, o := range p.NotOffered {
		docs[o[0]+" "+o[1]] = Doc{Text: "Not offered by this server.", Status: 501}
	}
	for _, r := range p.Routes {
		name := r.Method + " " + r.Path
		doc, ok := docs[name]
		if !ok {
			return fmt.Errorf("%s: the route %s is not described", p.Name, name)
		}
		delete(docs, name)
		path := strings.ReplaceAll(r.Path, "...}", "}")
		if d.paths[path] == nil {
			d.paths[path] = map[string]any{}
		}
		method := strings.ToLower(r.Method)
		if d.paths[path][method] != nil {
			return fmt.Errorf("%s: the route %s stands twice in the table", p.Name, name)
		}
		d.paths[path][method] = d.operation(p, r, doc)
	}
	for _, name := range slices.Sorted(maps.Keys(docs)) {
		return fmt.Errorf("%s: %s is described and not routed", p.Name, name)
	}
	return nil
}

func (d *document) operation(p Part, r Route, doc Doc) map[string]any {
	op := map[string]any{"tags": []string{p.Name}, "summary": doc.Text, "responses": d.responses(p, doc)}
	if r.Public {
		op["security"] = []any{}
	}
	params := []any{}
	param := func(in, name string, schema map[string]any) {
		params = append(params, map[string]any{"name": name, "in": in, "required": in == "path", "schema": schema})
	}
	text := map[string]any{"type": "string"}
	for segment := range strings.SplitSeq(r.Path, "/") {
		if strings.HasPrefix(segment, "{") {
			param("path", strings.TrimSuffix(strings.Trim(segment, "{}"), "..."), text)
		}
	}
	for _, name := range strings.Fields(doc.Query) {
		param("query", name, text)
	}
	if doc.Once {
		param("header", HeaderKey, map[string]any{"type": "string", "maxLength": 255,
			"description": "Within a day requests with the same key happen once."})
	}
	if len(params) > 0 {
		op["parameters"] = params
	}
	if doc.Body != nil {
		op["requestBody"] = map[string]any{"content": map[string]any{"application/json": map[string]any{"schema": d.schema(p.Name, reflect.TypeOf(doc.Body))}}}
	}
	return op
}

func (d *document) responses(p Part, doc Doc) map[string]any {
	failure := map[string]any{"description": "It failed; the body says why.", "content": map[string]any{
		"application/json": map[string]any{"schema": d.schema(p.Name, reflect.TypeOf(p.Error))}}}
	out := map[string]any{"default": failure}
	status := doc.Status
	switch {
	case status == 501:
		out["501"] = failure
		return out
	case status == 0:
		status = 200
	}
	ok := map[string]any{"description": "Done."}
	content := func(kind string, schema map[string]any) {
		ok["content"] = map[string]any{kind: map[string]any{"schema": schema}}
	}
	switch {
	case doc.Stream:
		content("text/event-stream", map[string]any{"type": "string"})
	case doc.Bytes:
		content("application/octet-stream", map[string]any{"type": "string", "format": "binary"})
	case status != 204:
		schema := map[string]any{}
		if doc.Answer != nil {
			schema = d.schema(p.Name, reflect.TypeOf(doc.Answer))
		}
		if p.Wrap != nil {
			schema = p.Wrap(schema, doc)
		} else if doc.List {
			schema = map[string]any{"type": "array", "items": schema}
		}
		content("application/json", schema)
	}
	out[strconv.Itoa(status)] = ok
	if doc.Body != nil {
		out[strconv.Itoa(p.Invalid)] = failure
	}
	return out
}

var (
	timeType    = reflect.TypeFor[time.Time]()
	rawType     = reflect.TypeFor[json.RawMessage]()
	decoderType = reflect.TypeFor[json.Unmarshaler]()
	encoderType = reflect.TypeFor[json.Marshaler]()
)

// schema describes a type of the wire. Named structs are components.
func (d *document) schema(part string, t reflect.Type) map[string]any {
	switch {
	case t == timeType:
		return map[string]any{"type": "string", "format": "date-time"}
	case t == rawType, t.Kind() == reflect.Interface, reflect.PointerTo(t).Implements(decoderType), t.Implements(encoderType):
		return map[string]any{} // anything, or what only its own code knows
	}
	switch t.Kind() {
	case reflect.Pointer:
		inner := d.schema(part, t.Elem())
		if kind, ok := inner["type"].(string); ok {
			inner = maps.Clone(inner)
			inner["type"] = []string{kind, "null"}
			return inner
		}
		return map[string]any{"anyOf": []any{inner, map[string]any{"type": "null"}}}
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.Float32, reflect.Float64:
		return map[string]any{"type": "number"}
	case reflect.String:
		return map[string]any{"type": "string"}
	case reflect.Slice, reflect.Array:
		return map[string]any{"type": "array", "items": d.schema(part, t.Elem())}
	case reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": d.schema(part, t.Elem())}
	case reflect.Struct:
		return d.object(part, t)
	}
	return map[string]any{"type": "integer"}
}

func (d *document) object(part string, t reflect.Type) map[string]any {
	name := part + "." + t.Name()
	ref := map[string]any{"$ref": "#/components/schemas/" + name}
	if _, ok := d.schemas[name]; ok && t.Name() != "" {
		return ref
	}
	if t.Name() != "" {
		d.schemas[name] = nil // for types that contain themselves
	}
	properties := map[string]any{}
	d.fields(part, t, properties)
	out := map[string]any{"type": "object", "properties": properties}
	if t.Name() == "" {
		return out
	}
	d.schemas[name] = out
	return ref
}

func (d *document) fields(part string, t reflect.Type, into map[string]any) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "" && f.Type.Kind() == reflect.Struct:
			d.fields(part, f.Type, into)
		case !f.IsExported(), name == "-", name == "":
		default:
			into[name] = d.schema(part, f.Type)
		}
	}
}
