package miosa

import (
	"context"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// Resolver asks the DNS; net.Resolver is one.
type Resolver interface {
	LookupCNAME(ctx context.Context, host string) (string, error)
	LookupTXT(ctx context.Context, name string) ([]string, error)
}

const lookupTime = 10 * time.Second

var domainForm = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]$`)

// previewDomain is a tenant's own name for previews.
type previewDomain struct {
	ID            *string          `json:"id,omitempty"`
	PreviewDomain *string          `json:"preview_domain"`
	Domain        *string          `json:"domain"`
	DefaultDomain string           `json:"default_domain"`
	Status        string           `json:"status"` // not_configured, pending_dns, configured
	Verified      bool             `json:"verified"`
	VerifiedAt    *string          `json:"verified_at"`
	CheckedAt     *string          `json:"checked_at"`
	CnameTarget   *string          `json:"cname_target"`
	Target        *string          `json:"target"`
	Instructions  *dnsInstruction  `json:"dns_instructions"`
	Records       []dnsInstruction `json:"records"`
	PreviewID     *string          `json:"preview_id,omitempty"`
	CreatedAt     *string          `json:"created_at,omitempty"`
}

type dnsInstruction struct {
	Type  string `json:"type"`
	Name  string `json:"name"`
	Value string `json:"value"`
}

func (a *API) domainOf(d *nacre.Domain) previewDomain {
	out := previewDomain{DefaultDomain: a.Domain, Status: "not_configured", Records: []dnsInstruction{}}
	if d == nil {
		return out
	}
	name := filled(d.Name)
	out.ID, out.PreviewDomain, out.Domain, out.CnameTarget, out.Target = filled(string(d.ID)), name, name, filled(d.Target), filled(d.Target)
	out.Status, out.VerifiedAt, out.CheckedAt, out.CreatedAt = "pending_dns", timestamp(d.VerifiedAt), timestamp(d.CheckedAt), timestamp(d.CreatedAt)
	if out.Verified = !d.VerifiedAt.IsZero(); out.Verified {
		out.Status = "configured"
	}
	out.PreviewID = filled(string(d.Preview))
	at := d.Name
	if d.Preview == "" {
		at = "*." + d.Name
	}
	out.Records = []dnsInstruction{{"CNAME", at, d.Target}, {"TXT", proofName(d.Name), d.Proof}}
	out.Instructions = &out.Records[0]
	return out
}

func proofName(domain string) string { return "_nacre." + domain }

// newDomain drafts a record.
func (a *API) newDomain(c *api.Call, name string) (nacre.Domain, error) {
	name = strings.TrimSuffix(strings.ToLower(strings.TrimSpace(name)), ".")
	host, _, _ := strings.Cut(a.Domain, ":")
	if len(name) > 253 || !domainForm.MatchString(name) || name == host || strings.HasSuffix(name, "."+host) {
		return nacre.Domain{}, nacre.Invalidf("domain", "domain must be a name of your own, such as preview.example.com")
	}
	secret := random(10)
	return nacre.Domain{ID: nacre.NewDomainID(), TeamID: c.Team, Name: name, Target: "c" + secret + "." + host,
		Proof: "nacre-verify=" + secret, CreatedAt: a.Clock().UTC()}, nil
}

// tenantDomain is the team's domain for all its previews, nil for none.
func (a *API) tenantDomain(c *api.Call) (*nacre.Domain, error) {
	all, err := a.Domains.Domains(c.R.Context(), c.Team)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(d nacre.Domain) bool { return d.Preview == "" })
	if i < 0 {
		return nil, nil
	}
	return &all[i], nil
}

func (a *API) getPreviewDomain(c *api.Call) error {
	d, err := a.tenantDomain(c)
	if err != nil {
		return err
	}
	return one(c, http.StatusOK, a.domainOf(d))
}

// setPreviewDomain sets the tenant's domain; the one before goes.
func (a *API) setPreviewDomain(c *api.Call) error {
	var in struct {
		PreviewDomain string `json:"preview_domain"`
		Domain        string `json:"domain"`
	}
	if err := read(c, &in); err != nil {
		return err
	}
	if in.PreviewDomain == "" {
		in.PreviewDomain = in.Domain
	}
	d, err := a.newDomain(c, in.PreviewDomain)
	if err != nil {
		return err
	}
	was, err := a.tenantDomain(c)
	if err != nil {
		return err
	}
	if was != nil && was.Name == d.Name {
		return one(c, http.StatusOK, a.domainOf(was))
	}
	if err := a.Domains.InsertDomain(c.R.Context(), d); err != nil {
		return nameTaken(err)
	}
	if was != nil {
		if err := a.Domains.DeleteDomain(c.R.Context(), c.Team, was.ID); err != nil && !nacre.IsCode(err, nacre.CodeNotFound) {
			return err
		}
	}
	return one(c, http.StatusOK, a.domainOf(&d))
}

func (a *API) deletePreviewDomain(c *api.Call) error {
	d, err := a.tenantDomain(c)
	if err != nil {
		return err
	}
	if d != nil {
		if err := a.Domains.DeleteDomain(c.R.Context(), c.Team, d.ID); err != nil {
			return err
		}
	}
	return c.NoContent()
}

func (a *API) verifyPreviewDomain(c *api.Call) error {
	d, err := a.tenantDomain(c)
	if err != nil {
		return err
	}
	if d == nil {
		return nacre.Errorf(nacre.CodeNotFound, "no preview domain is set")
	}
	checked, err := a.check(c, *d)
	if err != nil {
		return nameTaken(err)
	}
	return one(c, http.StatusOK, a.domainOf(&checked))
}

// check asks the DNS whether a domain is the team's, and records what it says.
func (a *API) check(c *api.Call, d nacre.Domain) (nacre.Domain, error) {
	ok := a.proved(c.R.Context(), d)
	return a.Domains.UpdateDomain(c.R.Context(), c.Team, d.ID, func(d *nacre.Domain) error {
		d.CheckedAt = a.Clock().UTC()
		if ok && d.VerifiedAt.IsZero() {
			d.VerifiedAt = d.CheckedAt
		}
		return nil
	})
}

// proved tells whether a CNAME leads to the record's own target, or the TXT is there.
func (a *API) proved(ctx context.Context, d nacre.Domain) bool {
	if a.Resolver == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	host := d.Name
	if d.Preview == "" {
		host = "nacre-verify." + d.Name // the wildcard answers for it
	}
	if name, err := a.Resolver.LookupCNAME(ctx, host); err == nil && strings.EqualFold(strings.TrimSuffix(name, "."), d.Target) {
		return true
	}
	texts, err := a.Resolver.LookupTXT(ctx, proofName(d.Name))
	return err == nil && slices.Contains(texts, d.Proof)
}

func (a *API) listDomains(c *api.Call) error {
	all, err := a.Domains.Domains(c.R.Context(), c.Team)
	if err != nil {
		return err
	}
	out := []previewDomain{}
	for _, d := range all {
		out = append(out, a.domainOf(&d))
	}
	return list(c, out)
}

// createDomain adds a name that shows one preview, or the slugs below it.
func (a *API) createDomain(c *api.Call) error {
	var in struct {
		Domain    string `json:"domain"`
		Hostname  string `json:"hostname"`
		Name      string `json:"name"`
		PreviewID string `json:"preview_id"`
	}
	if err := read(c, &in); err != nil {
		return err
	}
	for _, s := range []string{in.Hostname, in.Name} {
		if in.Domain == "" {
			in.Domain = s
		}
	}
	d, err := a.newDomain(c, in.Domain)
	if err != nil {
		return err
	}
	if in.PreviewID != "" {
		p, err := a.Previews.GetPreview(c.R.Context(), c.Team, nacre.PreviewID(in.PreviewID))
		if err != nil {
			return err
		}
		d.Preview = p.ID
	}
	if err := a.Domains.InsertDomain(c.R.Context(), d); err != nil {
		return nameTaken(err)
	}
	return one(c, http.StatusCreated, a.domainOf(&d))
}

func (a *API) verifyDomain(c *api.Call) error {
	all, err := a.Domains.Domains(c.R.Context(), c.Team)
	if err != nil {
		return err
	}
	for _, d := range all {
		if string(d.ID) == c.R.PathValue("domain") {
			checked, err := a.check(c, d)
			if err != nil {
				return nameTaken(err)
			}
			return one(c, http.StatusOK, a.domainOf(&checked))
		}
	}
	return nacre.Errorf(nacre.CodeNotFound, "there is no such domain")
}

func (a *API) deleteDomain(c *api.Call) error {
	if err := a.Domains.DeleteDomain(c.R.Context(), c.Team, nacre.DomainID(c.R.PathValue("domain"))); err != nil {
		return err
	}
	return c.NoContent()
}
