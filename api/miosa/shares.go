package miosa

import (
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

type share struct {
	ID                  string  `json:"id"`
	ShareID             string  `json:"share_id"`
	PreviewID           *string `json:"preview_id"`
	PreviewToken        string  `json:"preview_token,omitempty"`
	Token               string  `json:"token,omitempty"`
	URL                 string  `json:"url"`
	ShareURL            string  `json:"share_url"`
	ShareTokenPrefix    string  `json:"share_token_prefix"`
	ShareTokenExpiresAt string  `json:"share_token_expires_at"`
	ExpiresAt           string  `json:"expires_at"`
	Scope               string  `json:"scope"`
	CreatedAt           string  `json:"created_at"`
	ExpiresIn           int     `json:"expires_in"`
}

// shareBody takes the clients' words for how long.
type shareBody struct {
	TTL       *int   `json:"ttl_seconds"`
	ExpiresIn *int   `json:"expires_in"`
	InSec     *int   `json:"expires_in_sec"`
	Scope     string `json:"scope"`
	PreviewID string `json:"preview_id"`
	Port      *int   `json:"port"`
}

func (in *shareBody) seconds() (int, error) {
	for _, f := range []struct {
		name  string
		value *int
	}{{"ttl_seconds", in.TTL}, {"expires_in_sec", in.InSec}, {"expires_in", in.ExpiresIn}} {
		if f.value != nil {
			return number(f.name, f.value, 0, 1, maxShare)
		}
	}
	return defaultShare, nil
}

// newToken makes a token and answers with it, for the only time.
func (a *API) newToken(c *api.Call, s nacre.Sandbox, p *nacre.Preview, in shareBody) error {
	n, err := in.seconds()
	if err != nil {
		return err
	}
	if in.Scope == "" {
		in.Scope = "read"
	}
	if _, err := word("scope", in.Scope); err != nil {
		return err
	}
	token := nacre.NewPreviewToken()
	now := a.Clock().UTC()
	t := nacre.PreviewToken{ID: nacre.NewPreviewTokenID(), TeamID: c.Team, Sandbox: s.ID, Hash: nacre.HashPreviewToken(token),
		Hint: token[:12], Scope: in.Scope, CreatedAt: now, ExpiresAt: now.Add(seconds(n))}
	shown, err := a.shownPreview(c, s, p, in.Port)
	if err != nil {
		return err
	}
	if p != nil {
		t.Preview = p.ID
	}
	if err := a.Previews.InsertPreviewToken(c.R.Context(), t); err != nil {
		return err
	}
	out := a.shareOf(t, shown)
	out.PreviewToken, out.Token, out.ExpiresIn = token, token, n
	out.URL += "?preview_token=" + url.QueryEscape(token)
	out.ShareURL = out.URL
	return one(c, http.StatusCreated, out)
}

// shownPreview is the preview whose URL goes with a token: the one that it opens, or
// the sandbox's first, which is made if need be.
func (a *API) shownPreview(c *api.Call, s nacre.Sandbox, p *nacre.Preview, port *int) (nacre.Preview, error) {
	if p != nil {
		return *p, nil
	}
	all, err := a.Previews.Previews(c.R.Context(), c.Team, s.ID)
	if err != nil {
		return nacre.Preview{}, err
	}
	for _, have := range all {
		if port == nil || have.Port == *port {
			return have, nil
		}
	}
	if port == nil {
		n := defaultPort
		port = &n
	}
	want, err := (&newPreview{Port: port, Visibility: "private"}).record(a.Clock().UTC())
	if err != nil {
		return want, err
	}
	return a.insertPreview(c, s, want)
}

func (a *API) shareOf(t nacre.PreviewToken, p nacre.Preview) share {
	return share{ID: string(t.ID), ShareID: string(t.ID), PreviewID: filled(string(t.Preview)), URL: a.previewURL(p.Slug) + "/",
		ShareURL: a.previewURL(p.Slug) + "/", ShareTokenPrefix: t.Hint, ShareTokenExpiresAt: *timestamp(t.ExpiresAt),
		ExpiresAt: *timestamp(t.ExpiresAt), Scope: t.Scope, CreatedAt: *timestamp(t.CreatedAt),
		ExpiresIn: int(t.ExpiresAt.Sub(t.CreatedAt) / time.Second)}
}

func (a *API) sharePreview(c *api.Call) error {
	var in shareBody
	if err := read(c, &in); err != nil {
		return err
	}
	p, s, err := a.preview(c)
	if err != nil {
		return err
	}
	return a.newToken(c, s, &p, in)
}

func (a *API) revokeShares(c *api.Call) error {
	p, _, err := a.preview(c)
	if err != nil {
		return err
	}
	if _, err := a.Previews.RevokePreviewTokens(c.R.Context(), c.Team, p.ID, ""); err != nil {
		return err
	}
	return c.NoContent()
}

// createShare makes a token for all previews of a sandbox, or for the one named.
func (a *API) createShare(c *api.Call) error {
	var in shareBody
	if err := read(c, &in); err != nil {
		return err
	}
	s, err := a.alive(c)
	if err != nil {
		return err
	}
	if in.PreviewID == "" {
		return a.newToken(c, s, nil, in)
	}
	p, err := a.Previews.GetPreview(c.R.Context(), c.Team, nacre.PreviewID(in.PreviewID))
	if err != nil || p.Sandbox != s.ID {
		return nacre.Errorf(nacre.CodeNotFound, "there is no such preview")
	}
	return a.newToken(c, s, &p, in)
}

func (a *API) listShares(c *api.Call) error {
	s, err := a.record(c)
	if err != nil {
		return err
	}
	tokens, err := a.Previews.PreviewTokens(c.R.Context(), c.Team, s.ID)
	if err != nil {
		return err
	}
	previews, err := a.Previews.Previews(c.R.Context(), c.Team, s.ID)
	if err != nil {
		return err
	}
	byID := map[nacre.PreviewID]nacre.Preview{}
	for i := len(previews) - 1; i >= 0; i-- {
		byID[previews[i].ID], byID[""] = previews[i], previews[i]
	}
	out := []share{}
	for _, t := range tokens {
		if t.ExpiresAt.After(a.Clock()) {
			out = append(out, a.shareOf(t, byID[t.Preview]))
		}
	}
	return list(c, out)
}

func (a *API) revokeShare(c *api.Call) error {
	s, err := a.record(c)
	if err != nil {
		return err
	}
	tokens, err := a.Previews.PreviewTokens(c.R.Context(), c.Team, s.ID)
	if err != nil {
		return err
	}
	id := nacre.PreviewTokenID(c.R.PathValue("share"))
	for _, t := range tokens {
		if t.ID == id {
			if _, err := a.Previews.RevokePreviewTokens(c.R.Context(), c.Team, "", id); err != nil {
				return err
			}
			return c.NoContent()
		}
	}
	return nacre.Errorf(nacre.CodeNotFound, "sandbox %s has no share %.40q", s.ID, strings.ToValidUTF8(string(id), ""))
}
