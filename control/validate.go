package control

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/nacrehq/nacre"
)

// Bounds of what a create says.
const (
	maxName          = 128     // bytes, of a sandbox or a snapshot
	maxMetadata      = 128     // entries
	maxMetadataKey   = 256     // bytes
	maxMetadataValue = 8 << 10 // bytes
	maxMetadataTotal = 64 << 10
	maxEnv           = 1024
	maxEnvName       = 256
	maxEnvValue      = 96 << 10 // Linux takes 128 KiB for one string
	maxEnvTotal      = 256 << 10
	maxRules         = 256 // entries of AllowOut, and of DenyOut
	maxIdle          = 24 * time.Hour
)

// validate checks everything that can be known without asking anybody, and names
// the field that is wrong.
func (l *Limits) validate(r *nacre.CreateRequest) error {
	if r.Template == "" {
		r.Template = "base"
	}
	if len(r.Template) > 256 || strings.ContainsFunc(r.Template, unprintable) || !utf8.ValidString(r.Template) {
		return nacre.Invalidf("Template", "the template's name is longer than 256 bytes or has characters that cannot be printed")
	}
	if r.Timeout == 0 {
		r.Timeout = l.DefaultTimeout
	}
	if err := l.checkTimeout(r.Timeout); err != nil {
		return err
	}
	switch r.OnTimeout {
	case "":
		r.OnTimeout = nacre.TimeoutKill
	case nacre.TimeoutKill, nacre.TimeoutPause:
	default:
		return nacre.Invalidf("OnTimeout", "OnTimeout must be %q or %q", nacre.TimeoutKill, nacre.TimeoutPause)
	}
	if r.AutoResume && r.FilesOnly {
		return nacre.Invalidf("AutoResume", "a sandbox that is paused without its memory boots when it is resumed, which takes too long for a request; give AutoResume or FilesOnly, not both")
	}
	if err := checkIdle(r.IdleTimeout); err != nil {
		return err
	}
	if err := checkName(r.Name); err != nil {
		return err
	}
	if err := checkMetadata(r.Metadata); err != nil {
		return err
	}
	if err := checkEnv(r.Env); err != nil {
		return err
	}
	_, err := checkNetwork(r.Network)
	return err
}

func unprintable(c rune) bool { return !unicode.IsPrint(c) }

func checkName(name string) error {
	if len(name) > maxName || strings.ContainsFunc(name, unprintable) || !utf8.ValidString(name) {
		return nacre.Invalidf("Name", "Name is longer than %d bytes or has characters that cannot be printed", maxName)
	}
	return nil
}

func checkIdle(d time.Duration) error {
	if d < 0 || d > maxIdle {
		return nacre.Invalidf("IdleTimeout", "IdleTimeout must be between 0, which is never, and %s", maxIdle)
	}
	return nil
}

func checkMetadata(m map[string]string) error {
	if len(m) > maxMetadata {
		return nacre.Invalidf("Metadata", "Metadata has %d entries; at most %d are allowed", len(m), maxMetadata)
	}
	total := 0
	for k, v := range m {
		total += len(k) + len(v)
		switch {
		case k == "" || len(k) > maxMetadataKey:
			return nacre.Invalidf("Metadata", "a key of Metadata is empty or longer than %d bytes", maxMetadataKey)
		case len(v) > maxMetadataValue:
			return nacre.Invalidf("Metadata", "the value of %q in Metadata is longer than %d bytes", k, maxMetadataValue)
		case badText(k) || badText(v):
			return nacre.Invalidf("Metadata", "the entry %q of Metadata has invalid UTF-8 or a NUL in it", k)
		}
	}
	if total > maxMetadataTotal {
		return nacre.Invalidf("Metadata", "Metadata has %d bytes; at most %d are allowed", total, maxMetadataTotal)
	}
	return nil
}

func checkEnv(m map[string]string) error {
	if len(m) > maxEnv {
		return nacre.Invalidf("Env", "Env has %d entries; at most %d are allowed", len(m), maxEnv)
	}
	total := 0
	for k, v := range m { // values are secret: no message has one
		total += len(k) + len(v)
		switch {
		case k == "" || len(k) > maxEnvName || strings.ContainsRune(k, '=') || badText(k):
			return nacre.Invalidf("Env", "%q is not a name for an environment variable: it must have 1 to %d bytes and no '=' or NUL", k, maxEnvName)
		case len(v) > maxEnvValue:
			return nacre.Invalidf("Env", "the value of %q in Env is longer than %d bytes", k, maxEnvValue)
		case badText(v):
			return nacre.Invalidf("Env", "the value of %q in Env has invalid UTF-8 or a NUL in it", k)
		}
	}
	if total > maxEnvTotal {
		return nacre.Invalidf("Env", "Env has %d bytes; at most %d are allowed", total, maxEnvTotal)
	}
	return nil
}

func badText(s string) bool { return !utf8.ValidString(s) || strings.ContainsRune(s, 0) }

// checkNetwork returns the outbound half as what is enforced.
func checkNetwork(p nacre.NetworkPolicy) (nacre.EgressPolicy, error) {
	for field, n := range map[string]int{"AllowOut": len(p.AllowOut), "DenyOut": len(p.DenyOut)} {
		if n > maxRules {
			return nacre.EgressPolicy{}, nacre.Invalidf(field, "%s has %d entries; at most %d are allowed", field, n, maxRules)
		}
	}
	e, err := p.Egress()
	if err != nil {
		return nacre.EgressPolicy{}, err
	}
	for _, a := range e.Allow {
		if !a.Addr().Is4() {
			return nacre.EgressPolicy{}, nacre.Invalidf("AllowOut", "AllowOut: sandboxes have no IPv6, so %s cannot be allowed", a)
		}
	}
	if !nacre.ValidHostMask(p.MaskRequestHost) {
		return nacre.EgressPolicy{}, nacre.Invalidf("MaskRequestHost", "MaskRequestHost must be a host name, with a port if need be; \"${PORT}\" stands for the port")
	}
	return e, nil
}
