package miosa

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

const (
	maxSecret      = 64 << 10
	placeholderTag = "miosa-tok-" // what a guest sees begins with it
)

type newSecret struct {
	Name         string                     `json:"name"`
	Value        *string                    `json:"value"`
	Type         string                     `json:"type"`
	Scope        string                     `json:"scope"`
	ExposeAsEnv  string                     `json:"expose_as_env"`
	ResourceID   string                     `json:"resource_id"`
	ResourceType string                     `json:"resource_type"`
	ExpiresAt    *string                    `json:"expires_at"`
	Metadata     map[string]json.RawMessage `json:"metadata"`
	RefreshToken json.RawMessage            `json:"refresh_token"`
}

// secret is what may be told of a secret: never its value.
type secret struct {
	ID           string                     `json:"id"`
	Name         string                     `json:"name"`
	Type         string                     `json:"type"`
	Scope        string                     `json:"scope"`
	Status       string                     `json:"status"` // active, expired
	Preview      string                     `json:"preview"`
	MaskedValue  string                     `json:"masked_value"`
	Version      int                        `json:"version"`
	ResourceID   *string                    `json:"resource_id"`
	ResourceType *string                    `json:"resource_type"`
	ExposeAsEnv  *string                    `json:"expose_as_env"`
	Metadata     map[string]json.RawMessage `json:"metadata"`
	CreatedAt    string                     `json:"created_at"`
	UpdatedAt    string                     `json:"updated_at"`
	RotatedAt    *string                    `json:"rotated_at"`
	ExpiresAt    *string                    `json:"expires_at"`
}

type binding struct {
	ID           string  `json:"id"`
	SecretID     string  `json:"secret_id"`
	ResourceID   string  `json:"resource_id"`
	ResourceType string  `json:"resource_type"`
	ExposeAsEnv  *string `json:"expose_as_env"`
	EnvVar       *string `json:"env_var"`
	Placeholder  string  `json:"placeholder"`
	CreatedAt    string  `json:"created_at"`
}

func (a *API) secretOf(s nacre.Secret, b *nacre.SecretBinding) secret {
	out := secret{ID: string(s.ID), Name: s.Name, Type: s.Kind, Scope: s.Scope, Status: "active", Preview: s.Hint, MaskedValue: s.Hint,
		Version: s.Version, Metadata: userMetadata(s.Metadata), CreatedAt: *timestamp(s.CreatedAt), UpdatedAt: *timestamp(s.UpdatedAt),
		RotatedAt: timestamp(s.RotatedAt), ExpiresAt: timestamp(s.ExpiresAt)}
	if !s.ExpiresAt.IsZero() && !s.ExpiresAt.After(a.Clock()) {
		out.Status = "expired"
	}
	if b != nil {
		out.ResourceID, out.ResourceType, out.ExposeAsEnv = filled(string(b.Sandbox)), filled("sandbox"), filled(b.Env)
	}
	return out
}

func bindingOf(b nacre.SecretBinding) binding {
	return binding{ID: string(b.ID), SecretID: string(b.Secret), ResourceID: string(b.Sandbox), ResourceType: "sandbox",
		ExposeAsEnv: filled(b.Env), EnvVar: filled(b.Env), Placeholder: b.Placeholder, CreatedAt: *timestamp(b.CreatedAt)}
}

// createSecret keeps a secret; with a sandbox it is bound to that.
func (a *API) createSecret(c *api.Call) error {
	var in newSecret
	if err := read(c, &in); err != nil {
		return err
	}
	now := a.Clock().UTC()
	s, err := in.record(now)
	if err != nil {
		return err
	}
	s.TeamID = c.Team
	var b *nacre.SecretBinding
	if in.ResourceID != "" {
		if b, err = a.draftBinding(c, s.ID, in.ResourceType, in.ResourceID, in.ExposeAsEnv); err != nil {
			return err
		}
	}
	if err := a.Secrets.InsertSecret(c.R.Context(), s, *in.Value); err != nil {
		return nameTaken(err)
	}
	answer := map[string]any{"data": a.secretOf(s, b), "binding": nil}
	if b != nil {
		if err := a.Secrets.BindSecret(c.R.Context(), *b); err != nil {
			_ = a.Secrets.DeleteSecret(c.R.Context(), c.Team, s.ID) // or it stays unbound
			return err
		}
		a.bound.forget(b.Sandbox)
		answer["binding"] = bindingOf(*b)
	}
	return c.JSON(http.StatusCreated, answer)
}

