package moru

import (
	"net/http"
	"slices"
	"strings"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// listTeams answers the command lines' log-in: the one team of the key that was
// presented, with that key.
func (d *dialect) listTeams(c *api.Call) error {
	ts, err := d.Teams.Teams(c.R.Context())
	if err != nil {
		return err
	}
	out := []team{}
	for _, t := range ts {
		if t.ID == c.Team {
			out = append(out, team{TeamID: string(t.ID), Name: t.Name, APIKey: api.Credential(c.R), IsDefault: true})
		}
	}
	return c.JSON(http.StatusOK, out)
}

func (d *dialect) listKeys(c *api.Call) error {
	keys, err := d.Teams.Keys(c.R.Context(), c.Team)
	if err != nil {
		return err
	}
	out := []apiKey{}
	for _, k := range keys {
		if k.RevokedAt.IsZero() {
			out = append(out, keyOf(k))
		}
	}
	return c.JSON(http.StatusOK, out)
}

// createKey makes another key of the same team. The answer is the only place
// where it is ever seen.
func (d *dialect) createKey(c *api.Call) error {
	var in newAPIKey
	if err := readObject(c, &in); err != nil {
		return err
	}
	in.Name = strings.TrimSpace(in.Name)
	if in.Name == "" || len(in.Name) > 100 {
		return nacre.Invalidf("name", "name must have 1 to 100 characters")
	}
	secret, k := nacre.NewKey(c.Team, in.Name, d.Clock())
	if err := d.Teams.InsertKey(c.R.Context(), k); err != nil {
		return err
	}
	out := keyOf(k)
	out.Key = secret
	return c.JSON(http.StatusCreated, out)
}

func (d *dialect) revokeKey(c *api.Call) error {
	id := c.R.PathValue("key")
	keys, err := d.Teams.Keys(c.R.Context(), c.Team)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(keys, func(k nacre.Key) bool { return k.ID == id && k.RevokedAt.IsZero() }) {
		return nacre.Errorf(nacre.CodeNotFound, "there is no API key with this id")
	}
	if err := d.Teams.RevokeKey(c.R.Context(), c.Team, id); err != nil {
		return err
	}
	d.Auth.Forget()
	return c.NoContent()
}

func keyOf(k nacre.Key) apiKey {
	prefix := k.Hint[:strings.LastIndexByte(k.Hint, '_')+1]
	return apiKey{
		ID: k.ID, Name: k.Name, CreatedAt: timestamp(k.CreatedAt), LastUsed: timestampOrNull(k.UsedAt),
		Mask: keyMask{Prefix: prefix, ValueLength: 40, MaskedValuePrefix: k.Hint[len(prefix):]},
	}
}
