package base

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const key = "/usr/share/keyrings/debian-archive-keyring.gpg"

// TestSources: which of a host's sources sandboxes get.
func TestSources(t *testing.T) {
	for name, c := range map[string]struct{ list, deb822, want string }{
		"one-line": {list: "deb http://mirror.test/debian bookworm main contrib\n",
			want: "http://mirror.test/debian bookworm main contrib"},
		"one-line with options": {list: "deb [arch=amd64 signed-by=" + key + "] https://mirror.test/debian bookworm-updates main # comment\n",
			want: "https://mirror.test/debian bookworm-updates main " + key},
		"deb822": {deb822: "Types: deb deb-src\nURIs: http://a.test/debian http://b.test/debian\nSuites: bookworm bookworm-updates\nComponents: main\nSigned-By: " + key + "\n",
			want: "http://a.test/debian http://b.test/debian bookworm bookworm-updates main " + key},
		"two stanzas": {deb822: "# first\nTypes: deb\nURIs: http://a.test\nSuites: bookworm\nComponents: main\n\nTypes: deb\nURIs: http://b.test\nSuites:\n bookworm-security\nComponents:\n main\n contrib\n",
			want: "http://a.test bookworm main|http://b.test bookworm-security main contrib"},
		"both":               {list: "deb http://a.test bookworm main", deb822: "Types: deb\nURIs: http://b.test\nSuites: bookworm\nComponents: main", want: "http://a.test bookworm main|http://b.test bookworm main"},
		"disabled":           {deb822: "Enabled: no\nTypes: deb\nURIs: http://a.test\nSuites: bookworm\nComponents: main\n"},
		"commented":          {list: "# deb http://a.test bookworm main\n"},
		"source packages":    {list: "deb-src http://a.test bookworm main\n"},
		"another release":    {list: "deb http://a.test trixie main\ndeb http://a.test stable main\n"},
		"another component":  {list: "deb http://a.test bookworm vendor\n"},
		"components are cut": {list: "deb http://a.test bookworm main vendor\n", want: "http://a.test bookworm main"},
		"vendor's suite":     {list: "deb http://a.test bookworm-pgdg main\ndeb https://a.test nodistro main\n"},
		"vendor's key":       {list: "deb [signed-by=/etc/apt/keyrings/vendor.gpg] http://a.test bookworm main\n"},
		"two keys":           {list: "deb [signed-by=" + key + ",/etc/apt/keyrings/vendor.gpg] http://a.test bookworm main\n"},
		"key in the file":    {deb822: "Types: deb\nURIs: http://a.test\nSuites: bookworm\nComponents: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDMEY\n"},
		"key beside the own": {list: "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg/../../../tmp/x.gpg] http://a.test bookworm main\n"},
		"no key":             {list: "deb [trusted=yes] http://a.test bookworm main\n"},
		"another machine":    {list: "deb [arch=arm64] http://a.test bookworm main\n"},
		"a disc":             {list: "deb cdrom:[Debian]/ bookworm main\ndeb file:/mnt/debian bookworm main\n"},
		"flat":               {list: "deb http://a.test ./\n"},
		"nonsense":           {list: "deb\ndeb [\ndeb [x\n]\nhello\n", deb822: ":\n: x\n x\nTypes\n\n\n Types: deb\n"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for path, text := range map[string]string{"sources.list": c.list, "sources.list.d/x.sources": c.deb822, "sources.list.d/y.sources.save": "Types: deb\nURIs: http://saved.test\nSuites: bookworm\nComponents: main\n"} {
				write(t, filepath.Join(dir, path), text, 0o644)
			}
			all, err := readSources(dir)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range distribution(all, "debian", "bookworm", "amd64") {
				line := strings.Join(append(append(append([]string{}, s.URIs...), s.Suites...), s.Components...), " ")
				if k := s.Options["signed-by"]; k != "" {
					line += " " + k
				}
				got = append(got, line)
			}
			if g := strings.Join(got, "|"); g != c.want {
				t.Errorf("kept %q, want %q", g, c.want)
			}
		})
	}
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// TestNoCredentialInGuest: a password in an address is used for the build and is
// neither in the image nor in its name.
func TestNoCredentialInGuest(t *testing.T) {
	recipeOf := func(password string) recipe {
		etc := t.TempDir()
		write(t, filepath.Join(etc, "os-release"), "ID=debian\nVERSION_CODENAME=\"bookworm\"\n", 0o644)
		write(t, filepath.Join(etc, "apt/sources.list"), "deb https://joe:"+password+"@mirror.test/debian bookworm main\n", 0o644)
		r, err := newRecipe(host{etc: etc})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	one, two := recipeOf("hunter2"), recipeOf("secret3")
	if !strings.Contains(buildSources(one.Sources), "joe:hunter2@") {
		t.Error("the build has no credential")
	}
	guest := guestSources(one.Sources)
	if strings.Contains(guest, "joe") || !strings.Contains(guest, "URIs: https://mirror.test/debian\n") {
		t.Errorf("the guest has\n%s", guest)
	}
	for _, f := range one.Files {
		if strings.Contains(f.Text, "hunter2") {
			t.Errorf("%s has the password", f.Path)
		}
	}
	if one.hash() != two.hash() {
		t.Error("a new password makes a new image")
	}
	two.Packages = append(two.Packages, "tree")
	if one.hash() == two.hash() {
		t.Error("another package makes no new image")
	}
}

// TestPassOn: the way to the archives is the host's, its hooks and secrets' places are not the image's.
func TestPassOn(t *testing.T) {
	got := passOn(`APT::Architecture "amd64";
Acquire::http::Proxy "http://joe:hunter2@proxy.test:3128";
Acquire::http::Proxy::mirror.test "DIRECT";
Acquire::https "";
Acquire::https::CAInfo "/etc/ssl/own.pem";
Acquire::Retries "3";
Acquire::Check-Valid-Until "false";
Acquire::Languages:: "de";
Acquire::IndexTargets::deb::Packages::MetaKey "x";
Acquire::AllowInsecureRepositories "1";
DPkg::Post-Invoke:: "rm -rf /";
Dir::Etc::netrc "auth.conf";
Dir::Etc::netrcparts "/srv/auth.conf.d";
Dir::Etc::sourcelist "sources.list";
`)
	want := `Acquire::http::Proxy "http://joe:hunter2@proxy.test:3128";
Acquire::http::Proxy::mirror.test "DIRECT";
Acquire::https::CAInfo "/etc/ssl/own.pem";
Acquire::Retries "3";
Acquire::Check-Valid-Until "false";
Dir::Etc::netrc "/etc/apt/auth.conf";
Dir::Etc::netrcparts "/srv/auth.conf.d";
Acquire::Languages "none";
APT::Install-Recommends "false";
`
	if got != want {
		t.Errorf("passed on\n%s\nwant\n%s", got, want)
	}
}

func FuzzSources(f *testing.F) {
	f.Add("deb [a=b] http://a.test bookworm main\n\nTypes: deb\nURIs: http://a.test\nSuites: bookworm\nComponents: main\nSigned-By:\n x\n")
	f.Add("deb http://joe:pw@a.test bookworm main")
	f.Fuzz(func(t *testing.T, text string) {
		kept := distribution(append(parseList(text), parseDeb822(text)...), "debian", "bookworm", "amd64")
		guest := guestSources(kept)
		if back := distribution(parseDeb822(guest), "debian", "bookworm", "amd64"); len(back) != len(kept) {
			t.Errorf("%q gives the guest %d sources, not %d:\n%s", text, len(back), len(kept), guest)
		}
		for line := range strings.Lines(guest) {
			if uris, ok := strings.CutPrefix(line, "URIs: "); ok {
				for _, u := range strings.Fields(uris) {
					rest := u[strings.Index(u, "//")+2:]
					if h, _, _ := strings.Cut(rest, "/"); strings.Contains(h, "@") {
						t.Errorf("a credential is left in %s", u)
					}
				}
			}
		}
	})
}