func nameTaken(err error) error {
	if nacre.IsCode(err, nacre.CodeConflict) {
		return as("NAME_TAKEN", err)
	}
	return err
}

func (in *newSecret) record(now time.Time) (nacre.Secret, error) {
	s := nacre.Secret{ID: nacre.NewSecretID(), Version: 1, CreatedAt: now, UpdatedAt: now, Kind: "api_key", Scope: "user"}
	if in.Name == "" {
		return s, nacre.Invalidf("name", "name is missing")
	}
	if in.Value == nil || *in.Value == "" || len(*in.Value) > maxSecret {
		return s, nacre.Invalidf("value", "value must have 1 to %d bytes", maxSecret)
	}
	if r := string(in.RefreshToken); r != "" && r != "null" {
		return s, &nacre.Error{Code: nacre.CodeUnsupported, Field: "refresh_token", Message: "refresh_token: OAuth is not offered by this server"}
	}
	var err error
	if s.Name, err = word("name", in.Name); err != nil {
		return s, err
	}
	for _, f := range []struct {
		field, given string
		to           *string
	}{{"type", in.Type, &s.Kind}, {"scope", in.Scope, &s.Scope}} {
		if f.given != "" {
			if *f.to, err = word(f.field, f.given); err != nil {
				return s, err
			}
		}
	}
	if s.ExpiresAt, err = moment("expires_at", in.ExpiresAt); err != nil {
		return s, err
	}
	s.Metadata = map[string]string{}
	s.Hint = hint(*in.Value)
	return s, addMetadata(s.Metadata, in.Metadata)
}

// hint shows the beginning of a long value, so that it can be told from others.
func hint(value string) string {
	if len(value) < 16 {
		return "…"
	}
	return strings.ToValidUTF8(value[:4], "") + "…"
}

// moment reads a time; absent is the zero one.
func moment(field string, s *string) (time.Time, error) {
	if s == nil || *s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, *s)
	if err != nil {
		return t, nacre.Invalidf(field, "%s must be a time in RFC 3339", field)
	}
	return t.UTC(), nil
}

func (a *API) draftBinding(c *api.Call, id nacre.SecretID, kind, sandbox, env string) (*nacre.SecretBinding, error) {
	if kind != "" && kind != "sandbox" {
		return nil, nacre.Invalidf("resource_type", "resource_type must be \"sandbox\"")
	}
	if env != "" && (!envName.MatchString(env) || len(env) > maxWord) {
		return nil, nacre.Invalidf("expose_as_env", "expose_as_env must be a name for a variable")
	}
	box := nacre.SandboxID(sandbox)
	if !box.Valid() {
		return nil, as("SANDBOX_NOT_FOUND", nacre.Errorf(nacre.CodeNotFound, "there is no sandbox with this id"))
	}
	return &nacre.SecretBinding{ID: nacre.NewBindingID(), TeamID: c.Team, Secret: id, Sandbox: box, Env: env,
		Placeholder: placeholderTag + random(20), CreatedAt: a.Clock().UTC()}, nil
}

// listSecrets answers with "secrets", not "data", which one client takes for one object.
func (a *API) listSecrets(c *api.Call) error {
	q := c.R.URL.Query()
	all, err := a.Secrets.Secrets(c.R.Context(), c.Team, nacre.SecretFilter{Sandbox: nacre.SandboxID(q.Get("resource_id")), Name: q.Get("name"), Scope: q.Get("scope")})
	if err != nil {
		return err
	}
	uses, err := a.Secrets.SecretBindings(c.R.Context(), c.Team, nacre.SecretFilter{Sandbox: nacre.SandboxID(q.Get("resource_id"))})
	if err != nil {
		return err
	}
	first := map[nacre.SecretID]*nacre.SecretBinding{}
	for i := range uses {
		first[uses[i].Secret] = &uses[i]
	}
	out := []secret{}
	for _, s := range all {
		if kind := q.Get("type"); kind == "" || kind == s.Kind {
			out = append(out, a.secretOf(s, first[s.ID]))
		}
	}
	return c.JSON(http.StatusOK, map[string]any{"secrets": out})
}

