package base

import (
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// source is one entry of sources.list(5), in either spelling.
type source struct {
	Types      []string
	URIs       []string
	Suites     []string
	Components []string
	Options    map[string]string // keys in lower case: "signed-by", "architectures", ...
}

// readSources reads sources.list and sources.list.d in apt's order. Files with
// other endings are not apt's. A deb822 entry with "Enabled: no" is left out.
func readSources(aptDir string) ([]source, error) {
	var out []source
	paths := []string{filepath.Join(aptDir, "sources.list")}
	entries, err := os.ReadDir(filepath.Join(aptDir, "sources.list.d"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		paths = append(paths, filepath.Join(aptDir, "sources.list.d", e.Name()))
	}
	for _, path := range paths {
		parse := parseList
		switch filepath.Ext(path) {
		case ".list":
		case ".sources":
			parse = parseDeb822
		default:
			continue
		}
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, parse(string(text))...)
	}
	return out, nil
}

// parseList reads the one-line spelling: deb [ option=value ] uri suite component...
func parseList(text string) []source {
	var out []source
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		kind, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		rest = strings.TrimSpace(rest)
		options := map[string]string{}
		if strings.HasPrefix(rest, "[") {
			inside, after, ok := strings.Cut(rest[1:], "]")
			if !ok {
				continue
			}
			for _, o := range strings.Fields(inside) {
				key, value, _ := strings.Cut(o, "=")
				key = strings.ToLower(key)
				if key == "arch" { // the other spelling's word
					key = "architectures"
				}
				options[key] = strings.ReplaceAll(value, ",", " ")
			}
			rest = after
		}
		f := strings.Fields(rest)
		if len(f) < 2 {
			continue
		}
		out = append(out, source{Types: []string{kind}, URIs: f[:1], Suites: f[1:2], Components: f[2:], Options: options})
	}
	return out
}

// parseDeb822 reads stanzas of fields; a line that begins with a blank continues
// the field before it.
func parseDeb822(text string) []source {
	var out []source
	fields := map[string]string{}
	last := ""
	flush := func() {
		if s := fromFields(fields); s != nil {
			out = append(out, *s)
		}
		fields, last = map[string]string{}, ""
	}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) == "":
			flush()
		case line[0] == ' ' || line[0] == '\t':
			if last != "" {
				fields[last] += "\n" + strings.TrimSpace(line)
			}
		default:
			key, value, _ := strings.Cut(line, ":")
			last = strings.ToLower(strings.TrimSpace(key))
			fields[last] = strings.TrimSpace(value)
		}
	}
	flush()
	return out
}

func fromFields(fields map[string]string) *source {
	if slices.Contains([]string{"no", "false", "without", "off", "disable"}, strings.ToLower(fields["enabled"])) {
		return nil
	}
	s := source{Options: map[string]string{}}
	for key, value := range fields {
		switch key {
		case "types":
			s.Types = strings.Fields(value)
		case "uris":
			s.URIs = strings.Fields(value)
		case "suites":
			s.Suites = strings.Fields(value)
		case "components":
			s.Components = strings.Fields(value)
		default:
			s.Options[key] = value
		}
	}
	if len(s.URIs) == 0 || len(s.Suites) == 0 {
		return nil
	}
	return &s
}

// distribution keeps the distribution's own archives out of all entries, each
// cut down to what is the distribution's: a suite of its codename, components that
// it has, and its archive's key. Anything else on the host (a vendor's
// repository, one that is trusted without a key, a disc) is not for sandboxes.
func distribution(all []source, id, codename, arch string) []source {
	suites := []string{codename, codename + "-updates", codename + "-security", codename + "-backports", codename + "/updates"}
	components := []string{
		"main", "contrib", "non-free", "non-free-firmware", // Debian
		"restricted", "universe", "multiverse", // Ubuntu
	}
	var out []source
	for _, s := range all {
		kept := source{
			Types:      keep(s.Types, func(v string) bool { return v == "deb" }),
			URIs:       keep(s.URIs, overNetwork),
			Suites:     keep(s.Suites, func(v string) bool { return slices.Contains(suites, v) }),
			Components: keep(s.Components, func(v string) bool { return slices.Contains(components, v) }),
			Options:    map[string]string{},
		}
		if archs := strings.Fields(s.Options["architectures"]); len(archs) > 0 && !slices.Contains(archs, arch) {
			continue
		}
		if s.Options["trusted"] == "yes" || s.Options["allow-insecure"] == "yes" {
			continue
		}
		if key := s.Options["signed-by"]; key != "" {
			if !archiveKey(key, id) {
				continue
			}
			kept.Options["signed-by"] = key
		}
		if len(kept.Types) > 0 && len(kept.URIs) > 0 && len(kept.Suites) > 0 && len(kept.Components) > 0 {
			out = append(out, kept)
		}
	}
	return out
}

func keep(in []string, ok func(string) bool) []string {
	return slices.DeleteFunc(slices.Clone(in), func(v string) bool { return !ok(v) })
}

// overNetwork tells whether guests can use the address as well: not a disc, a
// host directory or a program of the host.
func overNetwork(uri string) bool {
	u, err := url.Parse(uri)
	return err == nil && u.Host != "" && (u.Scheme == "http" || u.Scheme == "https")
}

// archiveKey tells whether all the keys named are the distribution's archive keys,
// as its keyring package installs them, so that the guest has them too.
func archiveKey(signedBy, id string) bool {
	paths := strings.FieldsFunc(signedBy, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' })
	own := regexp.MustCompile(`^/usr/share/keyrings/` + regexp.QuoteMeta(id) + `-archive-[a-z0-9-]+\.(gpg|pgp|asc)$`)
	return len(paths) > 0 && !slices.ContainsFunc(paths, func(p string) bool { return !own.MatchString(p) })
}

// buildSources is the text for the build, credentials in addresses included.
func buildSources(list []source) string { return sourcesText(list, func(u string) string { return u }) }

// guestSources is the text for the guest, without credentials.
func guestSources(list []source) string {
	return sourcesText(list, func(s string) string {
		u, err := url.Parse(s)
		if err != nil {
			return ""
		}
		u.User = nil
		return u.String()
	})
}

func sourcesText(list []source, address func(string) string) string {
	var b strings.Builder
	for _, s := range list {
		if b.Len() > 0 {
			b.WriteByte('\n')
		}
		uris := make([]string, len(s.URIs))
		for i, u := range s.URIs {
			uris[i] = address(u)
		}
		b.WriteString("Types: deb\n")
		b.WriteString("URIs: " + strings.Join(uris, " ") + "\n")
		b.WriteString("Suites: " + strings.Join(s.Suites, " ") + "\n")
		b.WriteString("Components: " + strings.Join(s.Components, " ") + "\n")
		if key := s.Options["signed-by"]; key != "" {
			b.WriteString("Signed-By: " + strings.Join(strings.Fields(key), " ") + "\n")
		}
	}
	return b.String()
}