func (a *API) getSecret(c *api.Call) error {
	s, err := a.Secrets.GetSecret(c.R.Context(), c.Team, nacre.SecretID(c.R.PathValue("secret")))
	if err != nil {
		return err
	}
	return a.answerSecret(c, s)
}

func (a *API) answerSecret(c *api.Call, s nacre.Secret) error {
	uses, err := a.Secrets.SecretBindings(c.R.Context(), c.Team, nacre.SecretFilter{Secret: s.ID})
	if err != nil {
		return err
	}
	var b *nacre.SecretBinding
	if len(uses) > 0 {
		b = &uses[0]
	}
	return one(c, http.StatusOK, a.secretOf(s, b))
}

// changeSecret rotates a value, or changes what is said of it.
func (a *API) changeSecret(c *api.Call) error {
	var in struct {
		Name      *string                    `json:"name"`
		Value     *string                    `json:"value"`
		ExpiresAt *string                    `json:"expires_at"`
		Metadata  map[string]json.RawMessage `json:"metadata"`
	}
	if err := read(c, &in); err != nil {
		return err
	}
	change := nacre.SecretChange{Name: in.Name, Value: in.Value}
	if in.Value != nil && (*in.Value == "" || len(*in.Value) > maxSecret) {
		return nacre.Invalidf("value", "value must have 1 to %d bytes", maxSecret)
	}
	if in.Name != nil {
		if _, err := word("name", *in.Name); err != nil || *in.Name == "" {
			return nacre.Invalidf("name", "name must have 1 to %d bytes and no control characters", maxWord)
		}
	}
	if in.ExpiresAt != nil {
		at, err := moment("expires_at", in.ExpiresAt)
		if err != nil {
			return err
		}
		change.ExpiresAt = &at
	}
	if in.Metadata != nil {
		change.Metadata = map[string]string{}
		if err := addMetadata(change.Metadata, in.Metadata); err != nil {
			return err
		}
	}
	s, err := a.Secrets.ChangeSecret(c.R.Context(), c.Team, nacre.SecretID(c.R.PathValue("secret")), change)
	if err != nil {
		return nameTaken(err)
	}
	return a.answerSecret(c, s)
}

func (a *API) deleteSecret(c *api.Call) error {
	if err := a.Secrets.DeleteSecret(c.R.Context(), c.Team, nacre.SecretID(c.R.PathValue("secret"))); err != nil {
		return err
	}
	a.bound.clear()
	return c.NoContent()
}

func (a *API) createBinding(c *api.Call) error {
	var in struct {
		SecretID     string `json:"secret_id"`
		ResourceID   string `json:"resource_id"`
		ResourceType string `json:"resource_type"`
		ExposeAsEnv  string `json:"expose_as_env"`
		EnvVar       string `json:"env_var"`
	}
	if err := read(c, &in); err != nil {
		return err
	}
	if in.ExposeAsEnv == "" {
		in.ExposeAsEnv = in.EnvVar
	}
	if in.SecretID == "" {
		return nacre.Invalidf("secret_id", "secret_id is missing")
	}
	b, err := a.draftBinding(c, nacre.SecretID(in.SecretID), in.ResourceType, in.ResourceID, in.ExposeAsEnv)
	if err != nil {
		return err
	}
	if err := a.Secrets.BindSecret(c.R.Context(), *b); err != nil {
		return err
	}
	a.bound.forget(b.Sandbox)
	return one(c, http.StatusCreated, bindingOf(*b))
}

func (a *API) listBindings(c *api.Call) error {
	q := c.R.URL.Query()
	all, err := a.Secrets.SecretBindings(c.R.Context(), c.Team, nacre.SecretFilter{
		Secret: nacre.SecretID(q.Get("secret_id")), Sandbox: nacre.SandboxID(q.Get("resource_id"))})
	if err != nil {
		return err
	}
	out := []binding{}
	for _, b := range all {
		out = append(out, bindingOf(b))
	}
	return c.JSON(http.StatusOK, map[string]any{"bindings": out})
}

func (a *API) deleteBinding(c *api.Call) error {
	if err := a.Secrets.UnbindSecret(c.R.Context(), c.Team, nacre.BindingID(c.R.PathValue("binding"))); err != nil {
		return err
	}
	a.bound.clear()
	return c.NoContent()
}
